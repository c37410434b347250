"""The LightningModule of an image classifier: loss and metrics."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bagnet_lightning.data.batches import Batch
from bagnet_lightning.errors import UserError
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.training.learner import Learner


class Classifier(Learner):
    """Trains `network` ((B, 3, H, W) -> (B, num_classes)) by cross-entropy; the other arguments are Learner's.

    patch_loss: this share of the loss is the cross-entropy of every patch's own logits, of which a BagNet's are the
    mean. Raises UserError for another network.
    """

    logged = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5_accuracy", "learning_rate")

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        interval: str,
        label_smoothing: float,
        about: dict,
        patch_loss: float = 0.0,
    ):
        super().__init__(network, optimizer, scheduler, interval, about, figures=4)  # see `totals` below
        self.label_smoothing, self.patch_loss = label_smoothing, patch_loss
        if patch_loss:
            if not isinstance(network, BagNet):
                raise UserError(
                    f"patch_loss={patch_loss:g} is of a BagNet's patches; {type(network).__name__} has none"
                )
            self.forward_pass = network.patch_logits

    def training_step(self, batch: Batch) -> Tensor:
        images, labels, _ = batch
        loss = self.step(images.to(self.dtype), labels)
        return loss if self.trainer.world_size == 1 else loss * self._weight(len(labels))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of a training batch, which counts in the epoch's totals."""
        logits, loss = self.cross_entropy(images, labels)
        self.train_totals += totals(logits.detach(), labels, loss.detach())
        return loss

    def cross_entropy(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, (B, classes), and what is minimised; a callback may put another such function in its place."""
        if not self.patch_loss:
            logits = self.forward_pass(images)
            return logits, self._cross_entropy(logits, labels)
        evidence = self.forward_pass(images).flatten(1, 2)  # (B, patches, classes)
        logits = evidence.mean(1)
        of_patches = self._cross_entropy(evidence.flatten(0, 1), labels.repeat_interleave(evidence.shape[1]))
        return logits, torch.lerp(self._cross_entropy(logits, labels), of_patches, self.patch_loss)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    @torch.inference_mode()
    def validation_step(self, batch: Batch) -> Tensor:
        """Returns the predicted classes, (B,)."""
        images, labels, _ = batch
        logits = self.network(images.to(self.dtype))
        self.val_totals += totals(logits, labels, F.cross_entropy(logits, labels))
        return logits.argmax(1)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:  # in a Trainer of the user's own
            return
        sums = self.totals()
        (train_loss, train_accuracy, _), (loss, accuracy, top5_accuracy) = sums[:, :3] / sums[:, 3:]
        self.log("train_loss", train_loss, prog_bar=True)
        self.log("train_accuracy", train_accuracy)
        self.log("val_loss", loss)
        self.log("val_accuracy", accuracy, prog_bar=True)
        self.log("val_top5_accuracy", top5_accuracy)
        self.log("learning_rate", self.rate)

    def _weight(self, images: int) -> Tensor:
        """What the mean loss of this rank's `images` counts in the mean over the ranks, so that that is the batch's."""
        share = torch.full((), float(images), device=self.device)
        total = share.clone()
        torch.distributed.all_reduce(total)
        return share * self.trainer.world_size / total


def totals(logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
    """Of a batch: the sum of its losses, hits of the first and of the first five classes, images. (4,) float32."""
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (B, 5)
    images = torch.full_like(loss, len(labels))
    return torch.stack([loss * images, hits[:, 0].sum(), hits.sum(), images])
