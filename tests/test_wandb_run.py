import csv
import json
import os
import signal
import subprocess
import time
from contextlib import suppress

import numpy as np
import pytest
import wandb
from conftest import SMALL, composed
from hydra.utils import instantiate
from wandb_records import history, records, summary

from bagnet_lightning.config import plain
from bagnet_lightning.training.fit import fit
from bagnet_lightning.training.wandb_run import WandbRun, tags

ASKED = {
    "row": 3,
    "model": "bagnet9",
    "optimizer": "sgd",
    "pretrained": False,
    "seed": 0,
    "config_digest": "abc123",
}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SERVICE", "")  # so that it is put back: W&B tells other processes of its own there
    monkeypatch.delenv("WANDB_SERVICE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))  # artifacts wait there for `wandb sync`


def logger_of(config, folder) -> WandbRun:
    return instantiate(config.logger, _partial_=True)(folder=folder, config=plain(config), requested=ASKED)


def test_an_offline_run_holds_all_that_a_team_looks_at(tmp_path):
    config = composed(*SMALL, "logger=wandb", "logger.evidence_every_n_epochs=1", "sweep=mine")
    folder = tmp_path / "run"
    logger = logger_of(config, folder)
    result = {**ASKED, **fit(config, folder, logger), "status": "finished"}
    logger.close(result)
    assert wandb.run is None

    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    found = records(path)
    (run,) = [record.run for record in found if record.HasField("run")]
    assert (run.run_group, run.job_type, run.display_name) == ("mine", "train", "run")
    assert set(run.tags) == {"row 3", "bagnet9", "sgd"}
    logged = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert logged["model"] == plain(config)["model"]
    assert logged["choices"]["optimizer"] == "sgd"

    rows = history(found)
    with (folder / "metrics.csv").open() as file:
        measured = list(csv.DictReader(file))
    for name in ("train_loss", "val_accuracy"):
        curve = {row["epoch"]: row[name] for row in rows if name in row}
        assert curve == {int(row["epoch"]): pytest.approx(float(row[name])) for row in measured}
    (step_metric,) = {record.metric.step_metric for record in found if record.metric.glob_name == "*"}
    assert step_metric == "epoch"
    assert [row["epoch"] for row in rows if "evidence._type" in row or "evidence" in row] == [1, 2]
    pictures = list(path.parent.glob("files/media/images/evidence_*.png"))
    assert len(pictures) == 12

    told = summary(found)
    assert {key: told[key] for key in ("status", "best_val_accuracy", "device")} == {
        key: result[key] for key in ("status", "best_val_accuracy", "device")
    }
    tables = {p.name.split("_")[0] for p in path.parent.glob("files/media/table/*.json")}
    assert tables == {"confused", "per"}
    (per_class,) = path.parent.glob("files/media/table/per_class*.json")
    counts = np.array([row[1:3] for row in json.loads(per_class.read_text())["data"]])
    assert counts.sum(0).tolist() == [12, round(12 * result["best_val_accuracy"])]
    (artifact,) = [
        record.artifact for record in found if record.HasField("artifact") and record.artifact.type == "model"
    ]
    assert {"best", "mine"} <= set(artifact.aliases)
    assert [entry.path for entry in artifact.manifest.contents] == ["best.ckpt"]
    assert any(record.HasField("stats") for record in found)  # the machine's own metrics


def test_a_crashed_run_goes_on_under_its_id_and_only_its_new_epochs_are_logged_again(tmp_path):
    config = composed(*SMALL, "logger=wandb", "logger.checkpoint=false", "logger.evidence_every_n_epochs=null")
    folder = tmp_path / "run"
    first = logger_of(config, folder)
    shorter = composed(*SMALL, "trainer.max_epochs=1")
    fit(shorter, folder, first)
    first.close({**ASKED, "status": "failed", "error": "power cut"})
    second = logger_of(config, folder)
    second.close({**ASKED, **fit(config, folder, second), "status": "finished"})
    paths = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    assert {path.name for path in paths} == {f"run-{(folder / 'wandb_id').read_text()}.wandb"}
    assert len(paths) == 2
    epochs = [[row["epoch"] for row in history(records(path)) if "val_accuracy" in row] for path in paths]
    assert epochs == [[1], [2]]
    assert summary(records(paths[0]))["error"] == "power cut"
    exits = [[record.exit.exit_code for record in records(path) if record.HasField("exit")] for path in paths]
    assert exits == [[1], [0]]


def test_a_run_that_fails_before_anything_is_logged_leaves_no_wandb_run(tmp_path):
    logger = logger_of(composed(*SMALL, "logger=wandb"), tmp_path)
    logger.close({**ASKED, "status": "failed", "error": "no data"})
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize(
    ("key", "mode", "expected"), [(None, None, "offline"), ("k" * 40, None, "online"), ("k" * 40, "offline", "offline")]
)
def test_online_exactly_where_a_key_is_configured(monkeypatch, tmp_path, key, mode, expected):
    for name, value in {"WANDB_API_KEY": key, "WANDB_MODE": mode}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    assert logger_of(composed(*SMALL, "logger=wandb"), tmp_path).settings["mode"] == expected


def test_where_wandb_cannot_be_reached_the_run_is_kept_offline(monkeypatch, tmp_path, capsys):
    def unreachable(mode, **settings):
        if mode == "online":
            raise wandb.errors.CommError("Run initialization has timed out")
        return real(mode=mode, **settings)

    real = wandb.init
    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    logger = logger_of(composed(*SMALL, "logger=wandb", "sweep=mine"), tmp_path)
    logger.log_graph()
    logger.log({"val_accuracy": 0.5, "epoch": 1})
    logger.close({**ASKED, "status": "failed", "error": "no network"})
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert history(records(path))[0]["val_accuracy"] == 0.5
    assert "kept offline" in capsys.readouterr().err


@pytest.mark.parametrize("noticed", ["in training", "at the end"])
def test_a_run_goes_on_without_wandb_whose_process_was_killed_and_the_next_one_has_it(
    monkeypatch, tmp_path, caplog, noticed
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    first, second = (logger_of(composed(*SMALL, "logger=wandb"), folder) for folder in folders)
    first.log_graph()
    children = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"], capture_output=True, text=True)
    for child in children.stdout.split():
        os.kill(int(child), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while noticed == "in training" and first.run and time.monotonic() < deadline:  # soon, not at once
        first.log({"val_accuracy": 0.5, "epoch": 1})
    with suppress(Exception):  # a warning in a run
        first.close({**ASKED, "status": "finished"})
    assert caplog.text.count("W&B has failed, and the run goes on without it") == (noticed == "in training")
    second.log_graph()
    second.log({"val_accuracy": 0.25, "epoch": 1})
    second.close({**ASKED, "status": "finished"})
    (path,) = (tmp_path / "second/wandb").glob("offline-run-*/run-*.wandb")
    assert history(records(path))[0]["val_accuracy"] == 0.25


def test_a_run_whose_end_fails_is_closed_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = logger_of(composed(*SMALL, "logger=wandb"), tmp_path)
    logger.log_graph()
    (tmp_path / "predictions.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"predictions\.npz"):
        logger.close({**ASKED, "status": "failed", "error": "x"})
    assert wandb.run is None


def test_tags_name_row_model_optimizer_and_pretrained():
    assert tags(ASKED) == ["row 3", "bagnet9", "sgd"]
    assert tags({**ASKED, "row": None, "pretrained": True}) == ["bagnet9", "sgd", "pretrained"]


def test_what_a_callback_of_lightnings_logs_between_epochs_is_kept(tmp_path):
    config = composed(*SMALL, "logger=wandb", "trainer.max_epochs=1")
    monitor = {"_target_": "pytorch_lightning.callbacks.LearningRateMonitor", "logging_interval": "epoch"}
    config.callbacks = {"rates": monitor}
    logger = logger_of(config, tmp_path)
    fit(config, tmp_path, logger)
    logger.close({**ASKED, "status": "finished"})
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert any(0.001 in row.values() for row in history(records(path)))
