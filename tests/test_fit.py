import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import SMALL, composed

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.classifier import Classifier
from bagnet_lightning.errors import Diverged, UserError
from bagnet_lightning.fit import fit


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_measurements_and_checkpoints(tmp_path):
    result = fit(composed(*SMALL), tmp_path, "id")
    epochs = rows(tmp_path)
    assert [row["epoch"] for row in epochs] == ["1", "2"]
    assert [row["step"] for row in epochs] == ["3", "6"]
    best = max(epochs, key=lambda row: float(row["val_accuracy"]))
    assert result["best_val_accuracy"] == float(best["val_accuracy"])
    assert result["best_epoch"] == int(best["epoch"])
    assert result["final_val_accuracy"] == float(epochs[-1]["val_accuracy"])
    assert result["train_images"] == 36
    assert result["images_per_second"] > 0
    trained = load_trained(tmp_path / "best.ckpt")
    assert not trained.network.training
    assert trained.config["model"]["width"] == 0.25
    assert len(trained.classes) == result["classes"]


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path):
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        fit(composed(*SMALL, f"seed={seed}"), tmp_path / name, "id")
    a, b, c = (weights(tmp_path / name / "last.ckpt") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["network.fc.weight"], c["network.fc.weight"])


FIT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from conftest import composed
from bagnet_lightning.errors import Interrupted
from bagnet_lightning.fit import fit
try:
    fit(composed(*{overrides!r}), Path({folder!r}), "id")
except Interrupted as stop:
    sys.exit(stop.exit_code)
"""


def broken_off(folder, overrides, signum, when) -> int:
    """Starts the run in a process of its own, sends the signal once `when(folder)`, and returns the exit code."""
    code = FIT.format(tests=os.path.dirname(__file__), overrides=overrides, folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while not when(folder):
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)
    process.send_signal(signum)
    return process.wait()


def progress(folder) -> tuple[int, int]:
    """(epoch, steps) of last.ckpt; (-1, 0) before it is there."""
    if not (folder / "last.ckpt").exists():
        return -1, 0
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    return checkpoint["epoch"], checkpoint["global_step"]


@pytest.mark.parametrize(
    ("signum", "scheduler", "every_n_steps"),
    [(signal.SIGKILL, "step", None), (signal.SIGKILL, "onecycle", 1), (signal.SIGTERM, "step", None)],
)
def test_a_stopped_and_continued_run_equals_an_unbroken_one(tmp_path, signum, scheduler, every_n_steps):
    overrides = [*SMALL, f"scheduler={scheduler}", "trainer.max_epochs=5", "optim=adam", "data.train_images=120"]
    overrides += ["scheduler.step_size=1"] if scheduler == "step" else []
    overrides += [f"checkpoint.every_n_steps={every_n_steps}"] if every_n_steps else []
    fit(composed(*overrides), tmp_path / "unbroken", "id")
    broken = tmp_path / "broken"
    started = (lambda folder: progress(folder)[1] >= 3) if every_n_steps else (lambda folder: progress(folder)[0] >= 0)
    code = broken_off(broken, overrides, signum, started)
    epoch, steps = progress(broken)
    assert epoch < 4, "it was stopped too late to show anything"
    if signum == signal.SIGTERM:
        assert code == 143
    if signum == signal.SIGTERM or every_n_steps:
        assert steps % 10, "it was to be stopped within an epoch"
    fit(composed(*overrides), broken, "id")
    expected, continued = weights(tmp_path / "unbroken/last.ckpt"), weights(broken / "last.ckpt")
    assert all(torch.equal(expected[key], continued[key]) for key in expected)
    of_validation = ("epoch", "step", "val_loss", "val_accuracy", "val_top5_accuracy", "learning_rate")
    for a, b in zip(rows(tmp_path / "unbroken"), rows(broken), strict=True):
        assert [a[column] for column in of_validation] == [b[column] for column in of_validation]


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    original = Classifier.training_step

    def poisoned(self, batch):
        return original(self, batch) * (float("nan") if self.trainer.global_step == 4 else 1)

    monkeypatch.setattr(Classifier, "training_step", poisoned)
    with pytest.raises(
        Diverged, match=r"is nan at step 4 \(epoch 2, learning rate 0.001, train images \[\d+(, \d+){11}\]"
    ):
        fit(composed(*SMALL), tmp_path, "id")
    assert progress(tmp_path) == (0, 3)
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "last.ckpt").values())


def test_out_of_memory_names_the_batch_size_and_the_ways_out(tmp_path, monkeypatch):
    def exhausted(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classifier, "training_step", exhausted)
    with pytest.raises(UserError, match=r"data\.batch_size=12; ask for data\.batch_size=6.*accumulate_grad_batches=2"):
        fit(composed(*SMALL), tmp_path, "id")
