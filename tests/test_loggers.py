import pytest
from conftest import SMALL, composed
from hydra.utils import instantiate

from bagnet_lightning.training.fit import fit

ASKED = {"model": "bagnet9", "optimizer": "sgd", "epochs": 1, "seed": 0}


def test_tensorboard_writes_curves_and_result_into_the_runs_folder(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = composed(*SMALL, "logger=tensorboard", "trainer.max_epochs=1")
    logger = instantiate(config.logger, _partial_=True)(folder=tmp_path, composed={}, asked=ASKED)
    result = {**ASKED, **fit(config, tmp_path, logger), "status": "finished"}
    logger.close(result)
    written = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert written.Scalars("val_accuracy")[0].value == pytest.approx(result["final_val_accuracy"])
    assert written.Scalars("best_val_accuracy")[0].value == pytest.approx(result["best_val_accuracy"])
