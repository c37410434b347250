"""Loggers of a run besides metrics.csv: the base class of all choices of conf/logger/, and TensorBoard."""

from pathlib import Path

from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from bagnet_lightning.errors import UserError


class RunLogger(Logger):
    """A Lightning logger that may also add callbacks to the training, and logs its result.

    Made by `instantiate(config.logger)(folder=..., config=..., requested=...)`: the run's folder, its whole
    configuration, and the dict that results.describe makes from it.
    """

    callbacks: tuple[Callback, ...] = ()

    def close(self, result: dict) -> None:
        """Logs `result`, the content of result.json, however the run ended. Nothing is logged after it."""


class TensorBoard(TensorBoardLogger, RunLogger):
    """TensorBoard files in `folder`/tensorboard; the result is under HPARAMS."""

    def __init__(self, folder: Path, config: dict, requested: dict):
        try:
            super().__init__(folder, name="tensorboard", version="", default_hp_metric=False)
        except ModuleNotFoundError as error:
            raise UserError(
                "logger=tensorboard needs the package: pip install 'bagnet-lightning[tensorboard]'"
            ) from error

    def close(self, result: dict) -> None:
        metrics = {key: value for key, value in result.items() if key.endswith("accuracy")}
        self.log_hyperparams({key: result[key] for key in ("model", "optimizer", "epochs", "seed")}, metrics)
        self.experiment.close()
