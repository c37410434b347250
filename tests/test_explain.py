"""The explain command as a user runs it."""

import numpy as np
import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from PIL import Image
from test_commands import one_line
from trained_checkpoints import CLASSES, write_checkpoint

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.errors import UserError
from bagnet_lightning.explain import main
from bagnet_lightning.explanation import inputs
from bagnet_lightning.explanation.networks import Networks


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: write_checkpoint(folder / name / "best.ckpt", name) for name in ("bagnet9", "bagnet33", "resnet18")}


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_photo_by_two_networks_side_by_side(command, checkpoints, photo, tmp_path):
    pytest.importorskip("captum", reason="captum is an optional dependency")
    both = f"checkpoint=[{checkpoints['bagnet9']},{checkpoints['resnet18']}]"
    done = command("explain", both, f"images={photo}", "class=goldfish", "out=told")
    assert done.returncode == 0, done.stderr
    assert "mean of 16 patches'" in done.stdout  # (40 - 9) // 8 + 1 = 4 a side
    out = tmp_path / "told"
    assert {path.name for path in out.iterdir()} == {
        "000_photo.png",
        "evidence_1.npz",
        "evidence_2.npz",
        "index.html",
    }
    with np.load(out / "evidence_1.npz") as first, np.load(out / "evidence_2.npz") as second:
        assert first["pixels_0"].shape == (40, 40, 3)  # scaled as the training images were
        assert 0 in first["shown_0"]
        assert "evidence_0" in first
        assert "evidence_0" not in second
        assert "integrated_gradients_0" in second


def test_own_size_and_exact_evidence_alone_need_no_captum(command, checkpoints, photo, tmp_path):
    (tmp_path / "captum").mkdir()
    (tmp_path / "captum/__init__.py").write_text("raise ImportError('captum was imported')")
    done = command("explain", f"checkpoint={checkpoints['bagnet9']}", "images=photo.png", "size=own", "exact=true")
    assert done.returncode == 0, done.stderr
    with np.load(checkpoints["bagnet9"].parent / "explain/evidence.npz") as held:
        assert held["pixels_0"].shape == (50, 60, 3)
        assert "grad_cam_0" not in held
    refused = command("explain", f"checkpoint={checkpoints['resnet18']}", "images=photo.png")
    assert "pip install 'bagnet-lightning[explain]'" in one_line(refused)


def test_pictures_of_an_earlier_command_are_told_of(checkpoints, photo, tmp_path, capsys):
    asked = [f"checkpoint={checkpoints['bagnet9']}", f"images={photo}", "exact=true", f"out={tmp_path / 'out'}"]
    for _ in range(2):
        main.__wrapped__(composed(*asked, name="explain"))
        assert "earlier" not in capsys.readouterr().err
    for name in ("001_other.png", "evidence_1.npz"):
        (tmp_path / "out" / name).touch()
    main.__wrapped__(composed(*asked, name="explain"))
    assert "note: 2 of the files in" in capsys.readouterr().err


