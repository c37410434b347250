"""Where else than in metrics.csv a run is logged: the choices of conf/logger/."""

import os
from pathlib import Path

from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from requests.utils import get_netrc_auth

from bagnet_lightning.errors import UserError


class FinishedWandbLogger(WandbLogger):
    """Ends its run with the training, however that ends, so that the next run of a sweep begins one of its own."""

    def finalize(self, status: str) -> None:
        super().finalize(status)
        self.experiment.finish(exit_code=0 if status == "success" else 1)


def wandb_logger(project: str, folder: Path, composed: dict, run_id: str) -> WandbLogger:
    """A Weights & Biases run, grouped by sweep; the same `run_id` goes on where an earlier process stopped.

    Online where a key is configured (WANDB_API_KEY or `wandb login`) unless WANDB_MODE says otherwise, else offline
    under `folder`; it never asks.
    """
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    has_key = "WANDB_API_KEY" in os.environ or get_netrc_auth(server) is not None
    mode = os.environ.get("WANDB_MODE") or ("online" if has_key else "offline")
    return FinishedWandbLogger(
        project=project,
        name=folder.name,
        save_dir=folder,
        id=run_id,
        mode=mode,
        group=composed["sweep"],
        config=composed,
        resume="allow",
    )


def tensorboard_logger(folder: Path, composed: dict, run_id: str) -> TensorBoardLogger:
    """TensorBoard files in `folder`/tensorboard."""
    try:
        return TensorBoardLogger(folder, name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise UserError("logger=tensorboard needs the package: pip install 'bagnet-lightning[tensorboard]'") from error
