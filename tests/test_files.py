"""Files that matter are whole, or as they were."""

import csv
import errno
import fcntl
import io
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bagnet_lightning.files import csv_of, locked, open_or_make, temporary_folder, walk, write_bytes, write_text


@pytest.mark.parametrize(("write", "old", "new"), [(write_text, "old", "x" * 2000), (write_bytes, b"old", b"x" * 2000)])
def test_a_disk_that_takes_only_a_part_keeps_the_old_file(tmp_path, write, old, new):
    path = tmp_path / "result.json"
    write(path, old)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes; more is an error, like a full disk
    try:
        with pytest.raises(OSError, match=f"File too large: {re.escape(repr(str(path)))}"):
            write(path, new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["result.json"]
    with path.open("rb") as reader:
        write(path, new)
        assert reader.read() == b"old"  # another file has its name now: nobody sees a part of it
    assert path.read_bytes() == b"x" * 2000


TAKE_TURNS = """
import sys, time
from pathlib import Path
from bagnet_lightning.files import locked
folder = Path(sys.argv[1])
for _ in range(50):
    with locked(folder, wait=True) as free:
        assert free
        (folder / "inside").touch(exist_ok=False)  # raises if two are in here
        time.sleep(0.001)
        (folder / "inside").unlink()
"""


def test_a_folder_is_locked_for_one_process_at_a_time_and_nothing_is_left(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", TAKE_TURNS, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    with locked(tmp_path, wait=False) as one:
        with locked(tmp_path, wait=False) as other:
            assert (one, other) == (True, False)
        with locked(tmp_path, wait=False) as other:  # the loser has left the lock to its owner
            assert not other
    assert not os.listdir(tmp_path)


def test_a_file_system_that_numbers_files_anew_is_no_endless_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    with locked(tmp_path, wait=True) as free:
        assert free


def test_the_lock_that_another_user_left_is_taken_over(tmp_path, monkeypatch):
    system_open = os.open

    def refuse_writing(path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError
        return system_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse_writing)
    with pytest.raises(PermissionError), locked(tmp_path, wait=True):
        pass
    (tmp_path / ".bagnet-lock").touch()
    with locked(tmp_path, wait=True) as free:
        assert free
    assert not os.listdir(tmp_path)


def test_where_nothing_can_be_locked_the_folder_of_the_faster_process_is_used(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    def make_first(new: Path) -> dict:
        (new / "content").write_text("first")
        return {"by": "the first"}

    def make(new: Path) -> dict:
        open_or_make(tmp_path / "store", lambda manifest: manifest["by"], make_first, "")  # another process
        raise OSError(errno.ENOTEMPTY, "a folder replaces an empty one only")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert open_or_make(tmp_path / "store", lambda manifest: manifest["by"], make, "") == "the first"


def test_where_nothing_can_be_locked_what_others_have_half_made_stays(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(fcntl, "flock", refuse)
    with temporary_folder(tmp_path / "theirs") as half_made:
        open_or_make(tmp_path / "ours", lambda manifest: manifest, lambda new: {}, "")
        assert half_made.is_dir()


def test_a_cell_of_a_csv_may_hold_any_character():
    rows = [["a\rb", "c\nd", 'e"f'], ["g,h", None, 1]]
    assert [*csv.reader(io.StringIO(csv_of(rows), newline=""))] == [["a\rb", "c\nd", 'e"f'], ["g,h", "", "1"]]


def test_a_folder_that_cannot_be_read_is_not_passed_over(monkeypatch, tmp_path):
    (tmp_path / "shut").mkdir()
    scandir = os.scandir

    def refused(path):
        if Path(path).name == "shut":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        list(walk(tmp_path))
    (tmp_path / "shut").rename(tmp_path / "lost+found")  # of the disk, and nobody's images
    assert [folder for folder, _ in walk(tmp_path)] == [str(tmp_path)]