def test_names_and_sizes_of_any_kind_in_one_folder(checkpoints, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "cost $_$ and 日本" / "/".join("a" * 100 for _ in range(3))
    folder.mkdir(parents=True)
    for name, size in (("good.png", 50), ("large.png", 90), ("small.png", 5)):
        Image.new("RGB", (size, size)).save(folder / name)
    monkeypatch.setattr(inputs, "MOST_PIXELS", 80 * 80)
    asked = [f"checkpoint={checkpoints['bagnet9']}", f"images={tmp_path}", "exact=true", f"out={tmp_path / 'out'}"]
    main.__wrapped__(composed(*map(quoted, asked), "size=own", name="explain"))
    (picture,) = (tmp_path / "out").glob("*.png")
    assert picture.name.startswith("000_")
    assert picture.name.endswith("aaa_good.png")
    skipped = capsys.readouterr().err
    assert "has no room" not in skipped
    assert "large.png has 90 x 90 px, too many for a page" in skipped
    assert "small.png: images of 5 x 5 px are smaller than this network's patches" in skipped


def test_a_page_has_room_for_some_pictures(checkpoints, tmp_path, capsys, monkeypatch):
    for number in range(4):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(inputs, "PAGE_PIXELS", 2 * 40 * 40)
    asked = [f"checkpoint={checkpoints['bagnet9']}", f"images={tmp_path}", "exact=true", f"out={tmp_path / 'out'}"]
    main.__wrapped__(composed(*asked, name="explain"))
    assert len([*(tmp_path / "out").glob("*.png")]) == 2
    assert "note: 2 files are explained: a page has no room for more" in capsys.readouterr().err
    data = instantiate(composed("data=textures", "data.image_size=40").data, _convert_="all")
    data.setup()
    assert len(inputs.pictures_of_split(data, "val", 2, data.class_ids)) == 2
    with pytest.raises(UserError, match="count=3: a page has room for 2 images of this size; ask for fewer"):
        inputs.pictures_of_split(data, "val", 3, data.class_ids)


def test_the_images_that_a_network_takes_for_another_class(tmp_path):
    data = instantiate(composed("data=textures", "data.image_size=40").data, _convert_="all")
    data.setup()
    trained = load_trained(write_checkpoint(tmp_path / "best.ckpt", "bagnet9", data.class_ids))
    images = data.labelled_for(data.class_ids, "val")
    with torch.no_grad():
        said = trained.network(normalize(images.split.images[images.chosen], trained.mean, trained.std)).argmax(1)
    wrong = [i for i in range(len(images)) if said[i] != images.labels[i]]
    assert 0 < len(wrong) < len(images)
    mistaken = Networks([tmp_path / "best.ckpt"], None, exact=True).mistaken
    assert mistaken(images) == wrong
    shown = inputs.pictures_of_split(data, "val", len(images), data.class_ids, mistaken)
    assert [picture.name for picture in shown] == [data.names(images)[i] for i in wrong]
    with pytest.raises(UserError, match=f"all {len(images)} images of split=val are given their own class"):
        inputs.pictures_of_split(data, "val", 2, data.class_ids, lambda images: [])


def quoted(override):
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if key in ("images", "out") else override


def test_runs_of_one_model_are_told_apart(checkpoints, photo, tmp_path, capsys):
    other = write_checkpoint(tmp_path / "sgd/best.ckpt", "bagnet9")
    both = f"checkpoint=[{checkpoints['bagnet9']},{other}]"
    main.__wrapped__(composed(both, f"images={photo}", "exact=true", f"out={tmp_path / 'out'}", name="explain"))
    lines = capsys.readouterr().out.splitlines()
    assert ["BagNet-9 (bagnet9) says" in lines[0], "BagNet-9 (sgd) says" in lines[1]] == [True, True]


def test_mistakes_are_said_before_anything_is_made(checkpoints, photo, tmp_path):
    bagnet = f"checkpoint={checkpoints['bagnet33']}"
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    other = write_checkpoint(tmp_path / "other/best.ckpt", "bagnet9", CLASSES[:3])
    larger = torch.load(checkpoints["bagnet9"], weights_only=True)
    larger["bagnet_lightning"]["config"]["image_size"] = 48
    torch.save(larger, tmp_path / "larger.ckpt")
    images = f"images={photo}"
    mistakes = {
        (f"checkpoint={tmp_path}/none.ckpt",): "does not exist",
        (f"checkpoint={photo}",): "cannot be read|is refused",
        ("checkpoint=[]",): "must be a path, or a list of them",
        (bagnet, f"images={tmp_path}/none"): "none does not exist",
        (bagnet, f"images={tmp_path}/empty"): "holds no image",
        (bagnet, f"images={tmp_path}/text.png"): "text.png is no image",
        (bagnet, f"images={tmp_path}/small.png", "size=own"): "small.png: images of 20 x 20 px are smaller",
        (bagnet, images, "size=20"): "20 x 20 px are smaller .* 33 px or more are needed .size=",
        (bagnet, images, "class=goldfsh"): "nearest: goldfish",
        (bagnet, images, f"out={tmp_path}/file"): "choose another folder with out=",
        (f"checkpoint=[{checkpoints['bagnet33']},{other}]", images): "do not know the same classes",
        (f"checkpoint=[{checkpoints['bagnet33']},{tmp_path}/larger.ckpt]", images): "of 40 px and 48 px; explain them",
        (f"checkpoint={checkpoints['resnet18']}", "exact=true"): "only BagNets have exact evidence",
        (bagnet, "exact=some"): "exact must be true or false",
        (bagnet, "split=test"): "no labelled images of that split",
        (bagnet, "count=0"): "count must be",
        (bagnet, images, "size=big"): "size must be",
        (bagnet, "size=40"): "add images=",
        (bagnet, images, "mistakes=true"): "applies to a split of the run's data",
        (bagnet,): "of the data is not one of them",
    }
    before = {*tmp_path.rglob("*")}
    for arguments, words in mistakes.items():
        config = composed(f"out={tmp_path}/out", *arguments, name="explain")
        with pytest.raises(UserError, match=words):
            main.__wrapped__(config)
    assert {*tmp_path.rglob("*")} - before <= {tmp_path / "out"}
    assert not any((tmp_path / "out").iterdir())


def test_a_mistake_is_one_line(command, checkpoints):
    refused = command("explain", f"checkpoint={checkpoints['bagnet9']}", "images=x", "class=trilobit")
    assert "class=trilobit: there is no class 'trilobit'; nearest: trilobite" in one_line(refused)
