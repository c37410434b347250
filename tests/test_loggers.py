import pytest
from conftest import SMALL, composed

from bagnet_lightning.fit import fit
from bagnet_lightning.loggers import wandb_logger


def test_wandb_without_a_key_is_offline_grouped_by_sweep_and_finished(tmp_path, monkeypatch):
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(composed(*SMALL, "logger=wandb", "trainer.max_epochs=1", "sweep=mine"), tmp_path / "run", "abc123")
    assert wandb.run is None
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-abc123.wandb")
    content = record.read_bytes()
    assert b"mine" in content
    assert b"val_accuracy" in content
    assert not list((tmp_path / "run" / "wandb").glob("run-*"))


def test_wandb_is_finished_when_the_run_fails(tmp_path, monkeypatch):
    import wandb

    from bagnet_lightning.classifier import Classifier

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def fail(self, batch):
        raise ArithmeticError("in training")

    monkeypatch.setattr(Classifier, "training_step", fail)
    with pytest.raises(ArithmeticError):
        fit(composed(*SMALL, "logger=wandb"), tmp_path, "id")
    assert wandb.run is None


@pytest.mark.parametrize(
    ("key", "mode", "expected"), [(None, None, "offline"), ("k" * 40, None, "online"), ("k" * 40, "offline", "offline")]
)
def test_online_exactly_where_a_key_is_configured(monkeypatch, tmp_path, key, mode, expected):
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name, value in {"WANDB_API_KEY": key, "WANDB_MODE": mode}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    logger = wandb_logger("p", tmp_path, {"sweep": "s"}, "id")
    assert logger._wandb_init["mode"] == expected


def test_tensorboard_writes_into_the_runs_folder(tmp_path):
    pytest.importorskip("tensorboard")
    fit(composed(*SMALL, "logger=tensorboard", "trainer.max_epochs=1"), tmp_path, "id")
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
