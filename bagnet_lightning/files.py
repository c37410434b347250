"""Files that are written whole or not at all, folders that are made once, locks, and errors of out=."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, TemporaryFile
from typing import BinaryIO, NoReturn, TypeVar

from bagnet_lightning.errors import UserError

log = logging.getLogger(__name__)
LEFT_OVER = ".bagnet-partial"  # the suffix of temporary folders
LOCK = ".bagnet-lock"
OF_DISKS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")  # folders that hold nothing of the user's
Made = TypeVar("Made")


def write_text(path: Path, text: str) -> None:
    """Writes `path` whole or not at all: under another name beside it, then renamed. Raises OSError."""
    write_bytes(path, text.encode("utf-8"))


def csv_of(rows: Iterable[Iterable]) -> str:
    """Returns rows of cells as the text of a CSV file; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)  # with "\n" Python does not quote a "\r"
    return text.getvalue().replace("\r\n", "\n")


def csv_of_records(records: list[dict]) -> str:
    """Returns `csv_of` a line with the keys of the first record, and a line for the values of each."""
    return csv_of([records[0], *([record[name] for name in records[0]] for record in records)])


def write_bytes(path: Path, content: bytes | memoryview, read_back: bool = False) -> None:
    """Writes bytes as `write_text` does. read_back: raises OSError also if the disk then holds something else."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w+b") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name without the content
            if read_back:
                _read_back(file, content)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk's error does not name the file
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written
            temporary.unlink(missing_ok=True)


def _read_back(file: BinaryIO, content: bytes | memoryview) -> None:
    """Raises OSError unless the disk holds `content`."""
    if hasattr(os, "posix_fadvise"):  # read from the disk, not from the page cache
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    for start in range(0, len(content), 2**20):
        if file.read(2**20) != bytes(content[start : start + 2**20]):  # a memoryview compares byte by byte
            raise OSError(errno.EIO, f"it does not read back as it was written, near byte {start}")


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file as hex digits; the file need not fit into memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**18):
            digest.update(block)
    return digest.hexdigest()


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder in and below `folder` with the names of its files; none hidden, none of OF_DISKS.

    Follows links, but enters each folder once. Raises OSError for a folder that cannot be read.
    """

    def unreadable(error: OSError) -> NoReturn:
        raise error

    entered = set()
    for parent, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        place = os.path.realpath(parent)
        if place in entered:
            folders.clear()
            continue
        entered.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in OF_DISKS)
        yield parent, [name for name in names if not name.startswith(".")]


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises UserError if the block fails to write to `out`, the value of out=."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {out} ({reason}); choose another folder with out=FOLDER") from error


def writable(out: Path) -> Path:
    """Returns `out`, created if needed. Raises UserError, before the work, if nothing can be written there."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()
    return out


def open_or_make(
    folder: Path, opened: Callable[[dict], Made], make: Callable[[Path], dict], if_unwritable: str
) -> Made:
    """Returns `opened(manifest)` of `folder`, which `make` first fills if it is incomplete or refused by `opened`.

    opened: raises ValueError for a manifest that is not the requested one. make: fills an empty folder and returns the
    manifest, which is written with the sizes of all files as manifest.json, so that only a complete folder is used.
    One process at a time makes it; the new folder replaces an old one when everything is on the disk.
    Raises UserError, with the advice `if_unwritable`, if the folder cannot be written.
    """
    found = _opened(folder, opened)
    if found is not None:
        return found
    try:
        with locked(folder.parent, wait=True) as free:
            if free:
                for left_over in folder.parent.glob(f".*{LEFT_OVER}"):  # of processes that were killed
                    rmtree(left_over, ignore_errors=True)
            found = _opened(folder, opened)  # another process may have made it during the wait
            if found is None:
                _make(folder, make)
                found = _opened(folder, opened)
    except OSError as error:
        found = _opened(folder, opened)  # where files cannot be locked another process may have made it first
        if found is None:
            raise UserError(f"cannot make {folder}: {error}; {if_unwritable}") from error
    if found is None:
        raise UserError(f"{folder} has changed while it was made; give the same command again")
    return found


def _make(folder: Path, make: Callable[[Path], dict]) -> None:
    with temporary_folder(folder) as temporary:
        new = temporary / "new"
        new.mkdir()
        manifest = make(new)
        manifest["bytes"] = {path.name: path.stat().st_size for path in sorted(new.iterdir())}
        (new / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        for path in new.iterdir():
            sync(path)
        if folder.exists():
            folder.rename(temporary / "old")
        new.rename(folder)


def _opened(folder: Path, opened: Callable[[dict], Made]) -> Made | None:
    """Returns `opened(manifest)`; None if the folder is incomplete, by its files' sizes, or `opened` refuses it."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, size in manifest["bytes"].items():
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{name} has another size")
        return opened(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if folder.exists():
            log.info("%s is not used: %s", folder, error)
        return None


def sync(path: Path) -> None:
    """Returns once the disk has the whole file, so that a power cut leaves no gaps in it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target`, which is removed at the end with what is left in it."""
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=LEFT_OVER) as temporary:
        yield Path(temporary)


@contextlib.contextmanager
def locked(folder: Path, wait: bool) -> Iterator[bool | None]:
    """Yields whether this process has locked `folder`, waiting for it if `wait`; None: no locks on this file system.

    The lock is on a file in it, which is removed at the end: NFS would lock a folder for this machine alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, free = _open_locked(folder / LOCK, wait)
    try:
        yield free
    finally:
        if free is not False:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
        os.close(descriptor)


def _open_locked(path: Path, wait: bool) -> tuple[int, bool | None]:
    for attempt in itertools.count():
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            if not path.exists():
                raise
            descriptor = os.open(path, os.O_RDONLY)  # another user's, which NFS does not lock then
        free = _lock(descriptor, wait, path.parent)
        with contextlib.suppress(OSError):
            # Some file systems number a file anew at each look: better one lock too few than to wait forever.
            if not free or attempt == 1000 or os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, free
        os.close(descriptor)  # the process before has removed this file, and others lock a new one


def _lock(descriptor: int, wait: bool, folder: Path) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if wait:
            log.info("another process is at work in %s: waiting for it", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        return wait
    except OSError:  # a file system without locks: two processes may do the same work, and the last one's stays
        return None
    return True
