"""Images in memory or packed on disk: one uint8 array a split, with labels, boxes and class names."""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from shutil import rmtree
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, ProgressColumn
from torch import Tensor

from bagnet_lightning.data.images import PackedChunk
from bagnet_lightning.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 1  # of packed stores; also stands for how images are decoded, so a change of either raises it
CHUNK_BYTES = 4 * 2**20  # of pixels that a worker decodes, writes and hashes at a time; part of the format
MAX_WORKERS = 16  # a worker holds 50 MiB, and disks are the limit by then
LEFT_OVER = ".bagnet-partial"  # ends the names of temporary folders


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


@dataclass(frozen=True)
class ImageFiles:
    """A split that is still image files: paths (N), labels (N,) int64, boxes (N, 4) int16 as in Split."""

    paths: list[str]
    labels: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Source:
    """What a store is packed from. resize: images of other sizes are resized to image_size px, otherwise refused.

    fingerprint: hex, changes when the files do.
    """

    name: str
    classes: list[str]
    class_names: list[str]
    image_size: int
    resize: bool
    splits: dict[str, ImageFiles]
    fingerprint: str


def packed_store(
    folder: Path, fingerprint: str | None, find_source: Callable[[], Source], workers: int | None, if_unwritable: str
) -> Store:
    """Opens the packed store in `folder`, memory-mapped; packs it first where there is none, or not this one.

    fingerprint: of the source files, or None where they are gone and any whole store will do.
    find_source: called only if the store must be packed, by one process at a time.
    workers: processes that decode; by default one a core. if_unwritable: what the user can do if `folder` cannot be
    written, for the UserError that is raised then.
    """
    store = _open(folder, fingerprint)
    if store is not None:
        return store
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _one_process_at_a_time(folder.parent):
            store = _open(folder, fingerprint)  # somebody else may have packed it while we waited
            if store is not None:
                return store
            source = find_source()
            with temporary_folder(folder) as temporary:
                _pack(temporary / "new", source, workers or min(os.cpu_count() or 1, MAX_WORKERS))
                if folder.exists():
                    folder.rename(temporary / "old")
                (temporary / "new").rename(folder)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error}; {if_unwritable}") from error
    store = _open(folder, source.fingerprint)
    assert store is not None, f"{folder} was packed and cannot be opened"
    return store


