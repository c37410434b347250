import hashlib
import os
import re
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from PIL import Image

from bagnet_lightning.data import tiny_imagenet
from bagnet_lightning.data.store import Store
from bagnet_lightning.data.tiny_imagenet import NAME
from bagnet_lightning.errors import UserError

CLASSES = ["n00000003", "n00000001", "n00000002"]  # in the order of wnids.txt, which is not the labels'
NOWHERE = "http://127.0.0.1:9/tiny-imagenet-200.zip"


def make_folder(folder: Path) -> Path:
    """The official layout with 3 classes of 4 training and 2 validation images, and 12 test images."""
    draw = np.random.default_rng(0)

    def save(path: Path, mode: str = "RGB") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)).convert(mode).save(path, "jpeg", quality=30)

    for number, wnid in enumerate(CLASSES):
        for image in range(4):
            save(folder / "train" / wnid / "images" / f"{wnid}_{image * 5}.JPEG", "L" if image == 3 else "RGB")
        lines = [f"{wnid}_{image * 5}.JPEG\t{number}\t{image}\t63\t62\n" for image in (3, 0, 1)]  # and 2 has none
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(lines))
    for image in range(6):
        save(folder / "val" / "images" / f"val_{image}.JPEG")
    lines = [f"val_{image}.JPEG\t{CLASSES[image % 3]}\t{image}\t0\t44\t62\n" for image in range(6)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    for image in range(12):
        save(folder / "test" / "images" / f"test_{image}.JPEG")
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in CLASSES))
    (folder / "words.txt").write_text("n00000001\tgoldfish, Carassius auratus\nn00000002\tcrane\nn00000009\tship\n")
    return folder


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("original") / NAME)


@pytest.fixture
def root(tmp_path, original) -> Path:
    """A root that holds its own copy of the folder."""
    copy(original, tmp_path / "root")
    return tmp_path / "root"


