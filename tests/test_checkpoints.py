"""Checkpoints as training writes them; behind its back, where a CPU's tensors are taken for those of a GPU."""

import os
import resource
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, PowerCut, composed
from pytorch_lightning.strategies import SingleDeviceStrategy

from bagnet_lightning.errors import UserError
from bagnet_lightning.training import checkpoints
from bagnet_lightning.training.checkpoints import BestCheckpoint, CheckpointWriter, LastCheckpoint
from bagnet_lightning.training.fit import fit


@pytest.fixture
def last(tmp_path):
    """A whole last.ckpt, {"step": 1}, in a folder of its own."""
    CheckpointWriter().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def refused(path, words):
    """Saving to `path` is an error that says `words`, and leaves the old file and nothing else."""
    with pytest.raises(UserError, match=words):
        CheckpointWriter().save_checkpoint({"step": torch.zeros(100_000)}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_disk_that_takes_only_a_part_keeps_the_old_checkpoint(last):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # bytes; more is an error, like a full disk
    try:
        refused(last, r"last\.ckpt cannot be written \(File too large\); the one before it is whole")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fails_or_holds_something_else_keeps_the_old_checkpoint(last, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    refused(last, "No space left on device")
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.pwrite(descriptor, b"wrong", 200_000))
    refused(last, "does not read back as it was written")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); there is none before it"):
        CheckpointWriter().save_checkpoint({}, tmp_path / "file/last.ckpt")


def test_what_a_killed_process_had_half_written_is_removed_by_the_next(last):
    last.with_name(".last.ckpt.12345").write_bytes(b"half")
    CheckpointWriter().save_checkpoint({"step": 2}, last)
    assert os.listdir(last.parent) == ["last.ckpt"]


def test_the_last_checkpoint_is_written_once_in_the_minutes_that_were_asked_for(tmp_path, monkeypatch):
    saved, clock = [], SimpleNamespace(seconds=100)
    monkeypatch.setattr("bagnet_lightning.training.checkpoints.time", SimpleNamespace(monotonic=lambda: clock.seconds))
    trainer = SimpleNamespace(
        accumulate_grad_batches=1,
        is_last_batch=False,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda late, all: late),
        save_checkpoint=lambda path: saved.append((path, clock.seconds)),
    )
    callback = LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=None, every_n_minutes=10)
    callback.on_train_start(trainer, None)
    for clock.seconds in range(100, 1400):
        callback.on_train_batch_end(trainer, None, None, None, 0)
    assert saved == [(tmp_path / "last.ckpt", 700), (tmp_path / "last.ckpt", 1300)]


def test_the_last_checkpoint_is_written_once_in_the_steps_that_were_asked_for(tmp_path):
    saved = []
    trainer = SimpleNamespace(
        accumulate_grad_batches=2, is_last_batch=False, save_checkpoint=lambda path: saved.append(trainer.global_step)
    )
    callback = LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=3, every_n_minutes=None)
    callback.on_train_start(trainer, None)
    for batch in range(16):  # eight steps
        trainer.global_step = (batch + 1) // 2
        callback.on_train_batch_end(trainer, None, None, None, batch)
    assert saved == [3, 6]


def test_the_best_accuracy_is_remembered_where_the_folder_has_been_moved(tmp_path):
    before, after = (BestCheckpoint(tmp_path / name, "val_accuracy") for name in "ab")
    before.best_model_score, before.best_model_path = torch.tensor(0.5), str(tmp_path / "a/best.ckpt")
    before.best_k_models, before.kth_value = {before.best_model_path: before.best_model_score}, before.best_model_score
    before.kth_best_model_path = before.best_model_path
    after.load_state_dict(before.state_dict())
    assert not after.check_monitor_top_k(SimpleNamespace(strategy=SingleDeviceStrategy()), torch.tensor(0.4))
    assert after.best_model_path == str(tmp_path / "b/best.ckpt")
    assert list(after.best_k_models) == [after.best_model_path]


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(checkpoints, "_on_gpu", lambda value: isinstance(value, torch.Tensor))


@pytest.fixture
def held(monkeypatch):
    """Nothing is written until this event is set."""
    event, write = threading.Event(), CheckpointWriter.write
    monkeypatch.setattr(CheckpointWriter, "write", lambda *arguments: event.wait() and write(*arguments))
    yield event
    event.set()


def test_a_file_holds_what_was_true_when_it_was_asked_for(tmp_path, on_gpu, held):
    writer, weights, rows = CheckpointWriter(), torch.ones(3), [1]
    writer.save_checkpoint({"weights": weights, "state": {"rows": rows}}, tmp_path / "last.ckpt")
    weights.zero_()
    rows.append(2)
    assert not (tmp_path / "last.ckpt").exists()
    held.set()
    loaded = writer.load_checkpoint(tmp_path / "last.ckpt")  # waits
    assert torch.equal(loaded["weights"], torch.ones(3))
    assert loaded["state"] == {"rows": [1]}
    writer.teardown()


def test_the_last_of_several_stays(tmp_path, on_gpu):
    writer = CheckpointWriter()
    for step in range(6):
        writer.save_checkpoint({"step": torch.tensor(step)}, tmp_path / "last.ckpt")
        assert len(writer.writing) <= 2
    writer.teardown()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"step": torch.tensor(5)}


def test_a_disk_that_is_full_is_told_by_the_next_call(tmp_path, on_gpu):
    (tmp_path / "file").touch()
    writer, lost = CheckpointWriter(), tmp_path / "file/last.ckpt"
    writer.save_checkpoint({"step": torch.tensor(1)}, lost)
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        writer.wait()
    writer.save_checkpoint({"step": torch.tensor(2)}, lost)
    with pytest.raises(UserError, match="cannot be written"):
        writer.teardown()
    assert writer.thread is None


def test_on_a_cpu_nothing_is_copied_and_all_is_written_at_once(tmp_path):
    writer = CheckpointWriter()
    writer.save_checkpoint({"step": torch.tensor(1)}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").exists()
    assert writer.thread is None
    assert writer.seconds > 0


def test_a_run_leaves_the_same_files_and_goes_on_from_them(tmp_path, on_gpu, monkeypatch):
    overrides = [*SMALL, "optim=adam", "checkpoint.every_n_steps=1"]
    fit(composed(*overrides), tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", stopping_at(5, torch.optim.Adam.step))
        with pytest.raises(PowerCut):
            fit(composed(*overrides), tmp_path / "broken")
    fit(composed(*overrides), tmp_path / "broken")
    monkeypatch.undo()
    fit(composed(*overrides), tmp_path / "at_once")
    for name in ("last.ckpt", "best.ckpt"):
        expected = torch.load(tmp_path / "at_once" / name, weights_only=True)["state_dict"]
        for folder in ("unbroken", "broken"):
            written = torch.load(tmp_path / folder / name, weights_only=True)["state_dict"]
            assert all(torch.equal(written[key], expected[key]) for key in expected), (folder, name)


def stopping_at(call, step):
    calls = iter(range(1, call + 1))

    def stopped(self, *arguments, **named):
        if next(calls) == call:
            raise PowerCut
        return step(self, *arguments, **named)

    return stopped
