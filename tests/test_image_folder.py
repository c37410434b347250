import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bagnet_lightning.data import image_folder
from bagnet_lightning.data.images import find_images, load_image
from bagnet_lightning.data.store import Store
from bagnet_lightning.errors import UserError

FILES = {  # name: (width, height), mode
    "train/cat/1.png": ((20, 12), "RGB"),
    "train/cat/2.JPG": ((12, 30), "L"),
    "train/dog/a.bmp": ((8, 8), "P"),
    "train/emu/b.tiff": ((9, 9), "RGBA"),
    "val/dog/x.webp": ((16, 16), "RGB"),
    "val/cat/y.gif": ((40, 10), "P"),
}


def save(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    draw = np.random.default_rng(len(str(path.name)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "zoo"
    for name, (size, mode) in FILES.items():
        save(root / name, size, mode)
    return root


def open_store(root: Path, image_size: int = 8, cache: Path | None = None, **options) -> Store:
    return image_folder.open_store(root, image_size, cache, workers=1, **options)


def test_folders_become_classes_and_files_images(root):
    store = open_store(root)
    assert store.classes == store.class_names == ["cat", "dog", "emu"]
    assert store.splits["train"].labels.tolist() == [0, 0, 1, 2]
    assert store.splits["val"].labels.tolist() == [0, 1]
    assert (store.splits["train"].boxes == -1).all()
    for split, names in {"train": list(FILES)[:4], "val": ["val/cat/y.gif", "val/dog/x.webp"]}.items():
        for image, name in zip(store.splits[split].images, names, strict=True):
            np.testing.assert_array_equal(image, load_image(root / name, 8))


def test_hidden_and_other_files_are_left_out(root, capsys):
    digests = open_store(root).digests
    (root / "train/cat/notes.txt").write_text("no image")
    (root / "train/cat/.hidden.png").write_text("no image")
    (root / "train/.cache").mkdir()
    save(root / "train/5.png", (8, 8))
    assert open_store(root, cache=root / "anew").digests == digests
    assert capsys.readouterr().err == f"note: {root}/train/5.png is not in a class's folder: left out (1 images)\n"


def test_images_in_deeper_folders_are_of_their_class(root):
    for name in ("train/cat/1/b.png", "train/cat/1/2/a.png", "train/cat/0.png", "test/emu/1/c.png"):
        save(root / name, (8, 8))
    store = open_store(root)
    assert store.splits["train"].labels.tolist() == [0, 0, 0, 0, 0, 1, 2]
    assert store.splits["test"].labels.tolist() == [2]
    cats = [f"train/cat/{name}" for name in ("0.png", "1/2/a.png", "1/b.png", "1.png", "2.JPG")]
    assert image_folder.files(root, "train")[:5] == cats
    assert image_folder.files(root, "test") == ["test/emu/1/c.png"]
    for image, name in zip(store.splits["train"].images, cats, strict=False):
        np.testing.assert_array_equal(image, load_image(root / name, 8))


def test_links_to_folders_of_images_are_followed(root, tmp_path):
    before = open_store(root)
    for name in ("train/cat", "train/dog", "train/emu", "val/cat"):
        (root / name).rename(tmp_path / name.replace("/", "-"))
        (root / name).symlink_to(tmp_path / name.replace("/", "-"))
    assert open_store(root, cache=tmp_path / "cache").digests == before.digests
    (root / "val/dog/all").symlink_to(root / "val")  # round in circles
    assert find_images(root / "val") == [root / "val/cat/y.gif", root / "val/dog/x.webp"]


@pytest.mark.parametrize("names", [["test/b.png", "test/a.png"], ["test/first/a.png", "test/second/b.png"]])
def test_test_images_have_no_labels(root, names):
    for number, name in enumerate(names):
        save(root / name, (8, 8 + number))
    store = open_store(root)
    assert store.splits["test"].labels.tolist() == [-1, -1]
    for image, name in zip(store.splits["test"].images, sorted(names), strict=True):
        np.testing.assert_array_equal(image, load_image(root / name, 8))


def test_test_images_in_folders_of_classes_have_labels(root):
    for name in ("emu/b.png", "cat/a.png", "c.png"):
        save(root / "test" / name, (8, 8))
    assert open_store(root).splits["test"].labels.tolist() == [-1, 0, 2]


def test_train_alone_will_do_where_val_is_not_wanted(root):
    remove(root / "val")
    assert list(open_store(root, splits=("train",)).splits) == ["train"]


def test_packed_again_only_when_a_file_changes(root, monkeypatch):
    save(root / "train/emu/c.png", (8, 8))
    open_store(root)
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "Source", lambda *_: pytest.fail("packed again"))
        assert len(open_store(root).splits["train"].labels) == 5
    (root / "train/emu/c.png").unlink()
    assert len(open_store(root).splits["train"].labels) == 4
    Image.new("RGB", (9, 9), "red").save(root / "train/emu/b.tiff")
    assert (open_store(root).splits["train"].images[3].numpy() == [255, 0, 0]).all()
    os.utime(root / "train/emu/b.tiff", (0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "Source", lambda *_: pytest.fail("packed again"))
        with pytest.raises(pytest.fail.Exception):
            open_store(root)


def test_every_size_has_its_own_store_and_the_cache_may_be_elsewhere(root, tmp_path):
    assert open_store(root, 8).splits["val"].images.shape == (2, 8, 8, 3)
    assert open_store(root, 12).splits["val"].images.shape == (2, 12, 12, 3)
    assert sorted(path.name for path in root.iterdir()) == [".bagnet_store-12", ".bagnet_store-8", "train", "val"]
    save(tmp_path / "other/zoo/train/cat/1.png", (8, 8))
    for place in (root, tmp_path / "other/zoo", root):  # two of one name have two stores
        open_store(place, 8, tmp_path / "cache", splits=("train",))
    one, two = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert re.fullmatch(r"zoo-[0-9a-f]{8}-8\.store", one)
    assert one[-8:] == two[-8:]


def test_tiffs_that_were_packed_as_negatives_are_packed_anew(root, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(image_folder, "_fingerprint", _earlier_fingerprint)
        open_store(root)
    packed = root / ".bagnet_store-8"
    before = packed.stat().st_ino
    open_store(root)
    assert packed.stat().st_ino != before
    again = packed.stat().st_ino
    open_store(root)
    assert packed.stat().st_ino == again


def _earlier_fingerprint(root: Path, names: list[str], size: int) -> str:
    digest = hashlib.sha256(f"{size} labelled test".encode())
    for name in names:
        status = (root / name).stat()
        digest.update(os.fsencode(f"{name}\t{status.st_size}\t{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


DAMAGES = {
    "no train": (lambda root: remove(root / "train"), "zoo/train is missing: data.root must be a folder"),
    "no val": (lambda root: remove(root / "val"), r"zoo/val is missing.*\(or train alone, with data\.holdout=0\.1\)"),
    "no classes": (lambda root: [remove(path) for path in (root / "val").iterdir()], "zoo/val holds no class folders"),
    "empty class": (lambda root: empty_folder(root / "train/dog"), "zoo/train/dog holds no image"),
    "empty val class": (lambda root: empty_folder(root / "val/dog"), "zoo/val/dog holds no image"),
    "strange val class": (
        lambda root: save(root / "val/yak/1.png", (8, 8)),
        "zoo/val/yak has no counterpart .*train/yak",
    ),
    "strange test class": (
        lambda root: [save(root / "test" / name, (8, 8)) for name in ("Emu/1.png", "dog/1.png")],
        "zoo/test/Emu has no counterpart .*train/Emu",
    ),
    "links in circles": (
        lambda root: (root / "train/dog/all").symlink_to(root / "train"),
        r"train/dog/all is a link to a folder",
    ),
    "class on a disk that is gone": (lambda root: (root / "train/yak").symlink_to("/gone"), "yak is a link to nothing"),
    "image that is gone": (lambda root: (root / "val/dog/x.png").symlink_to("x"), r"dog/x\.png is a link to nothing"),
    "no image": (lambda root: (root / "val/dog/x.webp").write_text("x"), r"zoo/val/dog/x\.webp is no image"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_bad_folders_are_one_line_that_names_the_path(root, damage, said):
    damage(root)
    with pytest.raises(UserError, match=said) as error:
        open_store(root)
    assert "\n" not in str(error.value)
    assert not list(root.glob(".*"))


def test_all_broken_images_are_told_at_once(root):
    for number in range(12):
        (root / f"train/dog/broken{number}.png").write_text("x")
    with pytest.raises(UserError, match=r"broken0\.png is no image .*; .*broken1\.png .* \(and 2 more\)$"):
        open_store(root)


def test_where_nothing_can_be_written_the_user_is_told_of_the_cache(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make .*zoo-\w+-8\.store.*set data\.cache=DIR"):
        open_store(root, cache=tmp_path / "file")
