"""Tiny ImageNet: found under a root, or downloaded there; packed once."""

import hashlib
import os
import time
import zlib
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from zipfile import BadZipFile, ZipFile

import numpy as np
from rich.progress import DownloadColumn, TransferSpeedColumn

from bagnet_lightning.data.pack import ImageFiles, Source
from bagnet_lightning.data.store import Store, packed_store
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import sha256_of, temporary_folder
from bagnet_lightning.progress_bar import progress_bar

NAME = "tiny-imagenet-200"
IMAGE_SIZE = 64
BLOCK_BYTES = 2**18
ATTEMPTS = 5
RETRY_PAUSE_S = 1.0  # before the second attempt; doubles with each
TIMEOUT_S = 30


def open_store(root: str | Path, url: str, sha256: str, workers: int | None = None) -> Store:
    """Returns the packed store of the Tiny ImageNet under `root`, made there if needed as tiny-imagenet-200.store.

    Looks for the folder root/tiny-imagenet-200 (or root itself, if it is this folder), then for the official zip beside
    it, then downloads that from `url`; a zip is used only if it has this `sha256`. A packed store needs no folder.
    Splits: train and val with labels and boxes; test, if the folder has it, without (-1), sorted by number. Labels are
    positions in the sorted wnids. workers: processes that decode, by default one per core.
    Raises UserError if anything needed is missing, damaged or cannot be downloaded.
    """
    root = Path(root)
    folder = _find_folder(root)
    fingerprint = _fingerprint(folder) if folder else None

    def find_source() -> Source:
        found = _find_folder(root) or _unzip(_find_zip(root, url, sha256), root)
        return _read_layout(found, fingerprint or _fingerprint(found))

    return packed_store(
        root / f"{NAME}.store",
        fingerprint,
        find_source,
        workers,
        if_unwritable=f"free some space, or set data.root to a writable folder (a link in it to {NAME} will do)",
    )


def test_files(root: str | Path) -> list[Path]:
    """Returns the unlabelled test images under `root`, sorted by number. Raises UserError if there are none."""
    folder = _find_folder(Path(root))
    images = folder and folder / "test" / "images"
    if not images or not (names := _image_names(images)):
        raise UserError(f"{root} holds no {NAME}/test/images: unpack the official zip there, or set data.root=DIR")
    return [images / name for name in names]


# The folder -----------------------------------------------------------------------------------------------------------


def _find_folder(root: Path) -> Path | None:
    if (root / NAME).is_dir():
        return root / NAME
    return root if (root / "wnids.txt").is_file() else None


def _fingerprint(folder: Path) -> str:
    """Returns a hex digest of the lists in an unpacked folder and of the names of its images.

    Times and pixels are left out: the official images never change, and a copied folder should not be packed again.
    """
    digest = hashlib.sha256(b"first synonyms")  # stands for how class names are read from the lists
    for path in (folder / "wnids.txt", folder / "words.txt", folder / "val" / "val_annotations.txt"):
        digest.update(path.read_bytes() if path.is_file() else b"")
    for images in [*sorted(folder.glob("train/*/images")), folder / "val" / "images", folder / "test" / "images"]:
        digest.update(os.fsencode("\n".join([images.parent.name, *_image_names(images)])))
    return digest.hexdigest()


def _read_layout(folder: Path, fingerprint: str) -> Source:
    classes = sorted(_read_lines(folder, "wnids.txt"))
    words = dict(line.split("\t", 1) for line in _read_lines(folder, "words.txt") if "\t" in line)
    splits = {"train": _read_train(folder, classes), "val": _read_val(folder, classes)}
    test = folder / "test" / "images"
    names = _image_names(test)
    if names:
        no_labels = np.full(len(names), -1, np.int64)
        splits["test"] = ImageFiles([f"{test}/{name}" for name in names], no_labels, _boxes([None] * len(names)))
    return Source(
        classes=classes,
        class_names=[words.get(wnid, wnid).partition(",")[0] for wnid in classes],  # first synonyms, all different
        image_size=IMAGE_SIZE,
        resize=False,
        splits=splits,
        fingerprint=fingerprint,
    )


def _read_train(folder: Path, classes: list[str]) -> ImageFiles:
    paths, labels, boxes = [], [], []
    for label, wnid in enumerate(classes):
        images = folder / "train" / wnid / "images"
        names = _image_names(images)
        if not names:
            raise _incomplete(folder, images, "holds no image" if images.is_dir() else "is missing")
        table = _read_table(folder, f"train/{wnid}/{wnid}_boxes.txt", columns=5)
        box_of = {name: box for name, *box in table}
        paths += [f"{images}/{name}" for name in names]
        labels += [label] * len(names)
        boxes += [box_of.get(name) for name in names]
    return ImageFiles(paths, np.array(labels, np.int64), _boxes(boxes))


