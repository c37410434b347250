"""Local features of images, the interface between features and encodings."""

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
    def images(self) -> np.ndarray:
        """The index of each feature's image, (M,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


class Bags(Protocol):
    """The local features of many images, read some images at a time."""

    binary: bool  # descriptors are bits, eight in a byte, and compared by their Hamming distance
    without_features: int  # number of images
    seconds: float  # that describing the images has taken so far, in this run or an earlier one

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Bag:
        """Returns the local features of the images `start` to `stop`."""
