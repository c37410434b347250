"""The user's own images in folders: root/{train,val}/<class>/, any size and format; packed once."""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bagnet_lightning.data.images import check_name, find_images, image_suffixes, load_image
from bagnet_lightning.data.pack import ImageFiles, Source
from bagnet_lightning.data.store import Store, packed_store
from bagnet_lightning.data.workers import in_processes
from bagnet_lightning.errors import UserError
from bagnet_lightning.names import find_class
from bagnet_lightning.progress_bar import progress_bar


def open_store(
    root: str | Path,
    image_size: int,
    cache: str | Path | None = None,
    workers: int | None = None,
    splits: Sequence[str] = ("train", "val"),
) -> Store:
    """Returns the packed store of the images under `root`, packed again if a file's name, size or time has changed.

    Reads the images in and below root/<split>/<class> of the `splits` and of test, if there is one; test's labels are
    -1 if none of its folders is a class's, or for images directly in test. Classes are the folder names in train,
    sorted. Every image is decoded and resized as by `images.load_image(path, image_size)`. Hidden files and folders,
    and files without an image's suffix are skipped, and images beside the classes' folders, with a note.
    The store is root/.bagnet_store-<image_size>, or cache/<name of root>-<digest of its path>-<image_size>.store.
    workers: processes that decode, by default one per core.
    Raises UserError for missing or empty folders, unreadable images, and a class of val or test that train lacks.
    """
    root = Path(root)
    files = {split: _list_classes(root, split) for split in splits}
    classes = sorted(files["train"])
    if test := _list_test(root / "test"):
        files["test"] = test
    for split in ("val", "test"):
        folders = {*files.get(split, ())} - {""}
        strange = sorted(folders - {*classes})
        if strange and (split == "val" or folders & {*classes}):
            missing = root / "train" / strange[0]
            raise UserError(f"{root / split / strange[0]} has no counterpart {missing}: rename or remove it")
    names = {split: [name for images in by_folder.values() for name in images] for split, by_folder in files.items()}
    fingerprint = _fingerprint(root, [name for split in names.values() for name in split], image_size)

    def find_source() -> Source:
        packed = {}
        for split, by_folder in files.items():
            labels = [classes.index(name) if name in classes else -1 for name in by_folder]
            labels = np.repeat(np.array(labels, np.int64), [len(images) for images in by_folder.values()])
            no_boxes = np.full((len(labels), 4), -1, np.int16)
            packed[split] = ImageFiles([f"{root}/{name}" for name in names[split]], labels, no_boxes)
            if left_out := {*find_images(root / split)} - {root / name for name in names[split]}:
                where = f"{min(left_out)} is not in a class's folder"
                print(f"note: {where}: left out ({len(left_out)} images)", file=sys.stderr)
        return Source(classes, classes, image_size, True, packed, fingerprint)

    if cache is None:
        folder = root / f".bagnet_store-{image_size}"
    else:
        folder = Path(cache) / f"{name_in_cache(root)}-{image_size}.store"
    hint = "free some space, or set data.cache=DIR to a folder that can be written"
    return packed_store(folder, fingerprint, find_source, workers, if_unwritable=hint)


def name_in_cache(root: Path) -> str:
    """Returns the first part of the names of a root's stores in a cache: its own name, and a digest of its path."""
    root = root.resolve()
    return f"{root.name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"


def files(root: str | Path, split: str) -> list[str]:
    """Returns the images of a split in the store's order, as paths relative to root. Raises UserError."""
    by_folder = _list_test(Path(root, split)) if split == "test" else _list_classes(Path(root), split)
    return [name for images in by_folder.values() for name in images]


