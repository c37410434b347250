import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bagnet_lightning.data import pack as packing
from bagnet_lightning.data.pack import ImageFiles, Source, chunk_length
from bagnet_lightning.data.store import packed_store, store_of_arrays, verify
from bagnet_lightning.errors import UserError

SIZE = 8
PIXELS = np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE, 3), dtype=np.uint8)


def source(folder: Path, fingerprint: str = "f") -> Source:
    """Six training images (two classes) and four for validation, as files in `folder`."""
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{number}.png") for number in range(len(PIXELS))]
    for path, image in zip(paths, PIXELS, strict=True):
        Image.fromarray(image).save(path)
    labels = np.arange(10, dtype=np.int64) % 2
    boxes = np.arange(40, dtype=np.int16).reshape(10, 4)
    splits = {
        "train": ImageFiles(paths[:6], labels[:6], boxes[:6]),
        "val": ImageFiles(paths[6:], labels[6:], boxes[6:]),
    }
    return Source(["a", "b"], ["ant", "bée"], SIZE, False, splits, fingerprint)


def pack(tmp_path: Path, fingerprint: str = "f", workers: int = 1):
    return packed_store(
        tmp_path / "toy.store", fingerprint, lambda: source(tmp_path / "images", fingerprint), workers, "do this"
    )


def reopen(tmp_path: Path, fingerprint: str | None = "f"):
    """Opens the store, which must not be packed again."""
    return packed_store(tmp_path / "toy.store", fingerprint, lambda: pytest.fail("packed again"), 1, "do this")


def test_what_was_packed_is_what_is_opened(tmp_path):
    for store in (pack(tmp_path), reopen(tmp_path), reopen(tmp_path, fingerprint=None)):
        np.testing.assert_array_equal(store.splits["train"].images, PIXELS[:6])
        np.testing.assert_array_equal(store.splits["val"].images, PIXELS[6:])
        assert store.splits["train"].labels.tolist() == [0, 1, 0, 1, 0, 1]
        assert store.splits["val"].boxes.tolist() == np.arange(24, 40).reshape(4, 4).tolist()
        assert (store.classes, store.class_names) == (["a", "b"], ["ant", "bée"])
        np.testing.assert_allclose(store.mean, PIXELS[:6].reshape(-1, 3).mean(axis=0) / 255, rtol=1e-12)
        np.testing.assert_allclose(store.std, PIXELS[:6].reshape(-1, 3).std(axis=0) / 255, rtol=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "toy.store"]


def test_number_of_workers_and_place_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK_BYTES", 3 * PIXELS[0].nbytes)  # chunks of 3, 3; 3, 1
    (tmp_path / "other").mkdir()
    one, three = pack(tmp_path), pack(tmp_path / "other", workers=3)
    np.testing.assert_array_equal(three.splits["train"].images, PIXELS[:6])
    np.testing.assert_array_equal(three.splits["val"].images, PIXELS[6:])
    assert (one.digests, one.mean, one.std) == (three.digests, three.mean, three.std)
    assert verify(three)


def test_images_that_are_in_train_too_are_told(tmp_path, capsys):
    pack(tmp_path)
    assert capsys.readouterr().err == ""
    files = source(tmp_path / "images", "more")
    files.splits["val"].paths[1:3] = files.splits["train"].paths[4], files.splits["train"].paths[0]
    packed_store(tmp_path / "toy.store", "more", lambda: files, 1, "")
    assert capsys.readouterr().err == f"note: images of val that are in train too: 2, such as {tmp_path}/images/4.png\n"


def test_verify_notices_one_changed_byte(tmp_path):
    assert verify(pack(tmp_path))
    for name in ("val_images.npy", "train_labels.npy"):
        with open(tmp_path / "toy.store" / name, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
            file.flush()
            assert not verify(reopen(tmp_path))
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last]))
    assert verify(reopen(tmp_path))


def test_writing_to_a_tensor_does_not_reach_the_file(tmp_path, recwarn):
    pack(tmp_path).splits["train"].images.zero_()
    np.testing.assert_array_equal(reopen(tmp_path).splits["train"].images, PIXELS[:6])
    assert not recwarn.list


def shorten(path: Path) -> None:
    os.truncate(path / "train_images.npy", 1000)


def lengthen(path: Path) -> None:
    with open(path / "val_images.npy", "ab") as file:
        file.write(b"more")


def make_foreign(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))


