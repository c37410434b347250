import csv

import pytest
from conftest import SMALL, composed
from hydra.utils import instantiate

from bagnet_lightning.training.fit import fit
from bagnet_lightning.training.loggers import RunLogger
from bagnet_lightning.training.run import run


class Unreachable(RunLogger):
    """Its server is gone when the run has ended."""

    name = version = ""

    def __init__(self, **options):
        super().__init__()

    def log_hyperparams(self, *args, **options):
        pass

    log_metrics = log_hyperparams

    def close(self, result):
        raise ConnectionError("the server is gone")


ASKED = {"model": "bagnet9", "optimizer": "sgd", "epochs": 1, "seed": 0}


def test_tensorboard_writes_curves_and_result_into_the_runs_folder(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = composed(*SMALL, "logger=tensorboard", "trainer.max_epochs=1")
    logger = instantiate(config.logger, _partial_=True)(folder=tmp_path, config={}, requested=ASKED)
    result = {**ASKED, **fit(config, tmp_path, logger), "status": "finished"}
    logger.close(result)
    written = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert written.Scalars("val_accuracy")[0].value == pytest.approx(result["final_val_accuracy"])
    assert written.Scalars("best_val_accuracy")[0].value == pytest.approx(result["best_val_accuracy"])


def test_a_logger_of_lightnings_needs_no_more_than_its_own_keys(tmp_path):
    lightnings = ["+logger._target_=pytorch_lightning.loggers.CSVLogger", f"+logger.save_dir={tmp_path}/curves"]
    config = composed(*SMALL, "trainer.max_epochs=2", *lightnings)
    result = run(config, tmp_path, ASKED, fit)
    (written,) = tmp_path.glob("curves/*/*/metrics.csv")
    logged = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(written.open())]
    assert [row["val_accuracy"] for row in logged if "train_loss" in row][-1] == result["final_val_accuracy"]
    assert logged[-1]["best_val_accuracy"] == result["best_val_accuracy"]
    assert "max_epochs: 2" in written.with_name("hparams.yaml").read_text()


def test_a_logger_that_fails_at_the_end_does_not_take_the_result_with_it(tmp_path, caplog):
    config = composed(*SMALL, "trainer.max_epochs=1", "+logger._target_=test_loggers.Unreachable")
    assert run(config, tmp_path, ASKED, fit)["status"] == "finished"
    assert (tmp_path / "result.json").exists()
    assert "ConnectionError: the server is gone" in caplog.text
