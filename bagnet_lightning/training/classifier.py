"""The LightningModule: loss, metrics, optimizer and schedule of an image classifier."""

import inspect
from collections.abc import Callable

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bagnet_lightning.data.batches import Batch


class Classifier(LightningModule):
    """Trains `network` ((B, 3, H, W) -> (B, num_classes)) by cross-entropy.

    optimizer: makes one from parameter groups; norms and biases are a group without weight decay. scheduler: makes one
    from the optimizer, and from the run's `total_steps` if it takes them; with interval "epoch" it is stepped once an
    epoch, with "step" once an optimizer step.
    about: plain data that travels in every checkpoint (config, classes, class_names, mean, std).
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        interval: str,
        label_smoothing: float,
        about: dict,
    ):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer, self.scheduler, self.interval = optimizer, scheduler, interval
        self.label_smoothing, self.about = label_smoothing, about
        self.run_network: Callable[[Tensor], Tensor] | None = None  # in training, if not `network` itself
        self.objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None  # if not `cross_entropy`
        self.gradients: Callable[[Tensor, Tensor], Tensor] | None = None  # loss and backward pass, if not Lightning's
        # Sums over the images of an epoch so far, see `totals`: on the device, and read once an epoch. No buffers, for
        # these would be part of the weights, and be the first process's in all of several.
        self.train_totals, self.val_totals = torch.zeros(4), torch.zeros(4)
        self.rate: float | None = None  # at the epoch's latest step

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: Batch) -> Tensor:
        images, labels, _ = batch
        self.rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        loss = (self.gradients or self.loss)(images.to(self.dtype), labels)
        return loss if self.trainer.world_size == 1 else loss * self._weight(len(labels))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of a training batch, which counts in the epoch's totals."""
        logits, loss = (self.objective or self.cross_entropy)(images, labels)
        self.train_totals += totals(logits.detach(), labels, loss.detach())
        return loss

    def cross_entropy(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, (B, classes), and what is minimised; another such function in `objective` takes its place."""
        logits = (self.run_network or self.network)(images)
        return logits, F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def backward(self, loss: Tensor) -> None:
        if self.gradients is None:
            loss.backward()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        if self.gradients is None:
            optimizer.zero_grad()

    @torch.inference_mode()
    def validation_step(self, batch: Batch) -> Tensor:
        """Returns the predicted classes, (B,)."""
        images, labels, _ = batch
        logits = self.network(images.to(self.dtype))
        self.val_totals += totals(logits, labels, F.cross_entropy(logits, labels))
        return logits.argmax(1)

    def on_train_start(self) -> None:
        self.train_totals, self.val_totals = self.train_totals.to(self.device), self.val_totals.to(self.device)

    def on_train_epoch_start(self) -> None:
        self.train_totals.zero_()

    def on_validation_epoch_start(self) -> None:
        self.val_totals.zero_()

    def on_validation_epoch_end(self) -> None:
        """Logs all of the epoch, and nothing is logged in between: a call costs Lightning as much as a small step."""
        sums = self.trainer.strategy.reduce(torch.stack([self.train_totals, self.val_totals]), reduce_op="sum")
        (train_loss, train_accuracy, _), (loss, accuracy, top5_accuracy) = sums[:, :3] / sums[:, 3:]
        self.log("train_loss", train_loss, prog_bar=True)
        self.log("train_accuracy", train_accuracy)
        self.log("val_loss", loss)
        self.log("val_accuracy", accuracy, prog_bar=True)
        self.log("val_top5_accuracy", top5_accuracy)
        self.log("learning_rate", self.rate)

    def configure_optimizers(self) -> dict:
        parameters = [*self.network.parameters()]
        optimizer = self.optimizer(
            [
                {"params": [p for p in parameters if p.ndim > 1]},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            **self._fused(),
        )
        length = {"total_steps": self.trainer.estimated_stepping_batches}  # asked first: num_training_batches needs it
        if "total_steps" not in inspect.signature(self.scheduler).parameters:
            length = {}
        schedule = {"scheduler": self.scheduler(optimizer, **length), "interval": "step"}
        if self.interval == "epoch":
            # After the epoch's last batch: Lightning's own "epoch" comes too late for the checkpoint.
            schedule["frequency"] = self.trainer.num_training_batches
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _fused(self) -> dict:
        """On a GPU, all parameters in one kernel where the optimizer has one: not with what Lightning then refuses."""
        if self.device.type != "cuda" or self.trainer.precision == "16-mixed" or self.trainer.gradient_clip_val:
            return {}
        return {"fused": True} if "fused" in inspect.signature(self.optimizer).parameters else {}

    def _weight(self, images: int) -> Tensor:
        """What the mean loss of this rank's `images` counts in the mean over the ranks, so that that is the batch's."""
        share = torch.full((), float(images), device=self.device)
        total = share.clone()
        torch.distributed.all_reduce(total)
        return share * self.trainer.world_size / total

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["bagnet_lightning"] = self.about
        so_far = self.trainer.strategy.reduce(self.train_totals.clone(), reduce_op="sum")
        checkpoint["epoch_so_far"] = {"totals": so_far, "rate": self.rate}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.rate = checkpoint["epoch_so_far"]["rate"]
        if self.trainer.is_global_zero:  # it goes on with the sum over all ranks
            self.train_totals = checkpoint["epoch_so_far"]["totals"]


def totals(logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
    """Of a batch: the sum of its losses, hits of the first and of the first five classes, images. (4,) float32."""
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (B, 5)
    images = torch.full_like(loss, len(labels))
    return torch.stack([loss * images, hits[:, 0].sum(), hits.sum(), images])
