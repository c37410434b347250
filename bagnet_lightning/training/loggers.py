"""Loggers of a run besides metrics.csv: the base class of all choices of conf/logger/, TensorBoard, and the user's."""

from pathlib import Path

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from bagnet_lightning.config import plain
from bagnet_lightning.errors import UserError


class RunLogger(Logger):
    """A Lightning logger that may also add callbacks to the training, and logs its result.

    Made by `instantiate(config.logger)(folder=..., config=..., requested=...)`: the run's folder, its whole
    configuration, and the dict that results.describe makes from it.
    """

    callbacks: tuple[Callback, ...] = ()

    def close(self, result: dict) -> None:
        """Logs `result`, the content of result.json, however the run ended. Nothing is logged after it."""


def make_logger(config: DictConfig, folder: Path, requested: dict) -> Logger | None:
    """Returns the logger of a run's configuration; of Lightning's own, made of its keys, gets the settings at once."""
    if not config.logger:
        return None
    if issubclass(get_class(config.logger._target_), RunLogger):
        make = instantiate(config.logger, _partial_=True)
        return make(folder=folder, config=plain(config), requested=requested)
    logger = instantiate(config.logger, _convert_="all")
    logger.log_hyperparams(plain(config))
    return logger


def close_logger(logger: Logger, result: dict) -> None:
    """Logs `result`, the content of result.json, and ends the logger."""
    if isinstance(logger, RunLogger):
        logger.close(result)
        return
    measured = {name: value for name, value in result.items() if name.startswith(("best_", "final_", "val_"))}
    logger.log_metrics({name: value for name, value in measured.items() if value is not None})
    logger.finalize("success" if result["status"] == "finished" else "failed")


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
