"""Images in memory or packed on disk: one uint8 array per split, with labels, boxes and class names."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bagnet_lightning.data.pack import FORMAT, Source, chunk_length, digest, pack, sha256
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import open_or_make


@dataclass(frozen=True)
class Split:
    """The images of a split, with labels and boxes.

    images: (N, H, W, 3) uint8, RGB. labels: (N,) int64, -1 where unlabelled.
    boxes: (N, 4) int16, x0 y0 x1 y1 of the labelled object in pixels, -1 where there is none.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Store:
    """A data set: its splits ("train", "val", sometimes "test") and what its labels mean.

    classes: the identifier of each label (wnid or folder name); class_names: its name for people.
    mean, std: of the train split's pixels, per channel, in units of 255. digests: of everything in each split, hex.
    """

    classes: list[str]
    class_names: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    splits: dict[str, Split]
    digests: dict[str, str]

    @property
    def side(self) -> int:
        """The images' shorter side, px."""
        return min(self.splits["train"].images.shape[1:3])


def store_of_arrays(
    classes: list[str], class_names: list[str], splits: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Store:
    """Makes a store in memory. splits: name -> images (N, H, W, 3) uint8, RGB, and labels (N,), indices in `classes`.

    Raises UserError for arrays of another shape or type, and for other labels; -1 is an image without one.
    """
    for split, (images, labels) in splits.items():
        if images.dtype != np.uint8 or images.shape[3:] != (3,) or labels.shape != images.shape[:1]:
            given = f"{images.dtype} {images.shape} and {labels.shape}"
            raise UserError(f"{split}: images must be uint8 (N, H, W, 3) and labels (N,), not {given}")
        if labels.dtype.kind not in "iu" or (len(labels) and not -1 <= labels.min() <= labels.max() < len(classes)):
            raise UserError(f"{split}: labels must be whole numbers from 0 to {len(classes) - 1}, the index of a class")
    mean, std = _channel_statistics(splits["train"][0])
    of_tensors = {
        split: Split(
            torch.from_numpy(images),
            torch.from_numpy(labels.astype(np.int64)),
            torch.full((len(images), 4), -1, dtype=torch.int16),
        )
        for split, (images, labels) in splits.items()
    }
    digests = {name: _digest(classes, class_names, split) for name, split in of_tensors.items()}
    return Store(classes, class_names, mean, std, of_tensors, digests)


def packed_store(
    folder: Path, fingerprint: str | None, find_source: Callable[[], Source], workers: int | None, if_unwritable: str
) -> Store:
    """Opens the packed store in `folder`, memory-mapped; packs it first if there is none, or an outdated one.

    fingerprint: of the source files, or None if they are gone and any complete store is accepted.
    find_source: called only if the store must be packed, by one process at a time.
    workers: processes that decode; by default one per core. if_unwritable: what the user can do if `folder` cannot be
    written, for the UserError that is raised then.
    """
    return open_or_make(
        folder,
        partial(_open, folder, fingerprint),
        lambda new: pack(new, find_source(), workers),
        if_unwritable,
    )


def verify(store: Store) -> bool:
    """Whether every pixel, label, box and class name in the store still has its digest (reads everything)."""
    splits = store.splits.items()
    return all(store.digests[name] == _digest(store.classes, store.class_names, split) for name, split in splits)


def _digest(classes: list[str], class_names: list[str], split: Split) -> str:
    images = split.images.numpy()
    step = chunk_length(images.shape[1])
    chunks = [sha256(images[start : start + step]) for start in range(0, len(images), step)]
    return digest(classes, class_names, [*chunks, sha256(split.labels.numpy()), sha256(split.boxes.numpy())])


def _open(folder: Path, fingerprint: str | None, manifest: dict) -> Store:
    """Opens the store in `folder`. Raises ValueError unless it is of this format and of these source files.

    The content of the arrays is not checked; `verify` does that.
    """
    if manifest["format"] != FORMAT:
        raise ValueError("it has another format")
    if fingerprint not in (None, manifest["fingerprint"]):
        raise ValueError("its source files have changed")
    # Copy on write: a tensor must be writable, and writes to it never reach the file.
    splits = {
        name: Split(
            torch.from_numpy(np.load(folder / f"{name}_images.npy", mmap_mode="c")),
            torch.from_numpy(np.load(folder / f"{name}_labels.npy")),
            torch.from_numpy(np.load(folder / f"{name}_boxes.npy")),
        )
        for name in manifest["digests"]
    }
    return Store(
        classes=manifest["classes"],
        class_names=manifest["class_names"],
        mean=tuple(manifest["mean"]),
        std=tuple(manifest["std"]),
        splits=splits,
        digests=manifest["digests"],
    )


def _channel_statistics(images: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Returns mean and standard deviation of pixels / 255, per channel, from exact integer sums."""
    means, stds = [], []
    for channel in range(3):
        histogram = np.bincount(images[..., channel].ravel(), minlength=256).tolist()
        number, total, squares = (sum(n * value**k for value, n in enumerate(histogram)) for k in range(3))
        means.append(total / number / 255)
        stds.append((number * squares - total**2) ** 0.5 / number / 255)
    return tuple(means), tuple(stds)
