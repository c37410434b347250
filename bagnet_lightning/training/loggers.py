"""Where else than in metrics.csv a run is logged: what the choices of conf/logger/ have in common, and TensorBoard."""

from pathlib import Path

from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from bagnet_lightning.errors import UserError


class RunLogger(Logger):
    """A Lightning logger that may also watch the training, and is told its result.

    Made by `instantiate(config.logger)(folder=..., composed=..., asked=...)`: the run's folder, its whole
    configuration, and what results.describe says of it.
    """

    callbacks: tuple[Callback, ...] = ()

    def close(self, result: dict) -> None:
        """Logs `result`, what result.json holds, however the run ended. Nothing is logged after it."""


class TensorBoard(TensorBoardLogger, RunLogger):
    """TensorBoard files in `folder`/tensorboard; the result is under HPARAMS."""

    def __init__(self, folder: Path, composed: dict, asked: dict):
        try:
            super().__init__(folder, name="tensorboard", version="", default_hp_metric=False)
        except ModuleNotFoundError as error:
            raise UserError(
                "logger=tensorboard needs the package: pip install 'bagnet-lightning[tensorboard]'"
            ) from error

    def close(self, result: dict) -> None:
        figures = {key: value for key, value in result.items() if key.endswith("accuracy")}
        self.log_hyperparams({key: result[key] for key in ("model", "optimizer", "epochs", "seed")}, figures)
        self.experiment.close()