def _read_val(folder: Path, classes: list[str]) -> ImageFiles:
    images = folder / "val" / "images"
    table = _read_table(folder, "val/val_annotations.txt", columns=6)
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    present = set(_image_names(images))
    for name, wnid, *_ in table:
        if name not in present:
            raise _incomplete(folder, images / name, "is missing")
        if wnid not in label_of:
            raise _incomplete(folder, folder / "val" / "val_annotations.txt", f"names {wnid}, which wnids.txt lacks")
    labels = np.array([label_of[row[1]] for row in table], np.int64)
    return ImageFiles([f"{images}/{row[0]}" for row in table], labels, _boxes([row[2:] for row in table]))


def _read_table(folder: Path, name: str, columns: int) -> list[list[str]]:
    """Returns the rows of a tab-separated file, whose last four columns are the coordinates of a box."""
    rows = [line.split("\t") for line in _read_lines(folder, name)]
    for number, row in enumerate(rows, start=1):
        if len(row) != columns or not "".join(row[-4:]).isdecimal():
            raise _incomplete(folder, folder / name, f"is damaged in line {number}")
    return rows


def _read_lines(folder: Path, name: str) -> list[str]:
    try:
        lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise _incomplete(folder, folder / name, f"cannot be read ({error.strerror})") from error
    if not lines:
        raise _incomplete(folder, folder / name, "is empty")
    return lines


def _image_names(folder: Path) -> list[str]:
    """Returns the names of the images in a folder, sorted by number; none if there is no folder."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(sorted(name for name in names if name.endswith(".JPEG")), key=len)


def _boxes(boxes: list[list[str] | None]) -> np.ndarray:
    return np.array([box or [-1] * 4 for box in boxes], np.int64).astype(np.int16)


def _incomplete(folder: Path, path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}: unpack the official zip again, or remove {folder} to have it done")


# The zip --------------------------------------------------------------------------------------------------------------


def _find_zip(root: Path, url: str, sha256: str) -> Path:
    """Returns the path of the official zip under root, downloaded if it is not there."""
    path = root / f"{NAME}.zip"
    if path.exists():
        if sha256_of(path) != sha256:
            raise UserError(
                f"{path} is damaged or not the official file (by its sha256): remove it to download it afresh"
            )
        return path
    part = path.with_name(f"{path.name}.part")  # kept if the download is interrupted; the next one continues it
    try:
        _download(url, part)
    except (URLError, HTTPException, ConnectionError, TimeoutError, SSLError, ValueError) as error:
        raise UserError(
            f"Tiny ImageNet is not in {root.absolute()} and cannot be downloaded from {url} "
            f"({getattr(error, 'reason', error)}): set data.root=DIR (or BAGNET_DATA) to the folder that holds {NAME} "
            "or its zip, or use data=textures, which needs no files"
        ) from error
    if sha256_of(part) != sha256:
        part.unlink()
        raise UserError(
            f"{url} did not send the official file (by its sha256), so nothing of it is kept: try again, "
            f"or put the file at {path} yourself"
        )
    return part.rename(path)


def _download(url: str, part: Path) -> None:
    """Downloads what `part` lacks of `url`; retries if the connection breaks or the server has an error."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _download_rest(url, part)
        except (URLError, HTTPException, ConnectionError, TimeoutError, SSLError) as error:
            refused = error.code < 500 if isinstance(error, HTTPError) else isinstance(error, URLError) and attempt == 1
            if refused or attempt == ATTEMPTS:
                raise
            time.sleep(RETRY_PAUSE_S * 2 ** (attempt - 1))


def _download_rest(url: str, part: Path) -> None:
    received = part.stat().st_size if part.exists() else 0
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={received}-"} if received else {}), timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code != 416:
            raise
        if error.headers["Content-Range"] == f"bytes */{received}":
            return  # the file is already complete
        part.unlink()
        raise ConnectionError("the server could not continue a partial download") from error
    with response:
        if response.status != 206:
            received = 0  # the server sends it from the beginning
        length = response.headers["Content-Length"]
        total = received + int(length) if length else None
        columns = DownloadColumn(), TransferSpeedColumn()
        with (
            open(part, "ab" if received else "wb") as file,
            progress_bar(f"downloading {NAME}", total, *columns) as advance,
        ):
            advance(received)
            while block := response.read(BLOCK_BYTES):
                file.write(block)
                advance(len(block))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError("the connection broke off")


def _unzip(path: Path, root: Path) -> Path:
    """Unpacks the zip to root/tiny-imagenet-200, completely or not at all."""
    folder = root / NAME
    try:
        with ZipFile(path) as archive, temporary_folder(folder) as temporary:
            members = archive.infolist()
            for member in members:
                parts = member.filename.split("/")
                if parts[0] != NAME or ".." in parts or "\\" in member.filename:
                    raise UserError(
                        f"{path} holds {member.filename!r}, which is not inside {NAME}/: do not use this file"
                    )
            with progress_bar("unpacking", len(members)) as advance:
                for member in members:
                    archive.extract(member, temporary)
                    advance(1)
            return (temporary / NAME).rename(folder)
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} cannot be unpacked ({error}): remove it to download it afresh") from error
