"""A BagNet's patches as the local features of images, computed when they are read and not stored."""

import time
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bagnet_lightning.checkpoint import load_backbone
from bagnet_lightning.config import weights_sha256
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.data.batches import Images
from bagnet_lightning.data.image_data import ImageData
from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import patch_corners
from bagnet_lightning.inference.logits import batches, best_device, predict
from bagnet_lightning.local_features.bag import Bag
from bagnet_lightning.models.bagnet import BagNet


class BagNetFeatures:
    """A trained BagNet's outputs for its own patches, at its native stride.

    checkpoint: of a run, an export or a backbone of `pretrain`. sha256: of that file. output: "features", the vectors
    before the classifier, or "logits". Raises UserError if the file has changed, its network is not a BagNet, or it has
    no classifier for "logits".
    """

    binary: ClassVar[bool] = False
    explains: ClassVar[str] = "patches"

    def __init__(self, checkpoint: str | None, sha256: str | None, output: str):
        if checkpoint is None:
            raise UserError(
                "features=bagnet needs a network: add checkpoint=PATH, of a run's best.ckpt or a backbone; for a row "
                "that probes one, backbones.NAME=PATH"
            )
        self.trained = load_backbone(checkpoint)
        if weights_sha256(checkpoint) != sha256:
            raise UserError(f"{checkpoint} has changed since its patches were learned from; run classical again")
        network = self.trained.network
        if not isinstance(network, BagNet):
            raise UserError(f"local features need a network of patches, a BagNet, not {type(network).__name__}")
        if output == "logits" and not self.trained.classes:
            raise UserError(f"{checkpoint} has no classifier, so no logits: ask for features.output=features")
        self.network = network.to(best_device(), memory_format=torch.channels_last)
        self.logits = output == "logits"

    @property
    def model(self) -> str:
        """The model's name among the choices of `train`: "bagnet17"."""
        return f"bagnet{self.network.receptive_field}"

    @property
    def parameters(self) -> int:
        """Number of parameters of the part of the network that is used."""
        used = (p for name, p in self.network.named_parameters() if self.logits or not name.startswith("fc."))
        return sum(parameter.numel() for parameter in used)

    def mean_accuracy(self, images: Images, classes: list[str]) -> float | None:
        """Measures the network's own accuracy on `images`, labelled by their index in `classes`, as `evaluate` does.

        Returns None if the network was not trained on these classes.
        """
        if self.trained.classes != classes:
            return None
        logits = predict(self.trained, images.split.images, images.chosen)
        return (logits.argmax(1) == images.labels).double().mean().item()

    def check(self, data: ImageData) -> None:
        """Raises UserError if the network's logits are of other classes, or it was trained on held-out images."""
        if self.logits and self.trained.classes != data.class_ids:
            raise UserError(
                f"the checkpoint decides between {len(self.trained.classes)} classes, and the data have "
                f"{len(data.class_ids)}, or others: choose the same ones with data.classes=..."
            )
        data.check_unseen(self.trained.config, self.trained.classes)

    def keypoints(self, height: int, width: int) -> np.ndarray:
        """Returns an image's patches as keypoints, (patches, 4). Raises UserError if it is smaller than a patch."""
        self.network.check_size(height, width)
        field = self.network.receptive_field
        corners = patch_corners(self.network, height, width).flatten(0, 1)  # (patches, 2): row, column
        rest = torch.tensor([field, 0.0]).expand(len(corners), 2)  # size and angle
        return torch.cat([corners.flip(1) + (field - 1) / 2, rest], 1).numpy()

    def describe(self, images: np.ndarray) -> tuple[Bag, np.ndarray]:
        """Describes the patches: see Features."""
        keypoints = self.keypoints(*images.shape[1:3])
        parts = [self(part).flatten(0, 2).cpu() for part in batches(torch.from_numpy(images))]
        offsets = np.arange(len(images) + 1) * len(keypoints)
        return Bag(torch.cat(parts).numpy(), offsets), np.tile(keypoints, (len(images), 1))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Computes the outputs, (B, h, w, D) float32, on the best device. pixels: (B, H, W, 3) uint8."""
        device = self.network.conv1.weight.device
        normalized = normalize(pixels.to(device), self.trained.mean, self.trained.std)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            if self.logits:
                return self.network.patch_logits(normalized)
            return self.network.features(normalized).permute(0, 2, 3, 1)


class Patches:
    """The patches of `images` as Bags. seconds: the time that reading has taken so far.

    Raises UserError if the images are smaller than a patch.
    """

    binary: ClassVar[bool] = False
    without_features: ClassVar[int] = 0

    def __init__(self, features: BagNetFeatures, images: Images):
        features.keypoints(*images.split.images.shape[1:3])  # raises for images that are too small
        self.features, self.images, self.seconds = features, images, 0.0

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> Bag:
        began = time.perf_counter()
        bag, _ = self.features.describe(
            self.images.split.images.index_select(0, self.images.chosen[start:stop]).numpy()
        )
        self.seconds += time.perf_counter() - began
        return bag
