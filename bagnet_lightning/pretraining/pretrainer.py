"""The LightningModule of pretraining: a method's loss, and how often a held-out neighbour is the nearer tile."""

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from bagnet_lightning.data.batches import Batch
from bagnet_lightning.pretraining.tiles import ANCHOR, DISTANT, NEIGHBOUR
from bagnet_lightning.training.learner import Learner


class Method(Protocol):
    """A choice of conf/method/. kinds: how many of anchors, neighbours and distant tiles, in this order, it uses."""

    name: str
    kinds: ClassVar[int]

    def head(self, features: int) -> nn.Module:
        """Returns layers that embed the `features` mean features of the network; discarded after the pretraining."""

    def loss(self, embeddings: Tensor) -> Tensor:
        """Returns the loss. embeddings: (kinds B, D), those of one kind after those of another."""


class Pretrainer(Learner):
    """Trains `network`, which returns mean features, (N, 3, h, w) -> (N, features), by the loss of `method`.

    Batches hold tiles in place of images, one kind after the other. `options`: arguments of Learner.
    """

    logged = ("train_loss", "val_loss", "val_triplet_accuracy", "learning_rate")
    figures = 3  # losses, triplet hits, images

    def __init__(self, network: nn.Module, features: int, method: Method, **options):
        super().__init__(network, **options)
        self.method, self.head = method, method.head(features)
        self.inputs_per_image = method.kinds

    def training_step(self, batch: Batch) -> Tensor:
        tiles, _, _ = batch
        return self.step(tiles.to(self.dtype))

    def loss(self, tiles: Tensor) -> Tensor:
        """Returns the loss, and adds the batch to the epoch's totals. tiles: (kinds B, 3, h, w), normalised."""
        loss = self.compared(self.head(self.forward_pass(tiles)))
        images = torch.full_like(loss, len(tiles) // self.method.kinds)
        self.train_totals += torch.stack([loss.detach() * images, torch.zeros_like(images), images])
        return loss

    def compared(self, embeddings: Tensor) -> Tensor:
        """Returns the method's loss, in float32 whatever the network computes in."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.method.loss(embeddings.float())

    @torch.inference_mode()
    def validation_step(self, batch: Batch) -> None:
        tiles, labels, _ = batch  # (3 B, 3, h, w), whatever the method
        features = self.network(tiles.to(self.dtype))
        loss = self.compared(self.head(features[: self.method.kinds * len(labels)]))
        images = torch.full_like(loss, len(labels))
        self.val_totals += torch.stack([loss * images, neighbour_is_nearer(features.float()).sum(), images])

    def on_validation_epoch_end(self) -> None:
        (train_loss, _, trained), (loss, hits, held_out) = self.totals()
        self.log("train_loss", train_loss / trained, prog_bar=True)
        self.log("val_loss", loss / held_out)
        self.log("val_triplet_accuracy", hits / held_out, prog_bar=True)
        self.log("learning_rate", self.rate)


def neighbour_is_nearer(features: Tensor) -> Tensor:
    """Whether each triplet's anchor is nearer to its neighbour than to the distant tile. (3 B, D) -> (B,) bool."""
    kinds = features.chunk(3)
    to_neighbour, to_distant = ((kinds[ANCHOR] - kinds[other]).norm(dim=1) for other in (NEIGHBOUR, DISTANT))
    return to_neighbour < to_distant
