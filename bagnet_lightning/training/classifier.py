"""The LightningModule of an image classifier: loss and metrics."""

from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from bagnet_lightning.data.batches import Batch
from bagnet_lightning.errors import UserError
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.training.learner import Learner


class Classifier(Learner):
    """Trains `network` ((B, 3, H, W) -> (B, num_classes)) by cross-entropy. `options`: arguments of Learner.

    criterion: the loss of logits (N, num_classes) and labels (N,), a scalar; if it is a module, it is moved to the
    device and its parameters are trained too. patch_loss: the share of the loss that is the criterion of the patches'
    own logits, whose mean is a BagNet's output. With it, raises UserError for other networks.
    """

    logged = (
        *("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5_accuracy", "val_balanced_accuracy"),
        "learning_rate",
    )
    figures = 4  # see `totals` below

    def __init__(
        self,
        network: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        patch_loss: float = 0.0,
        **options,
    ):
        super().__init__(network, **options)
        self.criterion, self.patch_loss = criterion, patch_loss
        if patch_loss:
            if not isinstance(network, BagNet):
                raise UserError(
                    f"patch_loss={patch_loss:g} needs a BagNet's patches, and {type(network).__name__} has none"
                )
            self.forward_pass = network.patch_logits

    def training_step(self, batch: Batch) -> Tensor:
        images, labels, _ = batch
        return self.step(images.to(self.dtype), labels)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of a training batch, and adds the batch to the epoch's totals."""
        logits, loss = self.logits_and_loss(images, labels)
        self.train_totals += totals(top5(logits.detach()), labels, loss.detach())
        return loss

    def logits_and_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits, (B, classes), and the loss to minimise; a callback may replace this function."""
        if not self.patch_loss:
            logits = self.forward_pass(images)
            return logits, self._loss_of_all(logits, labels)
        evidence = self.forward_pass(images).flatten(1, 2)  # (B, patches, classes)
        logits = evidence.mean(1)
        of_patches = self._loss_of_all(evidence.flatten(0, 1), labels.repeat_interleave(evidence.shape[1]))
        return logits, torch.lerp(self._loss_of_all(logits, labels), of_patches, self.patch_loss)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.val_classes: Tensor | None = None  # (classes, 2): of each, the images and those predicted rightly

    @torch.inference_mode()
    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the logits, (B, classes), and the predicted classes, (B,), for callbacks."""
        images, labels, _ = batch
        logits = self.network(images.to(self.dtype))
        classes = top5(logits)
        self.val_totals += totals(classes, labels, F.cross_entropy(logits, labels))
        predicted = classes[:, 0]  # not argmax, which may choose another of equal logits, as are many in 16 bits
        if self.val_classes is None:
            self.val_classes = labels.new_zeros(logits.shape[1], 2)
        self.val_classes.index_add_(0, labels, torch.stack([torch.ones_like(labels), predicted == labels], 1))
        return {"logits": logits, "predicted": predicted}

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:  # only in a user's own Trainer
            return
        sums = self.totals()
        (train_loss, train_accuracy, _), (loss, accuracy, top5_accuracy) = sums[:, :3] / sums[:, 3:]
        self.log("train_loss", train_loss, prog_bar=True)
        self.log("train_accuracy", train_accuracy)
        self.log("val_loss", loss)
        self.log("val_accuracy", accuracy, prog_bar=True)
        self.log("val_top5_accuracy", top5_accuracy)
        images_of_class, right = self.trainer.strategy.reduce(self.val_classes.clone(), reduce_op="sum").unbind(1)
        self.log("val_balanced_accuracy", (right / images_of_class).nanmean())  # some classes may have no image
        self.log("learning_rate", self.rate)

    def _loss_of_all(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the criterion of the whole batch: it need not be a mean over images, as with weights of classes."""
        if distributed.is_available() and distributed.is_initialized():
            logits, labels = of_all_ranks(logits, labels)
        return self.criterion(logits, labels)


def of_all_ranks(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logits and labels of all ranks, (sum of N, classes) and (sum of N,), of one rank's (N, ...) each.

    Only the rank's own logits get a gradient, times the number of ranks, since DDP takes the mean of the ranks'
    gradients.
    """
    ranks, rank = distributed.get_world_size(), distributed.get_rank()
    counts = labels.new_empty(ranks, 1)
    distributed.all_gather([*counts], labels.new_tensor([len(labels)]))
    counts = counts.flatten().tolist()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # older torch sends no bfloat16 on CPUs
    if logits.requires_grad:
        logits.register_hook(lambda gradient: gradient * ranks)

    def gathered(rows: Tensor) -> Tensor:
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # what is gathered has one shape
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in range(ranks)]
        distributed.all_gather(parts, padded)
        parts = [part[:count] for part, count in zip(parts, counts, strict=True)]
        return torch.cat([*parts[:rank], rows, *parts[rank + 1 :]])

    return gathered(logits), gathered(labels)


def top5(logits: Tensor) -> Tensor:
    """Returns the five classes of the highest logits, or all if there are fewer, the highest first: (B, 5)."""
    return logits.topk(min(5, logits.shape[1])).indices


def totals(classes: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
    """Returns a batch's sum of losses, top-1 hits, top-5 hits and number of images: (4,) float32. classes: of top5."""
    hits = classes == labels[:, None]  # (B, 5)
    loss = loss.float()  # of one's own loss it may have 16 bits, which cannot count
    images = torch.full_like(loss, len(labels))
    return torch.stack([loss * images, hits[:, 0].sum(), hits.sum(), images])
