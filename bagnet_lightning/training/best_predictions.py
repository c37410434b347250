"""Keeps the network's predictions for the validation images at its best epoch in predictions.npz."""

from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from bagnet_lightning.errors import UserError
from bagnet_lightning.predictions import write_predictions
from bagnet_lightning.results import merit


class BestPredictions(Callback):
    """Writes predictions.npz from what validation_step returns, in every epoch that is the best so far by `monitor`."""

    def __init__(self, folder: Path, monitor: str):
        self.folder, self.monitor = folder, monitor
        self.best: float | None = None

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.predictions: list[tuple[Tensor, Tensor]] = []  # indices and predicted classes

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, outputs: dict, batch, *args) -> None:
        self.predictions.append((batch[2], outputs["predicted"]))

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            raise UserError(f"monitor={self.monitor}: no callback has logged it by the end of a validation")
        value = merit(self.monitor, trainer.callback_metrics[self.monitor].item())
        if trainer.world_size > 1:
            values = [None] * trainer.world_size
            torch.distributed.all_gather_object(values, value)
            if len({*values}) > 1:  # each rank would choose its own epoch
                raise UserError(
                    f"monitor={self.monitor}: the ranks have logged different values; log it with sync_dist"
                )
        if self.best is not None and value <= self.best:
            return
        self.best = value
        indices, predicted = (torch.cat(parts).cpu().numpy() for parts in zip(*self.predictions, strict=True))
        if trainer.world_size > 1:
            shares = [None] * trainer.world_size
            torch.distributed.all_gather_object(shares, (indices, predicted))
            indices, predicted = (np.concatenate(parts) for parts in zip(*shares, strict=True))
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule
        indices, first = np.unique(indices, return_index=True)  # in order; fewer than all with limit_val_batches
        write_predictions(
            self.folder,
            data.class_names,
            data.val_images.labels.numpy()[indices],
            predicted[first],
            lambda places: data.val_images[torch.from_numpy(indices[places])][0].numpy(),
        )

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]
