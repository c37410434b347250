"""Descriptors of many images' keypoints, computed by several processes and cached on disk.

A folder holds descriptors.bin, M rows of D uint8, offsets.npy (N + 1,) int64 and manifest.json. Its name ends in the
digest of all that determines its content, so a complete folder is up to date.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from bagnet_lightning.data.batches import Images
from bagnet_lightning.data.workers import in_processes
from bagnet_lightning.files import open_or_make
from bagnet_lightning.local_features.bag import Bag
from bagnet_lightning.local_features.detectors import Detector
from bagnet_lightning.progress_bar import progress_bar

FORMAT = 2  # incremented when the files or a detector's output change for the same settings
CHUNK = 128  # images per job


@dataclass(frozen=True)
class Extracted:
    """Local features in `folder`. Not memory-mapped: a memory map would count as memory in use."""

    folder: Path
    binary: bool
    width: int  # D, bytes of a descriptor
    offsets: np.ndarray  # (N + 1,) int64
    seconds: float  # that computing them took

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def without_features(self) -> int:
        return int((np.diff(self.offsets) == 0).sum())

    def read(self, start: int, stop: int) -> Bag:
        first, last = (int(offset) for offset in self.offsets[[start, stop]])
        count, offset = (last - first) * self.width, first * self.width
        descriptors = np.fromfile(self.folder / "descriptors.bin", np.uint8, count, offset=offset)
        return Bag(descriptors.reshape(-1, self.width), self.offsets[start : stop + 1] - first)


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
        offsets = np.load(folder / "offsets.npy")
        return Extracted(folder, detector.binary, detector.descriptor_bytes, offsets, manifest["seconds"])

    return open_or_make(
        folder,
        opened,
        lambda new: _compute(detector, images, new, settings, workers),
        "free some space, or set cache=FOLDER",
    )


def _compute(detector: Detector, images: Images, folder: Path, settings: dict, workers: int | None) -> dict:
    jobs = ((detector, pixels) for pixels in _chunks(images))
    began, counts = time.perf_counter(), [0]
    with open(folder / "descriptors.bin", "wb") as file, progress_bar("local features", len(images)) as advance:
        for bag, _ in in_processes(Detector.describe, jobs, workers):
            bag.descriptors.tofile(file)
            counts += bag.lengths.tolist()
            advance(len(bag))
    np.save(folder / "offsets.npy", np.cumsum(counts, dtype=np.int64))
    return {**settings, "count": len(images), "features": sum(counts), "seconds": time.perf_counter() - began}


def _chunks(images: Images) -> Iterator[np.ndarray]:
    for chosen in images.chosen.split(CHUNK):
        yield images.split.images.index_select(0, chosen).numpy()
