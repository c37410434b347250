"""The user's own images in folders: root/{train,val}/<class>/*, any size and format; packed once."""

import hashlib
import os
from pathlib import Path

import numpy as np

from bagnet_lightning.data.images import image_suffixes
from bagnet_lightning.data.pack import ImageFiles, Source
from bagnet_lightning.data.store import Store, packed_store
from bagnet_lightning.errors import UserError


def open_store(root: str | Path, image_size: int, cache: str | Path | None = None, workers: int | None = None) -> Store:
    """The packed store of the images under `root`, packed anew whenever a file's name, size or time has changed.

    Reads root/train/<class>/* and root/val/<class>/* and, where there is one, root/test/* or root/test/*/* (unlabelled,
    -1). Classes are the folder names in train, sorted. Hidden files, folders deeper down and files whose suffix is none
    of an image are passed over. Every image is decoded and resized as by `images.load_image(path, image_size)`.
    The store is root/.bagnet_store-<image_size>, or cache/<name of root>-<image_size>.store. workers: processes that
    decode, by default one a core.
    Raises UserError for missing or empty folders, unreadable images, and a val class that train lacks.
    """
    root = Path(root)
    labelled = {split: _list_classes(root, split) for split in ("train", "val")}
    classes = sorted(labelled["train"])
    for name in labelled["val"]:
        if name not in labelled["train"]:
            raise UserError(f"{root / 'val' / name} has no counterpart {root / 'train' / name}: rename or remove it")
    unlabelled = _list_test(root / "test")
    names = [name for split in labelled.values() for files in split.values() for name in files] + unlabelled
    fingerprint = _fingerprint(root, names, image_size)

    def find_source() -> Source:
        splits = {}
        for split, files in labelled.items():
            labels = np.repeat(np.arange(len(classes)), [len(files.get(name, ())) for name in classes])
            splits[split] = _without_boxes(root, [path for name in classes for path in files.get(name, ())], labels)
        if unlabelled:
            splits["test"] = _without_boxes(root, unlabelled, np.full(len(unlabelled), -1))
        return Source(root.resolve().name, classes, classes, image_size, True, splits, fingerprint)

    if cache is None:
        folder = root / f".bagnet_store-{image_size}"
    else:
        folder = Path(cache) / f"{root.resolve().name}-{image_size}.store"
    hint = "free some space, or set data.cache=DIR to a folder that can be written"
    return packed_store(folder, fingerprint, find_source, workers, if_unwritable=hint)


def test_files(root: str | Path) -> list[Path]:
    """The images of root/test/* and root/test/*/*. Raises UserError if there is none."""
    files = [Path(root, name) for name in _list_test(Path(root) / "test")]
    if not files:
        raise UserError(f"{Path(root) / 'test'} holds no image: put them there, or use images=FOLDER")
    return files


def _list_classes(root: Path, split: str) -> dict[str, list[str]]:
    """The images of each class, as paths relative to root."""
    folder = root / split
    if not folder.is_dir():
        raise UserError(
            f"{folder.absolute()} is missing: data.root must be a folder that holds train/<class>/* and val/<class>/*"
        )
    classes = {name: _list_images(folder / name, f"{split}/{name}/") for name in _list_folders(folder)}
    if not classes:
        raise UserError(f"{folder} holds no class folders: put the images into {folder}/<class>/")
    for name, images in classes.items():
        if not images:
            raise UserError(f"{folder / name} holds no image: put images directly into it, or remove it")
    return classes


def _list_test(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    nested = [_list_images(folder / name, f"test/{name}/") for name in _list_folders(folder)]
    return _list_images(folder, "test/") + [name for images in nested for name in images]


def _list_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _list_images(folder: Path, prefix: str) -> list[str]:
    """Names of the files in `folder` that look like images, sorted, with `prefix` before them."""
    suffixes = image_suffixes()
    names = (entry.name for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_file())
    return [prefix + name for name in sorted(names) if name.lower().endswith(suffixes)]


def _fingerprint(root: Path, names: list[str], image_size: int) -> str:
    """Hex digest of the names, sizes and modification times of the image files, and of image_size."""
    digest = hashlib.sha256(str(image_size).encode())
    for name in names:
        status = os.stat(f"{root}/{name}")
        digest.update(os.fsencode(f"{name}\t{status.st_size}\t{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def _without_boxes(root: Path, names: list[str], labels: np.ndarray) -> ImageFiles:
    no_boxes = np.full((len(names), 4), -1, np.int16)
    return ImageFiles([f"{root}/{name}" for name in names], labels.astype(np.int64), no_boxes)
