"""The LightningModule that every training here is: optimizer, schedule, sums over an epoch; what is learned is not."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bagnet_lightning.errors import UserError


class Learner(LightningModule, ABC):
    """Trains `network` on the `loss` of a subclass.

    optimizer: makes one from parameter groups; norms and biases are a group without weight decay. scheduler: makes one
    from the optimizer; with interval "epoch" it is stepped once an epoch, with "step" once an optimizer step, and how
    often in the whole run it is told as `total_steps` or `T_max` if it has such a parameter, unset.
    about: plain data that travels in every checkpoint (config, classes, class_names, mean, std).
    figures: how many sums a subclass keeps over the images of an epoch, in `train_totals` and `val_totals`.
    """

    logged: ClassVar[tuple[str, ...]]  # names of what a subclass logs at the end of an epoch
    inputs_per_image = 1  # of the network, for an image of a batch

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        interval: str,
        about: dict,
        figures: int,
    ):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer, self.scheduler, self.interval, self.about = optimizer, scheduler, interval, about
        self.forward_pass: Callable[[Tensor], Tensor] = network.forward  # in training; acceleration compiles it
        self.gradients: Callable[..., Tensor] | None = None  # loss and backward pass, if not Lightning's
        self.recorded_update: Any | None = None  # acceleration's, of an optimizer's step
        # Sums over the images of an epoch so far: on the device, and read once an epoch. No buffers, for these would be
        # part of the weights, and be the first process's in all of several.
        self.train_totals, self.val_totals = torch.zeros(figures), torch.zeros(figures)
        self.totals_of: int | None = None  # the epoch
        self.rate: float | None = None  # at the epoch's latest step

    @abstractmethod
    def loss(self, *inputs: Tensor) -> Tensor:
        """Of a training batch, which counts in the epoch's totals."""

    def step(self, *inputs: Tensor) -> Tensor:
        """The loss of a training batch, and where a CUDA graph computes it, its gradients."""
        self.rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        return (self.gradients or self.loss)(*inputs)

    def backward(self, loss: Tensor) -> None:
        if self.gradients is None:
            loss.backward()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        if self.gradients is None:
            optimizer.zero_grad()

    def on_train_start(self) -> None:
        self.train_totals, self.val_totals = self.train_totals.to(self.device), self.val_totals.to(self.device)

    def on_train_epoch_start(self) -> None:
        if self.totals_of != self.trainer.current_epoch:  # older Lightning calls this in the middle of one, too
            self.totals_of = self.trainer.current_epoch
            self.train_totals.zero_()

    def on_validation_epoch_start(self) -> None:
        self.val_totals.zero_()

    def totals(self) -> Tensor:
        """Of the epoch: (2, figures), the training's and the validation's over all ranks.

        To be read once an epoch, when all is logged: a call of `log` costs Lightning as much as a small step.
        """
        return self.trainer.strategy.reduce(torch.stack([self.train_totals, self.val_totals]), reduce_op="sum")

    def make_optimizer(self) -> Optimizer:
        parameters = [*self.parameters()]
        optimizer = self.optimizer(
            [
                {"params": [p for p in parameters if p.ndim > 1]},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            **self._fused(),
        )
        if self.recorded_update:
            self.recorded_update.attach(optimizer)
        return optimizer

    def configure_optimizers(self) -> dict:
        optimizer = self.make_optimizer()
        steps = self.trainer.estimated_stepping_batches  # asked first: num_training_batches below needs it
        length = self.trainer.max_epochs if self.interval == "epoch" else steps
        unset = (inspect.Parameter.empty, None)
        takes = {key for key, value in inspect.signature(self.scheduler).parameters.items() if value.default in unset}
        scheduler = self.scheduler(optimizer, **dict.fromkeys(takes & {"total_steps", "T_max"}, length))
        if isinstance(scheduler, ReduceLROnPlateau):
            raise UserError(
                "scheduler: ReduceLROnPlateau waits for a metric, but rates here are a function of the step"
            )
        schedule = {"scheduler": scheduler, "interval": "step"}
        if self.interval == "epoch":
            # After the epoch's last batch: Lightning's own "epoch" comes too late for the checkpoint.
            schedule["frequency"] = self.trainer.num_training_batches
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _fused(self) -> dict:
        """On a GPU, all parameters in one kernel where the optimizer has one: not with what Lightning then refuses."""
        if self.device.type != "cuda" or self.trainer.precision == "16-mixed" or self.trainer.gradient_clip_val:
            return {}
        return {"fused": True} if "fused" in inspect.signature(self.optimizer).parameters else {}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["bagnet_lightning"] = self.about
        for state in checkpoint.get("lr_schedulers", []):
            state.pop("anneal_func", None)  # a method, in torch 2.0, of OneCycleLR: read_checkpoint would refuse it
        so_far = self.trainer.strategy.reduce(self.train_totals.clone(), reduce_op="sum")
        checkpoint["epoch_so_far"] = {"epoch": self.totals_of, "totals": so_far, "rate": self.rate}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.totals_of, self.rate = checkpoint["epoch_so_far"]["epoch"], checkpoint["epoch_so_far"]["rate"]
        if self.trainer.is_global_zero:  # it goes on with the sum over all ranks
            self.train_totals = checkpoint["epoch_so_far"]["totals"]