def labelled_images(
    folder: Path, classes: list[str], class_names: list[str], size: int
) -> tuple[list[str], Tensor, Tensor]:
    """Decodes the images in and below `folder`/CLASS, where CLASS is the identifier or name of one of `classes`.

    size: as for images.load_image. Returns names relative to `folder`, labels (N,) and pixels (N, size, size, 3) uint8.
    Raises UserError for another folder, or an image that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"images={folder} must be a folder that holds <class>/*")
    names, labels = [], []
    for name in _list_folders(folder):
        label = find_class(name, classes, class_names, folder / name)
        of_class = _list_images(folder / name, f"{name}/")
        names += of_class
        labels += [label] * len(of_class)
    if not names:
        raise UserError(f"{folder} holds no class folders with images: put the images into {folder}/<class>/")
    if left_out := {*find_images(folder)} - {folder / name for name in names}:
        print(f"note: {min(left_out)} is not in a class's folder: left out ({len(left_out)} images)", file=sys.stderr)
    decoded = in_processes(load_image, ((folder / name, size) for name in names), None, most=len(names))
    with progress_bar("reading images", len(names)) as advance:
        pixels = torch.empty(len(names), size, size, 3, dtype=torch.uint8)
        for place, image in zip(pixels, decoded, strict=True):
            place.copy_(torch.from_numpy(image))
            advance(1)
    return names, torch.tensor(labels), pixels


def test_files(root: str | Path) -> list[Path]:
    """Returns the images in and below root/test. Raises UserError if there is none."""
    names = files(root, "test")
    if not names:
        raise UserError(f"{Path(root) / 'test'} holds no image: put them there, or use images=FOLDER")
    return [Path(root, name) for name in names]


def _list_classes(root: Path, split: str) -> dict[str, list[str]]:
    """Returns the images of each class, as paths relative to root."""
    folder = root / split
    if not folder.is_dir():
        raise UserError(
            f"{folder.absolute()} is missing: data.root must be a folder that holds train/<class>/* and val/<class>/* "
            "(or train alone, with data.holdout=0.1)"
        )
    classes = {name: _list_images(folder / name, f"{split}/{name}/") for name in _list_folders(folder)}
    if not classes:
        raise UserError(f"{folder} holds no class folders: put the images into {folder}/<class>/")
    for name, images in classes.items():
        if not images:
            raise UserError(f"{folder / name} holds no image: put images into it, or remove it")
    return classes


def _list_test(folder: Path) -> dict[str, list[str]]:
    """Returns the images of each folder, and those directly in `folder` under ""; empty if there is no image."""
    if not folder.is_dir():
        return {}
    beside = [f"test/{entry.name}" for entry in _entries(folder) if _is_image(entry)]
    nested = {name: _list_images(folder / name, f"test/{name}/") for name in _list_folders(folder)}
    images = {"": beside, **nested}
    return images if any(images.values()) else {}


def _list_folders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _list_images(folder: Path, prefix: str, above: tuple[str, ...] = ()) -> list[str]:
    """Returns the paths of the images in and below `folder`, folder by folder sorted, with `prefix` before them.

    above: the real paths of the folders that `folder` is in. Raises UserError for a link to one of them.
    """
    images, above = [], (*above, os.path.realpath(folder))
    for entry in _entries(folder):
        if entry.is_dir():
            if entry.is_symlink() and any(Path(place).is_relative_to(os.path.realpath(entry)) for place in above):
                raise UserError(f"{entry.path} is a link to a folder that it is in: remove this link")
            images += _list_images(folder / entry.name, f"{prefix}{entry.name}/", above)
        elif _is_image(entry):
            images.append(prefix + entry.name)
    return images


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(image_suffixes()) and entry.is_file()


def _entries(folder: Path) -> list[os.DirEntry]:
    """Returns the entries of `folder` that are not hidden, sorted.

    Raises UserError for a link to nothing, and for a name that is not UTF-8.
    """
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    entries.sort(key=lambda entry: entry.name)
    for entry in entries:
        check_name(entry.path)
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise UserError(f"{entry.path} is a link to nothing: fix or remove it")
    return entries


def _fingerprint(root: Path, names: list[str], image_size: int) -> str:
    """Returns a hex digest of the names, sizes and modification times of the image files, and of image_size."""
    read = "labelled test"  # stands for how labels are read from the folders, and pixels from files
    if any(name.lower().endswith((".tif", ".tiff")) for name in names):
        read += ", white is 0"
    digest = hashlib.sha256(f"{image_size} {read}".encode())
    for name in names:
        status = os.stat(f"{root}/{name}")
        digest.update(os.fsencode(f"{name}\t{status.st_size}\t{status.st_mtime_ns}\n"))
    return digest.hexdigest()
