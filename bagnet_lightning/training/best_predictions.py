"""Keeps the network's predictions for the validation images at its best epoch in predictions.npz."""

from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from bagnet_lightning.predictions import write_predictions


class BestPredictions(Callback):
    """Writes predictions.npz in every epoch with a new highest `monitor`, from the outputs of validation_step."""

    def __init__(self, folder: Path, monitor: str):
        self.folder, self.monitor = folder, monitor
        self.best = -1.0

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.predictions: list[tuple[Tensor, Tensor]] = []  # indices and predicted classes

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Tensor, batch, *args) -> None:
        self.predictions.append((batch[2], outputs))

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        value = trainer.callback_metrics[self.monitor].item()
        if value <= self.best:
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
