"""Merging of seeds, the rule of what may be compared with the paper, and what a partial sweep says."""

import csv
import statistics

import pytest
from sweep_folders import write_run

from bagnet_lightning.errors import UserError
from bagnet_lightning.reporting.columns import table1, table1_short
from bagnet_lightning.reporting.notes import notes
from bagnet_lightning.reporting.table import read_table
from bagnet_lightning.reporting.text import csv_text
from bagnet_lightning.table1 import paper_rows


def only_line(folder):
    (line,) = read_table(folder).lines
    return line


def test_seeds_become_mean_and_sample_deviation(tmp_path):
    accuracies = [0.41, 0.43, 0.45]
    for seed, accuracy in enumerate(accuracies):
        write_run(tmp_path / str(seed), accuracy=accuracy, seed=seed, train_seconds=100.0 * (seed + 1))
    line = only_line(tmp_path)
    assert line.accuracy == pytest.approx(0.43)
    assert line.std == pytest.approx(statistics.stdev(accuracies)) == pytest.approx(0.02)
    assert len(line.runs) == 3
    assert line.train_seconds == 200
    assert line.top5 == pytest.approx(1.6 * 0.43)
    assert line.difference == pytest.approx(0.43 - 0.4234)


def test_files_of_two_runs_have_the_names_of_these_and_are_no_seeds_of_one_line(tmp_path):
    sources = ["a/bagnet17/backbone.safetensors", "b/bagnet17/backbone.safetensors", "a/bagnet17_seed-1/best.ckpt"]
    for number, source in enumerate([*sources, "mine.pt"]):
        write_run(tmp_path / str(number), pretrained=source, seed=number)
    lines = read_table(tmp_path).lines
    assert sorted(line.pretrained for line in lines) == ["bagnet17", "bagnet17", "bagnet17_seed-1", "mine.pt"]


def test_folds_become_mean_and_deviation_too(tmp_path):
    for fold, accuracy in enumerate((0.4, 0.5)):
        write_run(tmp_path / str(fold), accuracy=accuracy, config={"data.holdout": 0.2, "data.fold": fold})
    line = only_line(tmp_path)
    assert (line.accuracy, len(line.runs)) == (pytest.approx(0.45), 2)


def test_one_run_has_no_deviation(tmp_path):
    write_run(tmp_path / "a")
    assert only_line(tmp_path).std is None


def test_the_same_training_in_two_folders_is_no_other_seed(tmp_path):
    for name, digest in (("a", "1"), ("b", "1"), ("c", "2")):
        write_run(tmp_path / name, config_digest=digest)
    assert sorted(len(line.runs) for line in read_table(tmp_path).lines) == [1, 2]


@pytest.mark.parametrize(
    "other",
    [
        {"optimizer": "sgd"},
        {"model": "bagnet9"},
        {"pretrained": True},
        {"epochs": 5},
        {"config": {"model.width": 0.5}},
        {"config": {"optim.lr": 0.01}},
        {"config": {"data.classes": [1, 2]}},
        {"config": {"sweep": "another"}},
        {"config": {"data._target_": "mine.Darkened"}},
        {"config": {"model._target_": "mine.bagnet17"}},
        {"config": {"model.pad": 2}},  # equal to the seed
        {"status": None, "done": 3},
    ],
)
def test_runs_that_differ_in_more_than_the_seed_stay_apart(tmp_path, other):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1)
    write_run(tmp_path / "c", seed=2, **other)
    assert sorted(len(line.runs) for line in read_table(tmp_path).lines) == [1, 2]


