"""The user's own images in folders: root/{train,val}/<class>/*, any size and format; packed once."""

import hashlib
import itertools
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bagnet_lightning.data.images import find_images, image_suffixes
from bagnet_lightning.data.pack import ImageFiles, Source
from bagnet_lightning.data.store import Store, packed_store
from bagnet_lightning.errors import UserError


def open_store(
    root: str | Path,
    image_size: int,
    cache: str | Path | None = None,
    workers: int | None = None,
    splits: Sequence[str] = ("train", "val"),
) -> Store:
    """Returns the packed store of the images under `root`, packed again if a file's name, size or time has changed.

    Reads root/<split>/<class>/* of the `splits`, and root/test/* and root/test/*/* if there are any: labelled in a
    class's folder, otherwise -1. Classes are the folder names in train, sorted. Every image is decoded and resized as
    by `images.load_image(path, image_size)`. Hidden files, files without an image's suffix and images in deeper folders
    are skipped, the last with a note.
    The store is root/.bagnet_store-<image_size>, or cache/<name of root>-<digest of its path>-<image_size>.store.
    workers: processes that decode, by default one per core.
    Raises UserError for missing or empty folders, unreadable images, and a val class that train lacks.
    """
    root = Path(root)
    files = {split: _list_classes(root, split) for split in splits}
    classes = sorted(files["train"])
    for name in files.get("val", ()):
        if name not in files["train"]:
            raise UserError(f"{root / 'val' / name} has no counterpart {root / 'train' / name}: rename or remove it")
    if test := _list_test(root / "test"):
        files["test"] = test
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
                where = f"{min(left_out)} is not directly in a class's folder"
                print(f"note: {where}: left out ({len(left_out)} images)", file=sys.stderr)
        if unseen := sorted(files["train"].keys() - files.get("val", files["train"]).keys()):
            print(
                f"note: val lacks {len(unseen)} of the {len(classes)} classes: {', '.join(unseen[:3])}", file=sys.stderr
            )
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


def groups(root: str | Path, split: str, pattern: str) -> list[str]:
    """Returns what a regular expression matches in each image's file name, in the store's order.

    If the expression has a group in parentheses, what that matches. Raises UserError for a name without a match.
    """
    found = []
    for name in itertools.chain.from_iterable(_list_classes(Path(root), split).values()):
        match = re.search(pattern, name.rpartition("/")[2])
        if match is None:
            raise UserError(f"data.group={pattern} matches nothing in the name of {Path(root, name)}")
        found.append(match[1] if match.re.groups else match[0])
    return found


def test_files(root: str | Path) -> list[Path]:
    """Returns the images of root/test/* and root/test/*/*. Raises UserError if there is none."""
    names = [name for images in _list_test(Path(root) / "test").values() for name in images]
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
            raise UserError(f"{folder / name} holds no image: put images directly into it, or remove it")
    return classes


def _list_test(folder: Path) -> dict[str, list[str]]:
    """Returns the images of each folder, and those directly in `folder` under ""; empty if there is no image."""
    if not folder.is_dir():
        return {}
    nested = {name: _list_images(folder / name, f"test/{name}/") for name in _list_folders(folder)}
    images = {"": _list_images(folder, "test/"), **nested}
    return images if any(images.values()) else {}


def _list_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def _list_images(folder: Path, prefix: str) -> list[str]:
    """Returns the names of the files in `folder` with an image's suffix, sorted, with `prefix` before them."""
    suffixes = image_suffixes()
    names = (entry.name for entry in _entries(folder) if entry.is_file())
    return [prefix + name for name in sorted(names) if name.lower().endswith(suffixes)]


def _entries(folder: Path) -> list[os.DirEntry]:
    """Returns the entries of `folder` that are not hidden. Raises UserError for a broken link, as to a missing disk."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    for entry in entries:
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise UserError(f"{entry.path} is a link to nothing: fix or remove it")
    return entries


def _fingerprint(root: Path, names: list[str], image_size: int) -> str:
    """Returns a hex digest of the names, sizes and modification times of the image files, and of image_size."""
    digest = hashlib.sha256(f"{image_size} labelled test".encode())  # stands for how labels are read from the folders
    for name in names:
        status = os.stat(f"{root}/{name}")
        digest.update(os.fsencode(f"{name}\t{status.st_size}\t{status.st_mtime_ns}\n"))
    return digest.hexdigest()
