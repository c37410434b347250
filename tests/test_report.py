"""The report as its readers get it: files, printed table, and what a user's mistake says."""

import csv
import io

import pytest
from PIL import Image
from rich.console import Console
from sweep_folders import write_run

from bagnet_lightning.errors import UserError
from bagnet_lightning.reporting.columns import duration
from bagnet_lightning.reporting.figures import _panels
from bagnet_lightning.reporting.notes import notes
from bagnet_lightning.reporting.report import write_report
from bagnet_lightning.reporting.table import read_table
from bagnet_lightning.reporting.text import csv_text, markdown, print_table
from bagnet_lightning.results import note_jobs

FILES = ["curves.png", "figure2.png", "index.html", "table.csv", "table.md"]


def grid(folder, **of_bagnet33):
    for model in ("bagnet9", "bagnet17", "bagnet33"):
        for optimizer in ("sgd", "adam", "adadelta"):
            write_run(folder / f"{model}_{optimizer}", model, optimizer, **(of_bagnet33 if model == "bagnet33" else {}))
    return folder


def printed(folder, width=80, **options) -> str:
    stream = io.StringIO()
    print_table(read_table(folder), Console(file=stream, width=width, **options))
    return stream.getvalue()


def test_all_files_are_written_and_named(tmp_path):
    stream = io.StringIO()
    write_report([grid(tmp_path, status=None, done=2)], Console(file=stream, width=80))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == FILES
    for name in FILES:
        assert str(tmp_path / name) in stream.getvalue().splitlines()
    for name in ("figure2.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert min(picture.size) > 500
            assert len(set(picture.convert("L").tobytes())) > 10  # something is drawn
    assert "6 of 9 runs finished." in stream.getvalue()


def test_a_second_report_reads_the_same_runs(tmp_path):
    console = Console(file=io.StringIO())
    write_report([grid(tmp_path)], console)
    first = (tmp_path / "table.csv").read_text()
    write_report([tmp_path], console)
    assert (tmp_path / "table.csv").read_text() == first


def test_csv_has_full_precision_and_one_record_a_line(tmp_path):
    write_run(tmp_path / "a", accuracy=1 / 3, seed=0)
    write_run(tmp_path / "b", accuracy=2 / 3, seed=1)
    write_run(
        tmp_path / "c", "bagnet9", "sgd", status="failed", error='ValueError: "a", b|c', config={"model.width": 0.5}
    )
    failed, merged = csv.DictReader(io.StringIO(csv_text(read_table(tmp_path))))
    assert float(merged["accuracy"]) == (1 / 3 + 2 / 3) / 2
    assert float(merged["accuracy_std"]) == pytest.approx(1 / 3 / 2**0.5)
    assert (merged["n"], merged["seed"], merged["folders"]) == ("2", "0; 1", "a; b")
    assert float(merged["difference"]) == 0.5 - 0.4234
    assert merged["model.width"] == "1.0"
    assert (failed["n"], failed["accuracy"], failed["difference"]) == ("0", "", "")
    assert failed["error"] == 'ValueError: "a", b|c'


def test_markdown_is_one_rectangular_table_and_notes(tmp_path):
    write_run(tmp_path / "a", accuracy=0.41234, seed=0)
    write_run(tmp_path / "b", accuracy=0.43234, seed=1)
    write_run(tmp_path / "c", "bagnet9", "sgd", status="failed", error="bad | worse", data="textures")
    text = markdown(read_table(tmp_path))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == len({len(line) for line in rows}) == 1
    assert len(rows) == 4
    assert "| 0.4223 ± 0.0141 (n=2) | 0.4234 |    -0.0011 |" in rows[2]
    assert "- 2 of 3 runs finished." in text
    assert "bad \\| worse" in text


def test_runs_that_were_asked_for_and_not_begun_count_too(tmp_path):
    write_run(tmp_path / "a")
    note_jobs(tmp_path, {"a": ["seed=0"], "b": ["seed=1"]})
    assert notes(read_table(tmp_path))[:2] == [
        "1 of 2 runs finished.",
        "Not begun: 1; the same command again goes on.",
    ]


def test_settings_with_one_value_for_each_network_need_no_panel_of_their_own(tmp_path):
    for name, model, width in (("a", "bagnet9", 0.25), ("b", "mine", 32)):
        write_run(tmp_path / name, model, config={"model.width": width})
    table = read_table(tmp_path)
    assert (table.settings, [title for title, _ in _panels(table)]) == (["model.width"], ["15 epochs, from scratch"])
    write_run(tmp_path / "c", "mine", config={"model.width": 64})
    assert [title for title, _ in _panels(read_table(tmp_path))] == [
        f"15 epochs, width {width}" for width in (0.25, 32, 64)
    ]


def test_durations_are_in_the_unit_that_suits_them():
    seconds = (None, 9.94, 9.96, 99.4, 99.6, 5969, 5971, 36_000)
    assert [*map(duration, seconds)] == ["", "9.9 s", "10 s", "99 s", "2 min", "99 min", "1.7 h", "10.0 h"]


def test_values_that_cannot_be_compared_stand_in_parentheses(tmp_path):
    write_run(tmp_path / "a", classes=10, accuracy=0.9)
    text = markdown(read_table(tmp_path))
    assert "| (0.4234) |" in text
    assert "+0.4766" not in text


def test_the_table_fits_120_columns_where_there_is_no_terminal(tmp_path):
    for seed in range(2):
        for width in (0.25, 1.0):
            config = {"model.width": width}
            write_run(tmp_path / f"{seed}{width}", "bagnet33", "adadelta", 0.4 + seed / 100, seed=seed, config=config)
    write_run(tmp_path / "c", status="failed", error="word " * 60)
    text = printed(tmp_path)
    assert max(map(len, text.splitlines())) <= 120
    assert "\x1b" not in text
    assert "0.4050 ± 0.0071  2    0.4395  -0.0345" in text
    assert "BagNet-33" in text
    assert "Adadelta" in text
    assert "No room" not in text


def test_a_narrow_terminal_loses_columns_and_not_digits(tmp_path):
    text = printed(grid(tmp_path), width=72, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= 72
    assert "BagNet-17" in text
    assert "0.4234" in text
    assert "img/s" not in text.splitlines()[0]
    assert "No room here for img/s" in text


def test_markup_in_messages_is_text(tmp_path):
    write_run(tmp_path / "a", status="failed", error="shape [1, 2] [/red] [bold]")
    assert "shape [1, 2] [/red] [bold]" in printed(tmp_path)


def test_where_nothing_can_be_written_the_table_is_still_printed(tmp_path):
    write_run(tmp_path / "a")
    (tmp_path / "table.csv").mkdir()  # stands for a folder that is read-only, also for root
    stream = io.StringIO()
    with pytest.raises(UserError, match=r"cannot write to .* \(Is a directory\); choose another folder"):
        write_report([tmp_path], Console(file=stream))
    assert "BagNet-17" in stream.getvalue()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "table.csv"]


def test_the_command_reports_without_torch_and_leaves_nothing_else(tmp_path, command):
    grid(tmp_path / "sweep")
    done = command("report", "runs=sweep", anew=True, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    assert "9 of 9 runs finished." in done.stdout
    assert "sweep/table.md" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "matplotlib.figure" in imported
    assert "torch" not in imported
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "add runs=multirun_outputs/SWEEP"),
        (["runs=nowhere"], "runs=nowhere: there is no such folder"),
        (["runs=.", "watch=true", "port=99999999"], "port=99999999"),
        (["run=x"], "did you mean runs?"),
    ],
)
def test_a_mistake_is_one_line(command, arguments, said):
    done = command("report", *arguments)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_folder_without_runs_is_left_as_it_is(command, tmp_path):
    done = command("report", "runs=.")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: runs=.: no runs in it; train some there, or give the folder of another sweep"
    ]
    assert not [*tmp_path.iterdir()]


def test_a_place_that_cannot_be_written_is_named_and_the_report_is_beside(tmp_path, monkeypatch):
    sweep, home = grid(tmp_path / "sweep"), tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)

    def read_only(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("bagnet_lightning.reporting.report.TemporaryFile", read_only)
    stream = io.StringIO()
    write_report([sweep], Console(file=stream, width=500))
    assert f"{sweep} cannot be written (Read-only file system), so the report is in report_sweep" in stream.getvalue()
    assert sorted(path.name for path in (home / "report_sweep").iterdir()) == FILES
    assert not list(sweep.glob("*.html"))


def test_two_sweeps_side_by_side(command, tmp_path):
    for name, accuracy in (("old", 0.3), ("new", 0.4)):
        write_run(tmp_path / name / "a", accuracy=accuracy)
    done = command("report", "runs=old,new")
    assert done.returncode == 0, done.stderr
    assert "0.3000" in done.stdout
    assert "0.4000" in done.stdout
    assert [path.name for path in (tmp_path / "old_and_new").iterdir()] == ["index.html"]
