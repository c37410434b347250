"""Images in memory or packed on disk: one uint8 array a split, with labels, boxes and class names."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """images: (N, H, W, 3) uint8, RGB. labels: (N,) int64, -1 where unlabelled.

    boxes: (N, 4) int16, x0 y0 x1 y1 of the labelled object in pixels, -1 where there is none.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Store:
    """A data set: its splits ("train", "val", sometimes "test") and what its labels mean.

    classes: the identifier of each label (wnid or folder name); class_names: what people call it.
    mean, std: of the train split's pixels, a channel each, in units of 255. digest: hex, of everything in the store.
    """

    name: str
    classes: list[str]
    class_names: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    splits: dict[str, Split]
    digest: str
