import functools
import inspect
import os
import signal

import pytest
import torch
from conftest import SMALL, PowerCut, composed
from omegaconf import OmegaConf
from pytorch_lightning import Callback
from test_fit import progress, rows, weights
from torch import nn

from bagnet_lightning.errors import Interrupted
from bagnet_lightning.training.checkpoints import CheckpointWriter
from bagnet_lightning.training.classifier import Classifier
from bagnet_lightning.training.fit import fit
from bagnet_lightning.training.interrupts import StopOnSignal

OVERRIDES = [*SMALL, "optim=adam", "scheduler.step_size=1"]  # 2 epochs of 3 steps


def power_cut():
    raise PowerCut


def assert_equal_runs(unbroken, broken):
    expected, continued = weights(unbroken / "last.ckpt"), weights(broken / "last.ckpt")
    assert all(torch.equal(expected[key], continued[key]) for key in expected)
    for a, b in zip(rows(unbroken), rows(broken), strict=True):
        assert {**a, "seconds": None} == {**b, "seconds": None}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    fit(composed(*OVERRIDES), folder)
    return folder


def before(method, count, action):
    """`method`, with `action` done before its call number `count`."""
    calls = iter(range(count, -1, -1))

    @functools.wraps(inspect.unwrap(method))  # Lightning looks at the signature
    def interrupted(*args, **kwargs):
        if next(calls, None) == 0:
            action()
        return method(*args, **kwargs)

    return interrupted


MOMENTS = {  # what is called, which call of it, and the steps that are then done
    "the start": (StopOnSignal, "on_train_start", 0, 0),
    "a step": (Classifier, "training_step", 4, 5),
    "an epoch's last step": (Classifier, "training_step", 2, 3),
    "the run's last step": (Classifier, "training_step", 5, 6),
    "validation": (Classifier, "validation_step", 0, 3),
    "the last validation": (Classifier, "validation_step", 1, 6),
    "writing best.ckpt": (CheckpointWriter, "save_checkpoint", 0, 3),
    "writing last.ckpt": (CheckpointWriter, "save_checkpoint", 1, 3),
    "writing the run's last.ckpt": (CheckpointWriter, "save_checkpoint", 2, 6),  # the second epoch is no better
}


@pytest.mark.parametrize(
    ("signum", "moment"),
    [(signal.SIGINT, "a step"), (signal.SIGUSR1, "validation"), *((signal.SIGTERM, moment) for moment in MOMENTS)],
)
def test_a_signal_loses_nothing(tmp_path, monkeypatch, unbroken, signum, moment):
    owner, name, count, steps = MOMENTS[moment]
    handler = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, before(getattr(owner, name), count, lambda: signal.raise_signal(signum)))
        with pytest.raises(Interrupted) as stopped:
            fit(composed(*OVERRIDES), tmp_path)
    assert stopped.value.exit_code == 128 + signum
    assert signal.getsignal(signum) == handler
    assert progress(tmp_path)[1] == steps
    fit(composed(*OVERRIDES), tmp_path)
    assert_equal_runs(unbroken, tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "steps"),
    [
        (signal.SIGINT, signal.SIGINT, 3),  # of the epoch before: it stops at once and does not save
        (signal.SIGUSR1, signal.SIGTERM, 5),  # as at SLURM's time limit
    ],
)
def test_the_first_of_two_signals_is_the_exit_code_and_a_second_ctrl_c_stops_at_once(
    tmp_path, monkeypatch, first, second, steps
):
    def both():
        signal.raise_signal(first)
        signal.raise_signal(second)

    monkeypatch.setattr(Classifier, "training_step", before(Classifier.training_step, 4, both))
    with pytest.raises(Interrupted) as stopped:
        fit(composed(*OVERRIDES), tmp_path)
    assert stopped.value.exit_code == 128 + first
    assert progress(tmp_path)[1] == steps


def test_a_ctrl_c_before_the_first_step_ends_the_run_too(tmp_path, monkeypatch):
    def configured(self):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Classifier, "configure_optimizers", configured)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a power cut of another test leaves its run's handler
    with pytest.raises(Interrupted) as stopped:
        fit(composed(*OVERRIDES), tmp_path)
    assert stopped.value.exit_code == 130


def fit_with_a_break(config, folder, monkeypatch, owner, name, count):
    """Fits, with SIGTERM before call number `count` of the method, and again as if nothing had happened."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, before(getattr(owner, name), count, lambda: signal.raise_signal(signal.SIGTERM)))
        with pytest.raises(Interrupted):
            fit(config, folder)
    fit(config, folder)


class Dropping(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.AvgPool2d(3), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(num_classes))
        self(torch.zeros(1, 3, 33, 33))


@pytest.mark.parametrize("step", [1, 3])
def test_what_a_network_draws_goes_on_too(tmp_path, monkeypatch, step):
    config = composed(*OVERRIDES)
    config.model = OmegaConf.create({"_target_": f"{__name__}.Dropping"})
    fit(config, tmp_path / "unbroken")
    fit_with_a_break(config, tmp_path / "broken", monkeypatch, Classifier, "training_step", step)
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "broken")


class Logging(Callback):
    """Logs a mean over an epoch of training, and a value of validation."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        module.log("rate", float(trainer.global_step), on_step=False, on_epoch=True)

    def on_validation_epoch_end(self, trainer, module):
        module.log("val_step", float(trainer.global_step))


