import os

import pytest
import torch

from bagnet_lightning.checkpoint import AtomicCheckpointIO, load_trained
from bagnet_lightning.errors import UserError
from bagnet_lightning.models.bagnet import bagnet9


def about(classes=3):
    return {
        "config": {"model": {"_target_": "bagnet_lightning.models.bagnet.bagnet9", "width": 0.25, "pretrained": True}},
        "classes": [f"n{i}" for i in range(classes)],
        "class_names": [f"name {i}" for i in range(classes)],
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
    }


def checkpoint(network):
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    return {"state_dict": {**weights, "val_accuracy.tp": torch.zeros(1)}, "bagnet_lightning": about()}


def test_a_network_comes_back_as_it_was(tmp_path):
    network = bagnet9(3, width=0.25).eval()
    AtomicCheckpointIO().save_checkpoint(checkpoint(network), tmp_path / "best.ckpt")
    trained = load_trained(tmp_path / "best.ckpt")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(trained.network(images), network(images))
    assert not trained.network.training
    assert trained.class_names == ["name 0", "name 1", "name 2"]


def test_a_fault_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_an_error_and_not_a_short_file(tmp_path, monkeypatch):
    from pathlib import Path

    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    monkeypatch.setattr(Path, "with_name", lambda self, name: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok: None)
    with pytest.raises((OSError, RuntimeError)):
        AtomicCheckpointIO().save_checkpoint({"step": torch.zeros(100_000)}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


class Payload:
    def __reduce__(self):
        return open, ("payload-ran", "w")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**checkpoint(bagnet9(3, width=0.25)), "callbacks": Payload()}, "evil.ckpt")
    with pytest.raises(UserError, match=r"evil\.ckpt is refused"):
        load_trained("evil.ckpt")
    with pytest.raises(UserError, match="refused"):
        AtomicCheckpointIO().load_checkpoint("evil.ckpt", weights_only=False)
    assert not (tmp_path / "payload-ran").exists()


def test_other_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "text").write_text("not a checkpoint")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign")
    torch.save([1, 2], tmp_path / "list")
    torch.save(checkpoint(bagnet9(3, width=0.25)), tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:100_000])
    for name, reason in {
        "none": "does not exist",
        "text": "",
        "foreign": "not of a",
        "list": "not of a",
        "cut": "",
    }.items():
        with pytest.raises(UserError, match=f"{name} .*{reason}") as caught:
            load_trained(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_weights_of_another_size_are_refused(tmp_path):
    torch.save(checkpoint(bagnet9(5, width=0.25)), tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt"):
        load_trained(tmp_path / "x.ckpt")