def verify(store: Store) -> bool:
    """Whether every pixel, label, box and name in the store still has its digest (reads everything)."""
    hashes = {}
    for name, split in store.splits.items():
        images = split.images.numpy()
        step = _chunk_length(images.shape[1])
        chunks = [_sha256(images[start : start + step]) for start in range(0, len(images), step)]
        hashes[name] = [*chunks, _sha256(split.labels.numpy()), _sha256(split.boxes.numpy())]
    return store.digest == _digest(store.name, store.classes, store.class_names, hashes)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, removed with what is left in it at the end."""
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=LEFT_OVER) as temporary:
        yield Path(temporary)


@contextlib.contextmanager
def progress_bar(description: str, total: int | None, *columns: ProgressColumn) -> Iterator[Callable[[int], None]]:
    """Yields a function that advances a bar on the terminal; where stderr is no terminal there is no bar."""
    columns = columns or (MofNCompleteColumn(),)
    console = Console(stderr=True)
    bar = Progress(*Progress.get_default_columns(), *columns, console=console, disable=not sys.stderr.isatty())
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)


@contextlib.contextmanager
def _one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Waits until no other process is in here with the same folder, then removes what killed ones left behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is preparing data in %s: waiting for it", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: two processes may do the same work, and the last one's stays
            yield
            return
        for left_over in folder.glob(f".*{LEFT_OVER}"):
            rmtree(left_over, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def _open(folder: Path, fingerprint: str | None) -> Store | None:
    """The store in `folder`, or None if there is none that is whole, of this format and of these source files.

    Cheap: files must exist and have the right sizes; `verify` reads them.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            raise ValueError("it has another format")
        if fingerprint not in (None, manifest["fingerprint"]):
            raise ValueError("its source files have changed")
        for name, size in manifest["bytes"].items():
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{name} has another size")
        # Copy on write: a tensor must be writable, and what is written to it never reaches the file.
        splits = {
            name: Split(
                torch.from_numpy(np.load(folder / f"{name}_images.npy", mmap_mode="c")),
                torch.from_numpy(np.load(folder / f"{name}_labels.npy")),
                torch.from_numpy(np.load(folder / f"{name}_boxes.npy")),
            )
            for name in manifest["splits"]
        }
        return Store(
            name=manifest["name"],
            classes=manifest["classes"],
            class_names=manifest["class_names"],
            mean=tuple(manifest["mean"]),
            std=tuple(manifest["std"]),
            splits=splits,
            digest=manifest["digest"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if folder.exists():
            log.info("%s is not used: %s", folder, error)
        return None


def _pack(folder: Path, source: Source, workers: int) -> None:
    """Writes the store of `source` into the new folder `folder`."""
    folder.mkdir()
    step = _chunk_length(source.image_size)
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
        for key, chunk in _work(jobs, min(workers, len(jobs))):
            chunks[key] = chunk
            advance(len(jobs[key][0]))
            if len(chunks) % 32 == 0:  # now and then, beside the workers, so that little is left for the end
                _sync(folder / f"{key[0]}_images.npy")
    mean, std = _mean_and_std(
        [chunk for (name, _), chunk in chunks.items() if name == "train"],
        count=len(source.splits["train"].paths) * source.image_size**2,
    )
    hashes = {
        name: [chunks[key].sha256 for key in jobs if key[0] == name] + [_sha256(files.labels), _sha256(files.boxes)]
        for name, files in source.splits.items()
    }
    manifest = {
        "format": FORMAT,
        "name": source.name,
        "fingerprint": source.fingerprint,
        "digest": _digest(source.name, source.classes, source.class_names, hashes),
        "mean": mean,
        "std": std,
        "splits": list(source.splits),
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "classes": source.classes,
        "class_names": source.class_names,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    for path in folder.iterdir():
        _sync(path)


def _work(jobs: dict[tuple, tuple], workers: int) -> Iterator[tuple[tuple, PackedChunk]]:
    """Has worker processes do the jobs; yields the key of each with its result, as they finish.

    The processes are not multiprocessing's: those would import the user's main module first, and with it torch.
    """
    command = f"import sys; sys.path[:] = {sys.path!r}; from bagnet_lightning.data.images import serve; serve()"
    idle = SimpleQueue()

    def run(job: tuple) -> PackedChunk:
        worker = idle.get()
        try:
            pickle.dump(job, worker.stdin)
            worker.stdin.flush()
            answer = pickle.load(worker.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise UserError("a process that packed images was killed: is there enough memory?") from None
        finally:
            idle.put(worker)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with contextlib.ExitStack() as stack:
        for _ in range(workers):
            idle.put(stack.enter_context(Popen([sys.executable, "-c", command], stdin=PIPE, stdout=PIPE)))
        threads = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(threads.shutdown, cancel_futures=True)
        futures = {threads.submit(run, job): key for key, job in jobs.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _mean_and_std(chunks: list[PackedChunk], count: int) -> tuple[list[float], list[float]]:
    """Of pixels / 255, a channel each, exact to the last rounding: the sums are integers."""
    sums = [sum(chunk.sums[channel] for chunk in chunks) for channel in range(3)]
    squares = [sum(chunk.squares[channel] for chunk in chunks) for channel in range(3)]
    mean = [total / (255 * count) for total in sums]
    std = [math.sqrt(count * square - total**2) / (255 * count) for total, square in zip(sums, squares, strict=True)]
    return mean, std


def _sync(path: Path) -> None:
    """Returns once the disk has what was written: a store that is found after a power cut must not hold gaps."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _chunk_length(image_size: int) -> int:
    return min(max(1, CHUNK_BYTES // (image_size * image_size * 3)), 4096)  # sums of 4096 squares fit 32 bits


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _digest(name: str, classes: list[str], class_names: list[str], hashes: dict[str, list[str]]) -> str:
    return hashlib.sha256(json.dumps([name, classes, class_names, hashes]).encode()).hexdigest()