def test_what_callbacks_log_in_a_part_of_an_epoch_is_no_mean_of_it(tmp_path, monkeypatch):
    config = composed(*OVERRIDES, "trainer.max_epochs=3")
    config.callbacks = OmegaConf.create({"own": {"_target_": f"{__name__}.Logging"}})
    fit_with_a_break(config, tmp_path, monkeypatch, Classifier, "training_step", 4)
    assert [row["rate"] for row in rows(tmp_path)] == ["2.0", "", "8.0"]
    assert [row["val_step"] for row in rows(tmp_path)] == ["3.0", "6.0", "9.0"]


def test_a_run_that_was_stopped_early_stays_so(tmp_path, monkeypatch):
    config = composed(*SMALL, "trainer.max_epochs=4")
    early = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val_loss"}
    config.callbacks = OmegaConf.create({"early": early | {"patience": 1, "min_delta": 10}})
    fit(config, tmp_path / "unbroken")
    fit_with_a_break(config, tmp_path / "broken", monkeypatch, StopOnSignal, "on_train_end", 0)
    assert len(rows(tmp_path / "broken")) == 2
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "broken")


def test_a_signal_ends_a_run_whose_disk_is_full(tmp_path, monkeypatch, caplog):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    def full():
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(os, "fsync", no_space)

    monkeypatch.setattr(Classifier, "training_step", before(Classifier.training_step, 4, full))
    with pytest.raises(Interrupted) as stop:
        fit(composed(*OVERRIDES), tmp_path)
    assert stop.value.exit_code == 143
    assert "No space left" in caplog.text
    assert progress(tmp_path)[1] == 3


def test_a_run_that_broke_off_after_an_epochs_last_step_validates_before_it_goes_on(tmp_path, monkeypatch, unbroken):
    asked = composed(*OVERRIDES, "checkpoint.every_n_steps=1")

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "validation_step", before(Classifier.validation_step, 0, power_cut))
        with pytest.raises(PowerCut):
            fit(asked, tmp_path)
    assert progress(tmp_path)[1] == 3
    fit(asked, tmp_path)
    assert_equal_runs(unbroken, tmp_path)


def test_a_signal_waits_for_the_gradients_that_are_being_accumulated(tmp_path, monkeypatch):
    asked = composed(*OVERRIDES, "data.batch_size=6", "trainer.accumulate_grad_batches=2")
    fit(asked, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        stopping = before(Classifier.training_step, 2, lambda: signal.raise_signal(signal.SIGTERM))
        patch.setattr(Classifier, "training_step", stopping)
        with pytest.raises(Interrupted):
            fit(asked, tmp_path / "broken")
    assert progress(tmp_path / "broken") == (0, 2)
    fit(asked, tmp_path / "broken")
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "broken")


def test_no_checkpoint_is_of_half_accumulated_gradients(tmp_path, monkeypatch):
    asked = composed(*OVERRIDES, "data.batch_size=6", "trainer.accumulate_grad_batches=2", "checkpoint.every_n_steps=1")

    fit(asked, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", before(Classifier.training_step, 3, power_cut))
        with pytest.raises(PowerCut):
            fit(asked, tmp_path / "broken")
    fit(asked, tmp_path / "broken")
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "broken")


def test_the_last_checkpoint_is_written_by_minutes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(Classifier, "training_step", before(Classifier.training_step, 4, power_cut))
    with pytest.raises(PowerCut):
        fit(composed(*OVERRIDES, "checkpoint.every_n_minutes=1e-9"), tmp_path)
    assert progress(tmp_path) == (1, 4)


def killed_fit(overrides, folder):
    Classifier.training_step = before(Classifier.training_step, 8, lambda: os.kill(os.getpid(), signal.SIGKILL))
    fit(composed(*overrides), folder)


@pytest.mark.parametrize(("scheduler", "every_n_steps", "kept"), [("step", None, (0, 5)), ("onecycle", 1, (1, 8))])
def test_a_killed_and_continued_run_equals_an_unbroken_one(tmp_path, server, scheduler, every_n_steps, kept):
    overrides = [*SMALL, f"scheduler={scheduler}", "trainer.max_epochs=3", "optim=adam", "data.train_images=60"]
    overrides += ["scheduler.step_size=1"] if scheduler == "step" else []
    overrides += [f"checkpoint.every_n_steps={every_n_steps}"] if every_n_steps else []
    fit(composed(*overrides), tmp_path / "unbroken")
    broken = tmp_path / "broken"
    process = server.Process(target=killed_fit, args=(overrides, broken))
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    assert progress(broken) == kept
    fit(composed(*overrides), broken)
    assert_equal_runs(tmp_path / "unbroken", broken)