def copy(folder: Path, root: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            target = root / NAME / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def open_store(root: Path, url: str = NOWHERE, sha256: str = "") -> Store:
    return tiny_imagenet.open_store(root, url, sha256, workers=1)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# The folder -----------------------------------------------------------------------------------------------------------


def test_everything_the_folder_says_is_in_the_store(root):
    store = open_store(root)
    assert store.classes == ["n00000001", "n00000002", "n00000003"]
    assert store.class_names == ["goldfish", "crane", "n00000003"]
    train, val, test = (store.splits[split] for split in ("train", "val", "test"))
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert train.boxes[:4].tolist() == [[1, 0, 63, 62], [1, 1, 63, 62], [-1] * 4, [1, 3, 63, 62]]
    images = root / NAME / "train" / "n00000001" / "images"
    for index, number in enumerate((0, 5, 10, 15)):  # by number, not by name
        np.testing.assert_array_equal(train.images[index], pixels(images / f"n00000001_{number}.JPEG"))
    assert val.labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert val.boxes[4].tolist() == [4, 0, 44, 62]
    assert test.labels.tolist() == [-1] * 12
    assert (test.boxes == -1).all()
    np.testing.assert_array_equal(test.images[10], pixels(root / NAME / "test" / "images" / "test_10.JPEG"))
    assert sorted(path.name for path in root.iterdir()) == [NAME, f"{NAME}.store"]


def test_root_may_be_the_folder_itself(root):
    assert open_store(root / NAME).digests == open_store(root).digests


def test_the_store_outlives_the_folder(root):
    digests = open_store(root).digests
    rmtree(root / NAME)
    assert open_store(root).digests == digests


def test_a_copied_folder_is_not_packed_again_and_a_changed_one_is(root, monkeypatch):
    open_store(root)
    for path in (root / NAME).rglob("*"):
        os.utime(path, (0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(tiny_imagenet, "_read_layout", lambda *_: pytest.fail("packed again"))
        open_store(root)
    (root / NAME / "train" / "n00000001" / "images" / "n00000001_5.JPEG").unlink()
    assert len(open_store(root).splits["train"].labels) == 11


def test_the_test_split_may_be_missing(root):
    rmtree(root / NAME / "test")
    assert list(open_store(root).splits) == ["train", "val"]


DAMAGES = [  # (what happens to the path, what is said of it)
    (rmtree, "train/n00000002", "is missing"),
    (lambda path: [image.unlink() for image in path.iterdir()], "train/n00000002/images", "holds no image"),
    (Path.unlink, "train/n00000002/n00000002_boxes.txt", "cannot be read"),
    (lambda path: path.write_text("n00000002_0.JPEG\t1\t2\tx\t4\n"), "train/n00000002/n00000002_boxes.txt", "line 1"),
    (Path.unlink, "val/val_annotations.txt", "cannot be read"),
    (lambda path: path.write_text(""), "val/val_annotations.txt", "is empty"),
    (lambda path: path.write_text("val_0.JPEG\tn00000009\t0\t0\t1\t1\n"), "val/val_annotations.txt", "n00000009"),
    (Path.unlink, "val/images/val_4.JPEG", "is missing"),
    (Path.unlink, "wnids.txt", "cannot be read"),
    (Path.unlink, "words.txt", "cannot be read"),
]


@pytest.mark.parametrize(("damage", "name", "said"), DAMAGES, ids=[f"{name} {said}" for _, name, said in DAMAGES])
def test_an_incomplete_folder_is_one_line_that_names_the_path(root, damage, name, said):
    path = root / NAME / name
    damage(path)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{said}.*: unpack the official zip again") as error:
        open_store(root)
    assert "\n" not in str(error.value)
    assert [path.name for path in root.iterdir()] == [NAME]


def test_a_jpeg_that_does_not_decode_is_named(root):
    path = root / NAME / "val" / "images" / "val_3.JPEG"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"val_3\.JPEG cannot be read: .*truncated"):
        open_store(root)
    assert [path.name for path in root.iterdir()] == [NAME]


# The zip --------------------------------------------------------------------------------------------------------------


def make_zip(path: Path, folder: Path, **strangers: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{NAME}/{file.relative_to(folder)}")
        for name, text in strangers.items():
            archive.writestr(name, text)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def archive(original) -> Path:
    return make_zip(original.parent / f"{NAME}.zip", original)


@pytest.fixture
def empty(tmp_path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_a_zip_put_there_by_hand_is_unpacked(empty, archive, root):
    (empty / f"{NAME}.zip").write_bytes(archive.read_bytes())
    assert open_store(empty, sha256=sha256(archive)).digests == open_store(root).digests
    assert sorted(path.name for path in empty.iterdir()) == [NAME, f"{NAME}.store", f"{NAME}.zip"]


def test_a_zip_with_another_sha_is_refused_and_kept(empty, archive):
    (empty / f"{NAME}.zip").write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"\.zip is damaged or not the official file \(by its sha256\): remove it"):
        open_store(empty, sha256=sha256(archive))
    assert [path.name for path in empty.iterdir()] == [f"{NAME}.zip"]


def test_a_truncated_zip_is_refused(empty, archive):
    path = empty / f"{NAME}.zip"
    path.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"\.zip cannot be unpacked .*: remove it to download it afresh"):
        open_store(empty, sha256=sha256(path))
    assert [path.name for path in empty.iterdir()] == [f"{NAME}.zip"]


def test_a_zip_with_a_damaged_member_leaves_nothing_unpacked(empty, archive):
    path = empty / f"{NAME}.zip"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be unpacked"):
        open_store(empty, sha256=sha256(path))
    assert [path.name for path in empty.iterdir()] == [f"{NAME}.zip"]


@pytest.mark.parametrize("name", ["../outside", f"{NAME}/../../outside", "/tmp/bagnet-outside", "outside"])
def test_a_zip_with_a_path_outside_is_refused(empty, original, name):
    path = make_zip(empty / f"{NAME}.zip", original, **{name: "strange"})
    with pytest.raises(UserError, match=f"holds '{re.escape(name)}', which is not inside {NAME}/"):
        open_store(empty, sha256=sha256(path))
    assert [path.name for path in empty.iterdir()] == [f"{NAME}.zip"]
    assert not (empty.parent / "outside").exists()
    assert not Path("/tmp/bagnet-outside").exists()


# The download ---------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Serves one file, by ranges too; server.faults says what to do wrong with the next requests."""

    def do_GET(self):
        content = self.server.content
        requested = re.match(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(requested[1]) if requested else 0
        fault = self.server.faults.pop(0) if self.server.faults else None
        self.server.requests.append(start)
        if isinstance(fault, int):
            return self.send_error(fault)
        if fault == "ignore range":
            start, requested = 0, None
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if requested else 200)
        if requested:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + 4000 if fault == "break off" else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(archive, monkeypatch):
    """Serves the zip; .open(root) opens a store by way of it, .requests are the offsets that were asked for."""
    monkeypatch.setattr(tiny_imagenet, "RETRY_PAUSE_S", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.requests, server.faults = archive.read_bytes(), [], []
        server.url = f"http://127.0.0.1:{server.server_port}/{NAME}.zip"
        server.open = partial(open_store, url=server.url, sha256=sha256(archive))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_download_into_a_root_that_does_not_exist_yet(tmp_path, server, root):
    new = tmp_path / "new" / "data"
    assert server.open(new).digests == open_store(root).digests
    assert sorted(path.name for path in new.iterdir()) == [NAME, f"{NAME}.store", f"{NAME}.zip"]
    server.open(new)
    assert server.requests == [0]


@pytest.mark.parametrize(
    ("have", "faults", "requests"),
    [
        (7000, [], [7000]),
        (7000, ["ignore range"], [7000]),
        (0, ["break off", "break off"], [0, 4000, 8000]),
        (0, ["break off", 503, "ignore range"], [0, 4000, 4000]),
        ("all", [], ["all"]),
        ("more", [], ["more", 0]),
    ],
    ids=["resumed", "range ignored", "broken off", "stumbling server", "all there", "too long"],
)
def test_a_partial_download_is_continued(empty, server, have, faults, requests):
    lengths = {"all": len(server.content), "more": len(server.content) + 5}
    have = lengths.get(have, have)
    if have:
        (empty / f"{NAME}.zip.part").write_bytes((server.content + b"extra")[:have])
    server.faults[:] = faults
    assert len(server.open(empty).splits["train"].labels) == 12
    assert server.requests == [lengths.get(offset, offset) for offset in requests]
    assert (empty / f"{NAME}.zip").read_bytes() == server.content
    assert not (empty / f"{NAME}.zip.part").exists()


def test_a_download_that_keeps_breaking_off_can_be_continued_later(empty, server):
    server.faults[:] = ["break off"] * tiny_imagenet.ATTEMPTS
    with pytest.raises(UserError, match="the connection broke off"):
        server.open(empty)
    assert (empty / f"{NAME}.zip.part").stat().st_size == 4000 * tiny_imagenet.ATTEMPTS
    server.requests.clear()
    server.open(empty)
    assert server.requests == [4000 * tiny_imagenet.ATTEMPTS]


def test_a_download_with_another_sha_is_not_kept(empty, server):
    server.content = server.content[:-1] + b"x"
    with pytest.raises(UserError, match=r"did not send the official file \(by its sha256\), so nothing of it is kept"):
        server.open(empty)
    assert not list(empty.iterdir())


def test_a_refusal_is_not_asked_again(empty, server):
    server.faults[:] = [404]
    with pytest.raises(UserError, match=r"cannot be downloaded from .* \(Not Found\)"):
        server.open(empty)
    assert server.requests == [0]


def test_a_server_that_falls_silent_is_not_waited_for_forever(empty, server, monkeypatch):
    waits, urlopen = [], tiny_imagenet.urlopen

    def noted(request, timeout=None):
        waits.append(timeout)
        return urlopen(request, timeout=timeout)

    monkeypatch.setattr(tiny_imagenet, "urlopen", noted)
    tiny_imagenet._download(server.url, empty / "part")
    assert waits == [tiny_imagenet.TIMEOUT_S]


@pytest.mark.parametrize("url", [NOWHERE, "http://no-such-host.invalid/x.zip", "nonsense"])
def test_without_network_one_line_says_what_was_tried_and_the_two_ways_out(empty, url):
    with pytest.raises(UserError) as error:
        open_store(empty, url)
    message = str(error.value)
    assert "\n" not in message
    for part in (str(empty), url, "data.root=DIR (or BAGNET_DATA)", "data=textures"):
        assert part in message


# The real one ---------------------------------------------------------------------------------------------------------


def test_ten_real_classes(ten_real_classes):
    folder = ten_real_classes / NAME
    classes = (folder / "wnids.txt").read_text().split()
    kept = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    store = open_store(ten_real_classes)
    train, val = store.splits["train"], store.splits["val"]
    assert train.labels.bincount().tolist() == [500] * 10
    assert val.labels.bincount().tolist() == [50] * 10
    wnid = classes[7]
    path = folder / "train" / wnid / "images" / f"{wnid}_123.JPEG"
    np.testing.assert_array_equal(train.images[7 * 500 + 123], pixels(path))
    for index, line in enumerate(kept[:20]):
        name, wnid, *box = line.split()
        assert store.classes[val.labels[index]] == wnid
        assert val.boxes[index].tolist() == [int(value) for value in box]
        np.testing.assert_array_equal(val.images[index], pixels(folder / "val" / "images" / name))
    np.testing.assert_allclose(store.mean, train.images.double().mean(dim=(0, 1, 2)) / 255, rtol=1e-9)
