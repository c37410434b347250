"""Data that are not image files: here drawn, else read from an archive or a database."""

import numpy as np

from bagnet_lightning.data.image_data import ImageData
from bagnet_lightning.data.store import Store, store_of_arrays

SHAPES = ("disc", "square", "cross")


class Shapes(ImageData):
    """Shapes of any colour, size and place.

    train_counts, val_count: images of each class. `options`: those of all data.
    """

    def __init__(self, train_counts: list[int], val_count: int, image_size: int, **options):
        super().__init__(**options)
        self.counts = {"train": train_counts, "val": [val_count] * len(SHAPES)}
        self.image_size = image_size

    def open_store(self) -> Store:
        random, splits = np.random.default_rng(0), {}
        for split, counts in self.counts.items():
            labels = np.repeat(np.arange(len(SHAPES)), counts)
            images = [draw(SHAPES[label], self.image_size, random) for label in labels]
            splits[split] = np.stack(images), labels  # (N, H, W, 3) uint8, (N,)
        return store_of_arrays(list(SHAPES), list(SHAPES), splits)


def draw(shape: str, size: int, random: np.random.Generator) -> np.ndarray:
    background, colour = random.integers(0, 256, (2, 3), dtype=np.uint8)
    radius = random.integers(size // 8, size // 4)
    centre = random.integers(radius, size - radius, 2)
    y, x = np.abs(np.mgrid[:size, :size] - centre[:, None, None])
    inside = {
        "disc": x**2 + y**2 <= radius**2,
        "square": np.maximum(x, y) <= radius,
        "cross": (np.maximum(x, y) <= radius) & (np.minimum(x, y) <= radius / 4),
    }
    return np.where(inside[shape][..., None], colour, background)