DAMAGES = {
    "truncated array": shorten,
    "long array": lengthen,
    "missing array": lambda path: (path / "val_labels.npy").unlink(),
    "missing manifest": lambda path: (path / "manifest.json").unlink(),
    "half a manifest": lambda path: os.truncate(path / "manifest.json", 100),
    "foreign manifest": lambda path: (path / "manifest.json").write_text("[]"),
    "other format": make_foreign,
    "a file in its place": lambda path: (path.rename(path.with_name("away")), path.write_text("a file")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_or_foreign_store_is_packed_again(tmp_path, damage):
    digests = pack(tmp_path).digests
    damage(tmp_path / "toy.store")
    with pytest.raises(pytest.fail.Exception):
        reopen(tmp_path, fingerprint=None)
    assert pack(tmp_path).digests == digests
    np.testing.assert_array_equal(reopen(tmp_path).splits["train"].images, PIXELS[:6])


def test_changed_source_files_are_packed_again(tmp_path):
    pack(tmp_path, "before")
    pack(tmp_path, "after")
    reopen(tmp_path, "after")
    with pytest.raises(pytest.fail.Exception):
        reopen(tmp_path, "before")


@pytest.mark.parametrize("what", ["no image", "other size"])
def test_a_bad_image_is_named_and_nothing_half_built_is_left(tmp_path, what):
    files = source(tmp_path / "images")
    bad = tmp_path / "images" / "7.png"
    if what == "no image":
        bad.write_text("no image")
    else:
        Image.new("RGB", (SIZE, SIZE + 1)).save(bad)
    with pytest.raises(
        UserError, match=r"7\.png is no image" if what == "no image" else r"7\.png is 8 x 9 px, not 8 x 8"
    ):
        packed_store(tmp_path / "toy.store", "f", lambda: files, 2, "do this")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_failed_packing_leaves_the_store_before_it(tmp_path):
    pack(tmp_path, "before")
    with pytest.raises(ZeroDivisionError):
        packed_store(tmp_path / "toy.store", "after", lambda: 1 // 0, 1, "do this")
    reopen(tmp_path, "before")


def test_where_nothing_can_be_written_the_user_is_told_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make .*toy\.store: .*File exists.*; do this"):
        packed_store(tmp_path / "file" / "toy.store", "f", lambda: source(tmp_path / "images"), 1, "do this")


def test_full_disk_leaves_nothing(tmp_path):
    files = source(tmp_path / "images")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
    try:
        with pytest.raises(UserError, match=r"cannot make .*toy\.store: .*; do this"):
            packed_store(tmp_path / "toy.store", "f", lambda: files, 1, "do this")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


PACK_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import packed_store, source
def find_source():
    print("packing", flush=True)
    return source(Path(sys.argv[1]) / "images")
print(packed_store(Path(sys.argv[1]) / "toy.store", "f", find_source, 1, "").digests["val"])
"""


def test_processes_that_pack_at_the_same_time_all_end_well(tmp_path):
    command = [sys.executable, "-c", PACK_IN_ANOTHER_PROCESS, str(tmp_path), str(Path(__file__).parent)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(map(len, outputs)) == [1, 2]  # one packed, the other waited for it
    assert outputs[0][-1] == outputs[1][-1] == reopen(tmp_path).digests["val"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "toy.store"]


needs_children = pytest.mark.skipif(
    not Path("/proc/thread-self/children").exists(), reason="this system does not tell a process' children"
)
PACK_FOR_MINUTES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import ImageFiles, np, packed_store, source
files = source(Path(sys.argv[1]) / "images")
paths = files.splits["train"].paths * 200_000
files.splits["train"] = ImageFiles(paths, np.zeros(len(paths), np.int64), np.zeros((len(paths), 4), np.int16))
packed_store(Path(sys.argv[1]) / "toy.store", "f", lambda: files, 2, "")
"""


def packing_for_minutes(tmp_path: Path) -> tuple[subprocess.Popen, list[int]]:
    """A process that packs many images, and its two workers."""
    command = [sys.executable, "-c", PACK_FOR_MINUTES, str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: len(children.read_text().split()) == 2)
    return process, [int(child) for child in children.read_text().split()]


def until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@needs_children
def test_a_killed_packing_ends_its_workers_and_the_next_one_tidies_up(tmp_path):
    process, workers = packing_for_minutes(tmp_path)
    process.kill()
    process.communicate()
    until(lambda: not any(map(alive, workers)))
    assert list(tmp_path.glob(".toy.store.*"))
    pack(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "toy.store"]


@needs_children
def test_a_killed_worker_is_a_user_error(tmp_path):
    process, workers = packing_for_minutes(tmp_path)
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert errors.splitlines()[-1].endswith("a worker process was killed: is there enough memory?")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(("pixels", "labels"), [((4, 9, 9), (4,)), ((4, 9, 9, 3), (4, 1)), ((4, 9, 9, 3), (5,))])
def test_arrays_of_another_form_are_refused(pixels, labels):
    arrays = {"train": (np.zeros(pixels, np.uint8), np.zeros(labels, np.int64))}
    with pytest.raises(UserError, match=r"train: images must be uint8 \(N, H, W, 3\) and labels \(N,\), not uint8"):
        store_of_arrays(["a"], ["a"], arrays)


@pytest.mark.parametrize("labels", [[1, 2], [0, -2], [0.0, 1.0]])
def test_labels_that_are_no_index_of_a_class_are_refused(labels):
    pixels = np.zeros((2, 9, 9, 3), np.uint8)
    splits = {"train": (pixels, np.array([0, -1])), "val": (pixels, np.array(labels))}
    with pytest.raises(UserError, match="val: labels must be whole numbers from 0 to 1, the index of a class"):
        store_of_arrays(["a", "b"], ["a", "b"], splits)


def test_chunks_are_of_four_mib_and_their_sums_fit_32_bits():
    """Their length is part of the format: digests are of chunks."""
    assert [chunk_length(size) for size in (1, 18, 19, 64, 2000)] == [4096, 4096, 3872, 341, 1]
