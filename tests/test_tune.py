"""The search for settings on made-up accuracies: what is chosen, what is run again, what counts."""

import csv
import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import composed

from bagnet_lightning.config import folder
from bagnet_lightning.rules import check

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "tune.py"))
BEST = {"optim.lr": 0.1, "data.batch_size": 64, "optim.weight_decay": 0.01}
SWITCHES = "weight_average=0.999 data.flip=true"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The overrides of every run that was asked for, each of which leaves a result: the nearer to BEST the better."""
    asked = []

    def train(overrides):
        asked.append(overrides)
        settings = dict(override.split("=") for override in overrides)
        distance = sum(abs(math.log(float(settings[key]) / BEST[key])) for key in BEST if float(settings.get(key, 0)))
        place = tmp_path / "multirun_outputs" / settings["sweep"] / folder(overrides)
        place.mkdir(parents=True)
        result = {"format": 1, "model": settings["model"], "optimizer": "muon", "validated_on": "holdout"}
        distance += settings.get("weight_average") == "null"
        found = {"status": "finished", "best_val_accuracy": 0.5 - 0.01 * distance}
        if settings.get("model.pad") == "0" or settings.get("optim.lr") == "0.2":
            found = {"status": "diverged"}
        (place / "result.json").write_text(json.dumps({**result, **found, "overrides": overrides}))
        return int(found["status"] != "finished")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SCRIPT["accuracies"].__globals__, "train", train)
    return asked


def test_one_setting_after_the_other_takes_its_best_value_and_a_second_call_runs_nothing(runs, tmp_path):
    def choose():
        SCRIPT["choose"](["bagnet17", "resnet18_small"], 5, ["seed=3"], 2, tmp_path)
        return (tmp_path / "tuned.txt").read_text()

    chosen = choose()
    assert chosen == (
        f"model=bagnet17 optim.lr=0.1 data.batch_size=64 optim.weight_decay=0.01 {SWITCHES}\n"
        f"model=resnet18 model.stem=small optim.lr=0.1 data.batch_size=64 optim.weight_decay=0.01 {SWITCHES}\n"
    )
    assert len(runs) == 3 + 2 + 2 + 1 + 1 + 3  # the values so far were there already
    assert all("data.holdout=0.1" in run and "trainer.max_epochs=5" in run and "seed=3" in run for run in runs)
    rows = list(csv.DictReader((tmp_path / "tune.csv").open()))
    assert [float(row["optim.lr"]) for row in rows if row["varied"] == "optim.lr"] == [0.05, 0.025, 0.1, 0.1, 0.05, 0.2]
    assert rows[-1]["holdout_accuracy"] == "nan"  # this rate's run has diverged
    assert choose() == chosen
    assert len(runs) == 12


def test_a_setting_that_is_given_is_not_tuned(runs, tmp_path):
    SCRIPT["choose"](["bagnet17"], 5, ["data.batch_size=8"], 1, tmp_path)
    assert (tmp_path / "tuned.txt").read_text() == f"model=bagnet17 optim.lr=0.1 optim.weight_decay=0.01 {SWITCHES}\n"
    assert all([o for o in run if o.startswith("data.batch_size")] == ["data.batch_size=8"] for run in runs)


def test_each_part_is_changed_in_the_chosen_settings(runs, tmp_path):
    (tmp_path / "tuned.txt").write_text("model=bagnet9 optim.lr=9\nmodel=bagnet17 optim.lr=0.05 weight_average=0.999\n")
    with pytest.raises(SystemExit, match="not all"):  # the run without a padded pixel has diverged
        SCRIPT["ablate"]("bagnet17", [], 1, tmp_path)
    assert all("data.holdout=0.1" in run and "model=bagnet17" in run for run in runs)
    assert sum("optim.lr=0.05" in run for run in runs) == len(runs) - 1  # recipe=paper has its own
    rows = {row["what"]: row for row in csv.DictReader((tmp_path / "ablation.csv").open())}
    as_it_is = {"with a moving average", "flips at random", "without the patches' own loss"}
    assert set(rows) == {*SCRIPT["PARTS"], SCRIPT["PAPER"]} - as_it_is
    assert float(rows["without crops"]["difference"]) == 0
    assert float(rows["without a moving average"]["difference"]) == pytest.approx(-0.01)
    assert rows["without the padded pixel"]["difference"] == "nan"


@pytest.mark.parametrize("codes", [[0, 1, -15], [0, 1, 143]])
def test_once_a_run_is_stopped_no_other_is_started(tmp_path, monkeypatch, codes):
    script = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "tune.py"))
    ends = iter(codes)
    simulated = SimpleNamespace(run=lambda *words, check: SimpleNamespace(returncode=next(ends)))
    monkeypatch.setitem(script["train"].__globals__, "subprocess", simulated)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        script["accuracies"]("tune", [[f"seed={seed}"] for seed in range(6)], 1)
    assert stop.value.code == abs(codes[-1])
    assert next(ends, None) is None


def test_a_network_has_its_own_line_or_the_recipes_settings(tmp_path):
    (tmp_path / "tuned.txt").write_text("model=resnet18 model.stem=small optim.lr=1\nmodel=resnet18 optim.lr=2\n")
    line = SCRIPT["tuned_line"]
    assert line(tmp_path / "tuned.txt", "resnet18")[-1] == "optim.lr=2"
    assert line(tmp_path / "tuned.txt", "resnet18_small")[-1] == "optim.lr=1"
    assert line(tmp_path / "tuned.txt", "bagnet33") == ["model=bagnet33"]
    assert line(tmp_path / "no.txt", "bagnet33") == ["model=bagnet33"]


@pytest.mark.parametrize("part", SCRIPT["PARTS"])
def test_every_part_can_be_asked_for(part):
    check(composed("recipe=modern", *SCRIPT["PARTS"][part]))