def test_all_17_rows_are_compared_with_their_own_value(tmp_path):
    for row in paper_rows():
        write_run(
            tmp_path / row.name,
            row.model,
            row.optimizer,
            row.accuracy + 0.01,
            epochs=row.epochs,
            pretrained=row.pretrained,
        )
    table = read_table(tmp_path)
    assert [line.row for line in table.lines] == list(range(1, 18))
    assert [line.difference for line in table.lines] == pytest.approx([0.01] * 17)
    assert table.settings == []
    assert "17 of 17 runs finished" in notes(table)[0]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"train_images": 20_000}, "20,000 of 100,000 train images"),
        ({"val_images": 500}, "500 of 10,000 val images"),
        ({"classes": 10}, "10 of 200 classes"),
        ({"classes": None}, "an unknown number of 200 classes"),
        ({"validated_on": "holdout"}, "validated on holdout"),
        ({"config": {"model.width": 0.25}}, "model.width=0.25"),
        ({"config": {"optim.lr": 0.01}}, "optim.lr=0.01"),
        ({"config": {"label_smoothing": 0.1}}, "label_smoothing=0.1"),
        ({"config": {"scheduler._target_": "torch.optim.lr_scheduler.OneCycleLR"}}, "scheduler=OneCycleLR"),
        ({"epochs": 2}, "2 epochs instead of 15"),
        ({"config": {"trainer.limit_train_batches": 3}}, "trainer.limit_train_batches=3"),
    ],
)
def test_what_is_not_of_the_papers_data_is_not_compared(tmp_path, changed, reason):
    write_run(tmp_path / "a", **changed)
    table = read_table(tmp_path)
    line = table.lines[0]
    assert line.not_comparable == [reason]
    assert line.paper.accuracy == 0.4234  # for orientation
    assert line.difference is None
    assert any("cannot be compared" in note and reason in note for note in notes(table))


def test_other_data_stand_beside_nothing(tmp_path):
    write_run(tmp_path / "a", data="textures")
    (line,) = read_table(tmp_path).lines
    assert (line.paper, line.row, line.difference, line.not_comparable) == (None, None, None, [])


def test_the_row_for_orientation(tmp_path):
    write_run(tmp_path / "own epochs", "bagnet17", "adam", epochs=5)
    write_run(tmp_path / "15 epochs", "bagnet17", "adam", epochs=7)
    write_run(tmp_path / "only one", "bagnet17", "adam", epochs=15, pretrained=True)
    write_run(tmp_path / "none", "bagnet9", "adamw")
    found = {
        line.runs[0]["folder"].name: (line.paper and line.paper.row, line.row) for line in read_table(tmp_path).lines
    }
    assert found == {"own epochs": (9, 9), "15 epochs": (10, None), "only one": (11, None), "none": (None, None)}


def test_weights_of_ones_own_make_no_row_of_those_from_imagenet(tmp_path):
    write_run(tmp_path / "a", epochs=5, pretrained="runs/b/best.ckpt")
    assert (only_line(tmp_path).pretrained, only_line(tmp_path).row) == ("b", None)


def test_balanced_and_final_accuracies_are_means_over_the_runs_too(tmp_path):
    for seed, balanced in enumerate((0.3, 0.4)):
        write_run(tmp_path / str(seed), seed=seed, val_balanced_accuracy=balanced, final_val_accuracy=balanced - 0.1)
    table = read_table(tmp_path)
    (record,) = csv.DictReader(csv_text(table).splitlines())
    numbers = {name: round(float(record[name]), 4) for name in record if name.startswith(("balanced", "final"))}
    assert numbers == {
        "balanced_accuracy": 0.35,
        "balanced_accuracy_std": 0.0707,
        "final_accuracy": 0.25,
        "final_accuracy_std": 0.0707,
    }
    assert "balanced" not in table1(table)
    write_run(tmp_path / "b", "bagnet9", val_balanced_accuracy=0.2, config={"monitor": "val_balanced_accuracy"})
    assert table1(read_table(tmp_path))["balanced"] == ["0.2000", "0.3500 ± 0.0707"]
    write_run(tmp_path / "c", "bagnet17", val_f1=0.6, config={"monitor": "val_f1"})
    table = read_table(tmp_path)
    assert table1(table)["val_f1"] == ["", "", "0.6000"]
    assert "val_f1" in table1_short(table)
    assert [record["val_f1"] for record in csv.DictReader(csv_text(table).splitlines())] == ["", "", "0.6"]


def test_what_callbacks_have_logged_has_columns_but_in_a_terminal(tmp_path):
    for seed, value in enumerate((0.5, 0.7)):
        write_run(tmp_path / str(seed), seed=seed, val_f1=value, val_triplet_accuracy=0.1)
    table = read_table(tmp_path)
    assert (table.monitors, table.measures) == ([], ["val_f1"])
    assert table1(table)["val_f1"] == ["0.6000 ± 0.1414"]
    assert "val_f1" not in table1_short(table)
    (record,) = csv.DictReader(csv_text(table).splitlines())
    assert float(record["val_f1"]) == pytest.approx(0.6)


