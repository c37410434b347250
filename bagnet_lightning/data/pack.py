"""Packs image files into a store's folder: arrays and a manifest, written by worker processes."""

import hashlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bagnet_lightning.data.images import PackedChunk, pack_chunk
from bagnet_lightning.data.workers import in_processes
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import sync
from bagnet_lightning.progress_bar import progress_bar

FORMAT = 2  # of packed stores and of how images are decoded: to be raised when either changes
MAX_LISTED = 10  # unusable images named in an error
CHUNK_BYTES = 4 * 2**20  # of pixels that a worker decodes, writes and hashes at a time; part of the format


@dataclass(frozen=True)
class ImageFiles:
    """A split before packing: paths (N), labels (N,) int64, boxes (N, 4) int16 as in Split."""

    paths: list[str]
    labels: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Source:
    """The input of a packed store. resize: images of other sizes are resized to image_size px, otherwise refused.

    fingerprint: hex, changes when the files do.
    """

    classes: list[str]
    class_names: list[str]
    image_size: int
    resize: bool
    splits: dict[str, ImageFiles]
    fingerprint: str


def pack(folder: Path, source: Source, workers: int | None) -> dict:
    """Writes the arrays of `source` into the empty folder `folder`, by `workers` processes (None: one per core).

    Returns the store's manifest.
    Raises UserError, naming the files, if images cannot be decoded; OSError if the folder cannot be written.
    """
    step = chunk_length(source.image_size)
    jobs = {}  # (split, first image): the arguments of images.pack_chunk
    for name, files in source.splits.items():
        np.save(folder / f"{name}_labels.npy", files.labels)
        np.save(folder / f"{name}_boxes.npy", files.boxes)
        shape = (len(files.paths), source.image_size, source.image_size, 3)
        path = folder / f"{name}_images.npy"
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        for start in range(0, len(array), step):
            offset = array.offset + start * array[0].nbytes
            jobs[name, start] = (files.paths[start : start + step], source.image_size, source.resize, path, offset)
    chunks = {}
    with progress_bar("packing images", sum(len(files.paths) for files in source.splits.values())) as advance:
        for key, chunk in zip(jobs, in_processes(pack_chunk, jobs.values(), workers, most=len(jobs)), strict=True):
            chunks[key] = chunk
            advance(len(jobs[key][0]))
            if len(chunks) % 32 == 0:  # periodically, while the workers run, so that little is left for the end
                sync(folder / f"{key[0]}_images.npy")
    if problems := [problem for chunk in chunks.values() for problem in chunk.problems]:
        more = f" (and {len(problems) - MAX_LISTED} more)" if len(problems) > MAX_LISTED else ""
        raise UserError("; ".join(problems[:MAX_LISTED]) + more)
    _note_images_of_train(source, chunks)
    mean, std = _mean_and_std(
        [chunk for (name, _), chunk in chunks.items() if name == "train"],
        count=len(source.splits["train"].paths) * source.image_size**2,
    )
    digests = {}
    for name, files in source.splits.items():
        hashes = [chunk.sha256 for (split, _), chunk in chunks.items() if split == name]
        digests[name] = digest(source.classes, source.class_names, [*hashes, sha256(files.labels), sha256(files.boxes)])
    return {
        "format": FORMAT,
        "fingerprint": source.fingerprint,
        "digests": digests,
        "mean": mean,
        "std": std,
        "classes": source.classes,
        "class_names": source.class_names,
    }


def _note_images_of_train(source: Source, chunks: dict[tuple[str, int], PackedChunk]) -> None:
    """Prints a note if images of train are in another split too, where a network knows their class by heart."""
    seen = {image for (name, _), chunk in chunks.items() if name == "train" for image in chunk.images}
    for name in [name for name in source.splits if name != "train"]:
        images = [image for (split, _), chunk in chunks.items() if split == name for image in chunk.images]
        paths = [path for path, image in zip(source.splits[name].paths, images, strict=True) if image in seen]
        if paths:
            print(f"note: images of {name} that are in train too: {len(paths)}, such as {paths[0]}", file=sys.stderr)


def _mean_and_std(chunks: list[PackedChunk], count: int) -> tuple[list[float], list[float]]:
    """Returns each channel's mean and deviation of pixels / 255, exact but for rounding: the sums are integers."""
    sums = [sum(chunk.sums[channel] for chunk in chunks) for channel in range(3)]
    squares = [sum(chunk.squares[channel] for chunk in chunks) for channel in range(3)]
    mean = [total / (255 * count) for total in sums]
    std = [math.sqrt(count * square - total**2) / (255 * count) for total, square in zip(sums, squares, strict=True)]
    return mean, std


def chunk_length(image_size: int) -> int:
    """Returns the number of image_size x image_size px images that are decoded, written and hashed together."""
    return min(max(1, CHUNK_BYTES // (image_size * image_size * 3)), 4096)  # sums of 4096 squares fit 32 bits


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def digest(classes: list[str], class_names: list[str], hashes: list[str]) -> str:
    """Returns the digest of a split. hashes: the sha256 of its chunks of images, of its labels and of its boxes."""
    return hashlib.sha256(json.dumps([classes, class_names, hashes]).encode()).hexdigest()
