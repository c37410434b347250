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


def test_a_logger_that_fails_at_the_end_does_not_take_the_result_with_it(tmp_path, caplog):
    config = composed(*SMALL, "trainer.max_epochs=1", "+logger._target_=test_loggers.Unreachable")
    assert run(config, tmp_path, ASKED, fit)["status"] == "finished"
    assert (tmp_path / "result.json").exists()
    assert "ConnectionError: the server is gone" in caplog.text
