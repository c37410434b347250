"""Runs a trained network on many images, without a trainer."""

from collections.abc import Iterable

import torch
from torch import Tensor

from bagnet_lightning.checkpoint import Trained
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.errors import UserError

PIXELS = 250 * 64 * 64  # per batch: the memory of activations grows with the pixels


def best_device() -> torch.device:
    """Returns the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batches(images: Tensor, chosen: Tensor | None = None) -> Iterable[Tensor]:
    """Splits (N, H, W, 3) into parts that fit into memory at any image size: 250 of 64 x 64 px, fewer of larger.

    chosen: indices of the images to read, all by default.
    """
    length = max(1, PIXELS // (images.shape[1] * images.shape[2]))
    if chosen is None:
        return images.split(length)
    return (images.index_select(0, part) for part in chosen.split(length))


@torch.no_grad()
def takes_any_size(trained: Trained) -> bool:
    """Whether a network takes images of other sizes than it was trained on, as not all of the user's own do."""
    weight = next(trained.network.parameters())
    try:
        trained.network(weight.new_zeros(1, 3, trained.image_size + 37, trained.image_size + 46))
    except Exception:  # the user's code may raise anything
        return False
    return True


@torch.no_grad()  # not inference mode: the network's weights would become inference tensors
def predict(trained: Trained, images: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Computes logits in float32, since the public BagNet weights break in lower precision.

    images: (N, H, W, 3) uint8, in memory or memory-mapped. chosen: indices of the images to predict, all by default.
    Returns (N, classes), on the CPU. Raises UserError if they are not finite.
    """
    device = best_device()
    network = trained.network.to(device, memory_format=torch.channels_last)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        logits = torch.cat(
            [network(normalize(part.to(device), trained.mean, trained.std)).cpu() for part in batches(images, chosen)]
        )
    if not logits.isfinite().all():
        raise UserError("the network's scores are not finite numbers: its weights are damaged, or it has diverged")
    return logits
