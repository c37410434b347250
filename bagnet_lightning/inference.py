"""A trained network on many images, without training's machinery."""

import torch
from torch import Tensor

from bagnet_lightning.checkpoint import Trained
from bagnet_lightning.data.augment import normalize


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def predict(trained: Trained, images: Tensor, batch_size: int = 250) -> Tensor:
    """Logits in float32, since the public BagNet weights break in lower precision.

    images: (N, H, W, 3) uint8, in memory or memory-mapped. Returns (N, classes), on the CPU.
    """
    device = best_device()
    network = trained.network.to(device, memory_format=torch.channels_last)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return torch.cat(
            [network(normalize(part.to(device), trained.mean, trained.std)).cpu() for part in images.split(batch_size)]
        )
