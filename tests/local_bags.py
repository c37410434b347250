"""Local features made up for the tests of what is done with them."""

from dataclasses import dataclass

import numpy as np

from bagnet_lightning.local_features.bag import Bag


@dataclass(frozen=True)
class InMemory:
    """Bags whose features are all there."""

    whole: Bag
    binary: bool

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def without_features(self) -> int:
        return int((np.diff(self.whole.offsets) == 0).sum())

    def read(self, start: int, stop: int) -> Bag:
        first, last = self.whole.offsets[[start, stop]]
        return Bag(self.whole.descriptors[first:last], self.whole.offsets[start : stop + 1] - first)


def bag_of(descriptors: np.ndarray, counts: list[int]) -> Bag:
    """The descriptors (M, D), so many of each image."""
    assert sum(counts) == len(descriptors)
    return Bag(descriptors, np.cumsum([0, *counts]))


def random_bag(seed: int, counts: list[int], width: int = 8, binary: bool = False) -> Bag:
    draw = np.random.default_rng(seed)
    size = sum(counts), width
    return bag_of(
        draw.integers(0, 256, size, np.uint8) if binary else draw.normal(size=size).astype(np.float32), counts
    )
