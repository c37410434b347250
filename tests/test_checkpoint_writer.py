"""Checkpoints written behind training's back. On a CPU its tensors are taken for those of a GPU."""

import threading

import pytest
import torch
from conftest import SMALL, composed

from bagnet_lightning.checkpoint import AtomicCheckpointIO
from bagnet_lightning.errors import UserError
from bagnet_lightning.training import checkpoint_writer
from bagnet_lightning.training.checkpoint_writer import CheckpointWriter
from bagnet_lightning.training.fit import fit


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "_on_gpu", lambda value: isinstance(value, torch.Tensor))


@pytest.fixture
def held(monkeypatch):
    """Nothing is written until this event is set."""
    event, write = threading.Event(), AtomicCheckpointIO.write
    monkeypatch.setattr(AtomicCheckpointIO, "write", lambda *arguments: event.wait() and write(*arguments))
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
    writer, lost = CheckpointWriter(), tmp_path / "no folder" / "last.ckpt"
    writer.save_checkpoint({"step": torch.tensor(1)}, lost)
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
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
        with pytest.raises(SystemExit):
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
            raise SystemExit
        return step(self, *arguments, **named)

    return stopped
