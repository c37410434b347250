import pytest
from sweep_folders import write_run
from wandb_records import history, records


def test_the_report_is_one_run_of_its_type_with_table_pictures_and_page(tmp_path, command):
    write_run(tmp_path / "mine/bagnet9_sgd", "bagnet9", "sgd")
    for seed in (0, 1):  # whose cell of the table is text
        write_run(tmp_path / f"mine/{seed}", seed=seed)
    arguments = ["runs=mine", "logger=wandb", "logger.project=p"]
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = command("report", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "mine/wandb").glob("offline-run-*/run-report-mine.wandb")
    found = records(path)
    (run,) = [record.run for record in found if record.HasField("run")]
    assert (run.project, run.run_group, run.job_type) == ("p", "mine", "report")
    (row,) = history(found)
    kinds = {key.partition("._")[0]: value for key, value in row.items() if key.endswith("._type")}
    assert kinds == {"table1": "table-file", "figure2": "image-file", "curves": "image-file", "page": "html-file"}


@pytest.mark.parametrize("arguments", [["runs=a", "logger=tensorboard"], ["runs=a,a", "logger=wandb"]])
def test_the_report_of_one_sweep_goes_to_wandb_or_nowhere(command, arguments):
    done = command("report", *arguments)
    assert done.returncode == 1
    assert "logger=wandb" in done.stderr
