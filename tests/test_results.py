"""Reading and writing run folders."""

import json
import os
import socket
import subprocess
import sys

import pytest
from conftest import composed
from omegaconf import OmegaConf

from bagnet_lightning.results import (
    describe,
    note_jobs,
    read_jobs,
    read_metrics,
    read_run,
    read_runs,
    write_result,
)

CONFIG = """
seed: 3
model: {_target_: bagnet_lightning.models.bagnet.bagnet17, pretrained: true, width: 1.0}
optim: {_target_: torch.optim.Adam, lr: 0.001}
trainer: {max_epochs: 15}
paper: {row: 10, accuracy: 0.4234}
"""
METRICS = "epoch,step,train_loss,val_accuracy,seconds\n1,10,5.1,0.05,3.0\n2,20,4.0,0.11,3.0\n"
RESULT = {"model": "bagnet9", "optimizer": "sgd", "status": "finished", "best_val_accuracy": 0.3}


def test_reading_results_needs_no_torch():
    code = "import bagnet_lightning.results as r, sys; r.paper_row('', '', False, 5); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_result_comes_back_as_written(tmp_path):
    write_result(tmp_path, RESULT | {"final_val_accuracy": float("nan"), "versions": {"torch": "2.9"}, "x": [1e400]})
    run = read_run(tmp_path)
    assert {key: run[key] for key in RESULT} == RESULT
    assert run["final_val_accuracy"] is None
    assert run["x"] == [None]
    assert run["folder"] == tmp_path
    json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_result_that_cannot_be_written_keeps_the_old_one(tmp_path):
    write_result(tmp_path, RESULT)
    with pytest.raises(TypeError):
        write_result(tmp_path, RESULT | {"x": object()})
    assert read_run(tmp_path)["best_val_accuracy"] == 0.3
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_an_unfinished_run_tells_what_it_can(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert read_run(tmp_path)["epochs_done"] == 0
    (tmp_path / "metrics.csv").write_text(METRICS)
    run = read_run(tmp_path)
    expected = {"status": "unfinished", "model": "bagnet17", "optimizer": "adam", "pretrained": True, "epochs": 15}
    expected |= {"seed": 3, "epochs_done": 2, "best_val_accuracy": 0.11, "error": None}
    assert {key: run[key] for key in expected} == expected


def test_the_best_epoch_of_an_unfinished_run_is_that_of_its_monitor(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG + "monitor: val_balanced_accuracy\n")
    lines = ["epoch,step,val_accuracy,val_balanced_accuracy", "1,10,0.3,0.2", "2,20,0.25,0.24", "3,30,0.4,nan"]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    assert read_run(tmp_path)["best_val_accuracy"] == 0.25


def test_the_best_epoch_by_a_loss_is_that_of_the_lowest(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG + "monitor: val_loss\n")
    lines = ["epoch,step,val_accuracy,val_loss", "1,10,0.3,2.0", "2,20,0.25,1.5", "3,30,0.4,nan"]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    assert read_run(tmp_path)["best_val_accuracy"] == 0.25


def test_an_unfinished_run_has_the_names_that_its_result_will_have(tmp_path):
    config = composed("model._target_=mynet.SmallNet")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    asked, run = describe(config, []), read_run(tmp_path)
    assert asked["model"] == "SmallNet"
    timm = describe(composed("model._target_=timm.create_model", "+model.model_name=vit_tiny.v1"), [])
    assert timm["model"] == "vit_tiny.v1"
    for name in ("model", "optimizer", "pretrained", "epochs", "seed"):
        assert run[name] == asked[name]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(RESULT)[:40], "cut or damaged"),
        ("", "cut or damaged"),
        ("[1, 2]", "not a result"),
        ("{}", "not a result"),
        (json.dumps(RESULT | {"format": 2}), "format 2"),
        (json.dumps(RESULT | {"best_val_accuracy": {"top1": 0.4}}), "best_val_accuracy"),
        (json.dumps(RESULT | {"overrides": [1]}), "overrides"),
        (json.dumps(RESULT | {"overrides": 1}), "overrides"),
        (json.dumps(RESULT | {"devices": "two"}), "devices"),
        (json.dumps(RESULT | {"train_seconds": 10**400}), "train_seconds"),
        (json.dumps(RESULT | {"val_f1": 10**400}), "val_f1"),
        ("[" * 200_000, "cut or damaged"),
    ],
)
def test_an_unreadable_result_is_a_line_and_not_an_exception(tmp_path, text, said):
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "result.json").write_text(text)
    run = read_run(tmp_path)
    assert run["status"] == "unreadable"
    assert said in run["error"]
    assert run["model"] == "bagnet17"


