"""Descriptors of many images' keypoints, computed by several processes and cached on disk.

A folder holds descriptors.npy (M, D) uint8, offsets.npy (N + 1,) int64 and manifest.json. Its name ends in the digest
of all that determines its content, so a complete folder is up to date.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from bagnet_lightning.data.batches import Images
from bagnet_lightning.data.workers import in_processes
from bagnet_lightning.files import open_or_make
from bagnet_lightning.local_features.bag import Bag
from bagnet_lightning.local_features.detectors import Detector
from bagnet_lightning.progress_bar import progress_bar

FORMAT = 1  # incremented when a detector's output changes for the same settings
CHUNK = 128  # images per job


@dataclass(frozen=True)
class Extracted:
    """Local features in `folder`. Not memory-mapped: a memory map would count as memory in use."""

    folder: Path
    binary: bool
    offsets: np.ndarray  # (N + 1,) int64
    seconds: float  # that computing them took

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def without_features(self) -> int:
        return int((np.diff(self.offsets) == 0).sum())

    def read(self, start: int, stop: int) -> Bag:
        first, last = (int(offset) for offset in self.offsets[[start, stop]])
        return Bag(_rows(self.folder / "descriptors.npy", first, last), self.offsets[start : stop + 1] - first)


def extracted(detector: Detector, images: Images, cache: Path, workers: int | None) -> Extracted:
    """Returns the local features of `images`, cached below `cache`, where one run at a time computes them if missing.

    workers: processes, by default one per core. Raises UserError if `cache` cannot be written.
    """
    pixels = hashlib.sha256()
    for chunk in _chunks(images):
        pixels.update(chunk)
    settings = {
        "format": FORMAT,
        "detector": type(detector).__name__,
        **asdict(detector),
        "opencv": cv2.__version__,
        "pixels": pixels.hexdigest(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder = cache / f"{type(detector).__name__.lower()}-{digest[:16]}"

    def opened(manifest: dict) -> Extracted:
        return Extracted(folder, detector.binary, np.load(folder / "offsets.npy"), manifest["seconds"])

    return open_or_make(
        folder,
        opened,
        lambda new: _compute(detector, images, new, settings, workers),
        "free some space, or set cache=FOLDER",
    )


def _compute(detector: Detector, images: Images, folder: Path, settings: dict, workers: int | None) -> dict:
    jobs = ((detector, pixels) for pixels in _chunks(images))
    began, counts = time.perf_counter(), [0]
    with (
        open(folder / "descriptors.npy", "wb") as file,
        progress_bar("local features", len(images)) as advance,
    ):
        _write_header(file, 0, detector.descriptor_bytes)
        for bag, _ in in_processes(Detector.describe, jobs, workers):
            bag.descriptors.tofile(file)
            counts += bag.lengths.tolist()
            advance(len(bag))
        _write_header(file, sum(counts), detector.descriptor_bytes)
    np.save(folder / "offsets.npy", np.cumsum(counts, dtype=np.int64))
    return {**settings, "count": len(images), "features": sum(counts), "seconds": time.perf_counter() - began}


def _chunks(images: Images) -> Iterator[np.ndarray]:
    for chosen in images.chosen.split(CHUNK):
        yield images.split.images.index_select(0, chosen).numpy()


def _write_header(file: BinaryIO, rows: int, columns: int) -> None:
    """Writes the header of a .npy file of uint8, whose length does not depend on the rows: it has space for more."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (rows, columns)})


def _rows(path: Path, first: int, last: int) -> np.ndarray:
    """Reads rows `first` to `last` of a .npy file."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        (_, columns), _, dtype = np.lib.format.read_array_header_1_0(file)
        file.seek(first * columns * dtype.itemsize, 1)
        return np.fromfile(file, dtype, (last - first) * columns).reshape(-1, columns)
