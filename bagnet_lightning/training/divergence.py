"""A loss that is not finite ends the run, and no checkpoint is written from there on."""

from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from bagnet_lightning.data.batches import Batch
from bagnet_lightning.errors import Diverged

STEPS = 100  # between two checks of the losses, where reading them waits for the device
WITHOUT_WAITING = ("cpu",)  # device types where it does not


class StopOnDivergence(Callback):
    """Raises Diverged, which names the first step whose loss is not finite.

    On the CPU before its backward pass; on other devices within STEPS steps, and before a checkpoint or a validation.
    last: the checkpoint from before that step.
    """

    def __init__(self, last: Path):
        self.last = last
        self.unread: list[tuple[Tensor, tuple, Tensor]] = []  # loss; step, epoch and learning rate; indices

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.indices = batch[2]

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        when = trainer.global_step, trainer.current_epoch + 1, rate
        self.unread.append((loss.detach().clone(), when, self.indices))  # a CUDA graph would write over the loss
        if loss.device.type in WITHOUT_WAITING or len(self.unread) >= STEPS:
            self._read(trainer)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._read(trainer)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict) -> None:
        self._read(trainer)

    def _read(self, trainer: Trainer) -> None:
        unread, self.unread = self.unread, []
        if not unread:
            return
        losses = torch.stack([loss for loss, _, _ in unread])
        losses = trainer.strategy.reduce(losses, reduce_op="mean")  # not finite on one rank: not finite on all
        if losses.isfinite().all():
            return
        first = losses.isfinite().tolist().index(False)
        _, (step, epoch, rate), indices = unread[first]
        shares = [indices.tolist()]
        if trainer.world_size > 1:
            shares *= trainer.world_size
            torch.distributed.all_gather_object(shares, indices.tolist())
        trainer.strategy.checkpoint_io.wait()
        checkpoint_state = f"{self.last} is from before" if self.last.exists() else "no checkpoint had been written"
        raise Diverged(
            f"the loss is {losses[first].item()} at step {step} (epoch {epoch}, learning rate {rate:g}, train images "
            f"{[index for share in shares for index in share]}); {checkpoint_state}; try a smaller optim.lr"
        )
