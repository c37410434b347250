"""The base LightningModule of every training here: optimizer, schedule, sums over an epoch; subclasses add the loss."""

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
from bagnet_lightning.models.pretrained import head_names


class Learner(LightningModule, ABC):
    """Trains `network` on the `loss` of a subclass.

    optimizer: makes one from parameter groups; norms and biases are a group without weight decay. scheduler: makes one
    from the optimizer; with interval "epoch" it is stepped once per epoch, with "step" once per optimizer step, and the
    number of its steps in the whole run is passed as `total_steps` or `T_max` if it has such a parameter, unset.
    about: metadata saved in every checkpoint (config, classes, class_names, mean, std), as plain data.
    """

    logged: ClassVar[tuple[str, ...]]  # names of the values that a subclass logs at the end of an epoch
    figures: ClassVar[int]  # number of sums that it keeps over an epoch's images, in `train_totals` and `val_totals`
    inputs_per_image = 1  # inputs of the network for each image of a batch

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        interval: str,
        about: dict,
    ):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer, self.scheduler, self.interval, self.about = optimizer, scheduler, interval, about
        self.forward_pass: Callable[[Tensor], Tensor] = network.forward  # in training; acceleration compiles it
        self.gradients: Callable[..., Tensor] | None = None  # loss and backward pass, where Lightning's is replaced
        self.recorded_update: Any | None = None  # the optimizer's update as a CUDA graph
        # Sums over the images of an epoch so far: on the device, and read once an epoch. Not buffers: those would be
        # part of the weights, and DDP would give every rank those of rank 0.
        self.train_totals, self.val_totals = torch.zeros(self.figures), torch.zeros(self.figures)
        self.totals_epoch: int | None = None  # the epoch of train_totals
        self.stopped_early = False  # whether a callback had ended the run that goes on
        self.random: dict | None = None  # states of torch's generators, of a run that goes on
        self.rate: float | None = None  # learning rate at the epoch's latest step

    @abstractmethod
    def loss(self, *inputs: Tensor) -> Tensor:
        """Returns the loss of a training batch, and adds the batch to the epoch's totals."""

    def step(self, *inputs: Tensor) -> Tensor:
        """Returns the loss of a training batch; a CUDA graph, where there is one, computes the gradients too."""
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
        self.trainer.should_stop |= self.stopped_early
        if self.random:  # the run goes on
            torch.set_rng_state(self.random["cpu"].cpu())
        if self.random and "cuda" in self.random and self.device.type == "cuda":
            torch.cuda.set_rng_state(self.random["cuda"].cpu(), self.device)

    def on_train_epoch_start(self) -> None:
        if self.totals_epoch != self.trainer.current_epoch:  # older Lightning also calls this in the middle of an epoch
            self.totals_epoch = self.trainer.current_epoch
            self.train_totals.zero_()

    def on_validation_epoch_start(self) -> None:
        self.val_totals.zero_()

    def totals(self) -> Tensor:
        """Returns the epoch's sums over all ranks, (2, figures): of training and of validation.

        Called once an epoch, when all is logged: a call of `log` takes Lightning as long as a small step.
        """
        return self.trainer.strategy.reduce(torch.stack([self.train_totals, self.val_totals]), reduce_op="sum")

    def make_optimizer(self) -> Optimizer:
        parameters = [*self.parameters()]
        heads = {f"network.{name}" for name in head_names(self.network)}
        kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
        layers = [layer for name, layer in self.named_modules() if isinstance(layer, kinds) and name not in heads]
        hidden = {p for layer in layers for p in layer.parameters()}
        for p in parameters:
            p.hidden = p in hidden  # which Muon asks for
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
        steps = self.trainer.estimated_stepping_batches  # read first: num_training_batches below needs it
        length = self.trainer.max_epochs if self.interval == "epoch" else steps
        unset = (inspect.Parameter.empty, None)
        names = {key for key, value in inspect.signature(self.scheduler).parameters.items() if value.default in unset}
        try:
            scheduler = self.scheduler(optimizer, **dict.fromkeys(names & {"total_steps", "T_max"}, length))
        except ZeroDivisionError as error:  # of torch's OneCycleLR
            raise UserError(f"scheduler: a cycle of {length} steps that rises for one: change its pct_start") from error
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
        """Returns the argument for one kernel over all parameters, on a GPU, if optimizer and Lightning allow it."""
        if self.device.type != "cuda" or self.trainer.precision == "16-mixed" or self.trainer.gradient_clip_val:
            return {}
        return {"fused": True} if "fused" in inspect.signature(self.optimizer).parameters else {}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["bagnet_lightning"] = self.about
        for state in checkpoint.get("lr_schedulers", []):
            state.pop("anneal_func", None)  # a method of OneCycleLR in torch 2.0, which read_checkpoint would refuse
        so_far = self.trainer.strategy.reduce(self.train_totals.clone(), reduce_op="sum")
        checkpoint["epoch_so_far"] = {"epoch": self.totals_epoch, "totals": so_far, "rate": self.rate}
        checkpoint["should_stop"] = self.trainer.should_stop
        checkpoint["random"] = {"cpu": torch.get_rng_state()}  # what dropout draws from
        if self.device.type == "cuda":
            checkpoint["random"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.totals_epoch, self.rate = checkpoint["epoch_so_far"]["epoch"], checkpoint["epoch_so_far"]["rate"]
        # Missing in checkpoints of earlier versions, whose runs go on as well.
        self.random, self.stopped_early = checkpoint.get("random"), checkpoint.get("should_stop", False)
        if self.trainer.is_global_zero:  # it continues from the sum over all ranks
            self.train_totals = checkpoint["epoch_so_far"]["totals"]
