"""A loss that is not finite ends the run before it can spoil the weights."""

from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from bagnet_lightning.data.module import Batch
from bagnet_lightning.errors import Diverged


class StopOnDivergence(Callback):
    """Raises Diverged, before the backward pass, at the first step whose loss is not finite.

    last: the checkpoint that is good until then. Reading the loss waits for the device at every step.
    """

    def __init__(self, last: Path):
        self.last = last

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.indices = batch[2]

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            kept = f"{self.last} is from before" if self.last.exists() else "no checkpoint had been written"
            raise Diverged(
                f"the loss is {loss.item()} at step {trainer.global_step} (epoch {trainer.current_epoch + 1}, learning "
                f"rate {rate:g}, train images {self.indices.tolist()}); {kept}; try a smaller optim.lr"
            )