def test_a_run_without_its_config_is_not_compared(tmp_path):
    (write_run(tmp_path / "a") / "config.yaml").unlink()
    assert only_line(tmp_path).not_comparable == ["config.yaml missing or unreadable"]
    (write_run(tmp_path / "b") / "config.yaml").unlink()
    assert len(read_table(tmp_path).lines) == 2  # who knows whether they differ by their seed alone


def test_a_partial_sweep_says_so_line_by_line(tmp_path):
    write_run(tmp_path / "good", "bagnet9")
    write_run(tmp_path / "bad", "bagnet9", "sgd", status="failed", error="RuntimeError: out of\nmemory")
    write_run(tmp_path / "worse", "bagnet17", status="diverged", error="loss is nan", done=2)
    write_run(tmp_path / "running", "bagnet33", status=None, done=3)
    cut = write_run(tmp_path / "cut", "bagnet33", "sgd") / "result.json"
    cut.write_text(cut.read_text()[:100])
    table = read_table(tmp_path)
    assert notes(table)[0] == "1 of 5 runs finished."
    told = {line.runs[0]["folder"].name: (line.status, line.accuracy, line.error) for line in table.lines}
    assert told["good"] == ("finished", 0.4, None)
    assert told["bad"] == ("failed", None, "RuntimeError: out of memory")
    assert told["worse"][:2] == ("diverged", None)
    assert told["worse"][2] == "loss is nan, 2 of 15 epochs done, best so far 0.2050"
    assert told["running"][:2] == ("unfinished", None)
    assert told["running"][2] == "3 of 15 epochs done, best so far 0.2641"
    assert told["cut"][:2] == ("unreadable", None)
    assert (
        sum(note.startswith(("failed: ", "diverged: ", "unfinished: ", "unreadable: ")) for note in notes(table)) == 4
    )


def test_a_finished_seed_does_not_hide_a_failed_one(tmp_path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, status="failed", error="no")
    write_run(tmp_path / "c", seed=2, status="failed", error="no")
    assert [line.status for line in read_table(tmp_path).lines] == ["finished", "failed", "failed"]


def test_a_finished_run_without_an_accuracy_survives(tmp_path):
    write_run(tmp_path / "a", accuracy=None)
    line = only_line(tmp_path)
    assert (line.status, line.accuracy, line.difference) == ("finished", None, None)


def test_the_order_is_the_papers_then_the_settings(tmp_path):
    for width in (1.0, 0.25, 0.5):
        for model in ("bagnet33", "bagnet9", "resnet18"):
            write_run(tmp_path / f"{model}{width}", model, "adamw", config={"model.width": width})
    write_run(tmp_path / "zz", "bagnet33", "adam")
    write_run(tmp_path / "z", "bagnet9", "sgd")
    lines = read_table(tmp_path).lines
    assert [line.row for line in lines[:3]] == [4, 16, None]
    told = [(line.model, line.settings["model.width"]) for line in lines[2:]]
    assert told == [(m, w) for m in ("bagnet9", "bagnet33", "resnet18") for w in (0.25, 0.5, 1.0)]
    assert lines[2].name == "BagNet-9, AdamW, 15 epochs, width 0.25"


def test_notes_tell_what_all_runs_share_and_where_they_ran(tmp_path):
    for optimizer in ("sgd", "adam"):
        overrides = [f"optim={optimizer}", "data.classes=10", "data.root=/data", "trainer.max_epochs=15"]
        overrides += ["backbones.simclr=a/path", "logger.project=mine"]
        write_run(tmp_path / optimizer, optimizer=optimizer, overrides=overrides)
    told = notes(read_table(tmp_path))
    assert "All runs were asked for: data.classes=10." in told
    assert "NVIDIA H200, bf16-mixed" in told[-1]
    assert "torch 2.9.0" in told[-1]
    assert "commit 0123456789ab" in told[-1]


def test_no_folder_is_a_users_mistake_and_no_runs_are_no_lines(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_table(tmp_path / "nowhere")
    assert read_table(tmp_path).lines == []


@pytest.mark.parametrize("rubbish", [b"", b"\x80\0\xff: [{", b"[]", b"model: 3\ntrainer: [1]\n", b"a: ${b}\n"])
def test_rubbish_in_every_file_still_gives_a_line(tmp_path, rubbish):
    for name in ("config.yaml", "metrics.csv", "result.json"):
        (tmp_path / name).write_bytes(rubbish)
    line = only_line(tmp_path)
    assert (line.status, line.model) == ("unreadable", "?")