def test_damaged_config_and_binary_rubbish_do_not_raise(tmp_path):
    for name in ("config.yaml", "metrics.csv", "result.json"):
        (tmp_path / name).write_bytes(b"\x80\0: [{\xff,\n")
    run = read_run(tmp_path)
    assert (run["status"], run["model"], run["epochs_done"]) == ("unreadable", None, 0)
    (tmp_path / "result.json").unlink()
    (tmp_path / "config.yaml").write_text("model: bagnet9\noptim: [1]\n")
    assert read_run(tmp_path)["model"] is None


def test_metrics_keep_the_last_word_on_an_epoch_and_drop_a_cut_line(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS + "2,20,3.5,0.12,3.0\n3,30,,0.2,3.0\n4,40,3.1")
    rows = read_metrics(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[1] == {"epoch": 2, "step": 20, "train_loss": 3.5, "val_accuracy": 0.12, "seconds": 3.0}
    assert rows[2]["train_loss"] is None
    assert read_metrics(tmp_path / "nowhere") == []
    odd = ["inf,10,3,0.1,3", "3,nan,3,0.1,3", "3,inf,3,0.1,3", f"3,10,{'1' * 200_000},0.1,3"]
    (tmp_path / "metrics.csv").write_text(METRICS + "\n".join(odd))
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_number_too_large_for_a_float_is_none(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT | {"train_seconds": "X"}).replace('"X"', "1e400"))
    assert read_run(tmp_path)["train_seconds"] is None


def test_runs_are_found_at_any_depth_but_not_inside_each_other(tmp_path):
    for name in ("b", "a", "seeds/c", ".hidden", "wandb/run-1/files", "a/logs/inner"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(CONFIG)
    (tmp_path / "empty").mkdir()
    assert [run["folder"].relative_to(tmp_path).as_posix() for run in read_runs(tmp_path)] == ["a", "b", "seeds/c"]
    assert [run["folder"] for run in read_runs(tmp_path / "a")] == [tmp_path / "a"]
    assert read_runs(tmp_path / "empty") == read_runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("host", "age", "goes_on"),
    [
        (socket.gethostname(), 10, True),
        (socket.gethostname(), 9999, False),
        ("elsewhere", 10, True),
        ("elsewhere", 200, True),  # a sign of life is given every minute, and some may be late
        ("elsewhere", 9999, False),
    ],
)
def test_a_run_that_goes_on_is_told_from_one_that_was_stopped(tmp_path, host, age, goes_on):
    (tmp_path / "config.yaml").write_text(CONFIG)
    path = tmp_path / "progress.json"
    path.write_text(json.dumps({"epoch": 3, "pid": os.getpid(), "host": host}))
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    progress = read_run(tmp_path)["progress"]
    assert (progress is not None) == goes_on


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"host": "elsewhere"'])
def test_a_damaged_progress_is_none(tmp_path, text):
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "progress.json").write_text(text)
    assert read_run(tmp_path)["progress"] is None


def test_a_process_that_is_gone_trains_no_more(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "progress.json").write_text(json.dumps({"pid": gone.pid, "host": socket.gethostname()}))
    assert read_run(tmp_path)["progress"] is None


def test_jobs_of_several_commands_are_remembered_and_damage_is_not_fatal(tmp_path):
    assert read_jobs(tmp_path) == {}
    note_jobs(tmp_path / "sweep", {"a": ["seed=0"], "b": ["seed=1"]})
    note_jobs(tmp_path / "sweep", {"b": ["seed=1", "fresh=true"], "c": []})
    assert read_jobs(tmp_path / "sweep") == {"a": ["seed=0"], "b": ["seed=1", "fresh=true"], "c": []}
    (tmp_path / "sweep/sweep.json").write_text('{"jobs": {"a"')
    assert read_jobs(tmp_path / "sweep") == {}
