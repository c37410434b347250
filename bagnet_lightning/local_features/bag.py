"""Local features of images, and the interfaces of what makes and classifies them; encodings have a base class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Bag:
    """The local features of n images, one image after the other.

    descriptors: (M, D) uint8 or float32. offsets: (n + 1,) int64; the features of image i are offsets[i] to
    offsets[i + 1].
    """

    descriptors: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The number of features of each image, (n,)."""
        return np.diff(self.offsets)

    @property
    def images(self) -> np.ndarray:
        """The index of each feature's image, (M,)."""
        return np.repeat(np.arange(len(self)), self.lengths)


class Features(Protocol):
    """Describes images by local features: a Detector, or a BagNet's patches."""

    binary: bool  # descriptors are bits, eight in a byte, and compared by their Hamming distance
    logits: bool  # descriptors are a network's scores of the classes
    explains: str  # what `explain` shows: "keypoints" or "patches"
    parameters: int  # number of learned parameters

    def describe(self, images: np.ndarray) -> tuple[Bag, np.ndarray]:
        """Returns the local features of images (n, H, W, 3) uint8, RGB, and their keypoints.

        Keypoints, (M, 4) float32: x and y of the centre of the described region in px of the image, where 0 is the
        centre of its first pixel; the region's diameter in px; its angle in degrees.
        """


class BagClassifier(Protocol):
    """Scores encoded images."""

    additive: bool  # a score is a bias and the sum of `contributions`, which only such a classifier has
    kernel: str | None  # of histograms alone; None: vectors may have any elements
    arrays: Mapping[str, np.ndarray]  # what is learned

    def learn(self, vectors: np.ndarray, labels: np.ndarray, classes: int) -> None:
        """Learns from vectors (N, W) float32 with labels (N,) int64, of `classes` classes. Raises UserError."""

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the scores of vectors (N, W): (N, classes) float32."""

    def contributions(self, vector: np.ndarray) -> np.ndarray:
        """Returns what each element of a vector (W,) adds to each class's score, (W, classes)."""


class Bags(Protocol):
    """The local features of many images, read some images at a time."""

    binary: bool  # as Features'
    without_features: int  # number of images
    seconds: float  # that describing the images has taken so far, in this run or an earlier one

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Bag:
        """Returns the local features of the images `start` to `stop`."""
