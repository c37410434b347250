"""The command, and the measurements on a sample of images."""

import copy
import json
import shutil
import sys

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from PIL import Image

from bagnet_lightning.analysis.figures import draw_masked
from bagnet_lightning.analysis.measure import Sample, measure
from bagnet_lightning.analyze import main
from bagnet_lightning.checkpoint import Trained, load_trained
from bagnet_lightning.config import plain
from bagnet_lightning.data import of_config
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import patch_corners, patch_evidence

DATA = ["data=textures", "data.image_size=40", "data.train_images=36", "data.val_images=24"]
BAGNET, RESNET = ["model=bagnet9", "model.width=0.25", "model.pad=1"], ["model=resnet18"]


def save_checkpoint(path, *overrides: str):
    """A checkpoint of an untrained network, as a run writes it."""
    config = plain(composed(*DATA, *overrides))
    data = instantiate(config["data"], _convert_="all")
    data.setup()
    config |= {"image_size": data.store.side, "train_digest": data.store.digests["train"]}
    torch.manual_seed(0)
    network = instantiate({**config["model"], "_partial_": True})(num_classes=len(data.class_ids))
    about = {"config": config, "classes": data.class_ids, "class_names": data.class_names}
    about |= {"mean": list(data.mean), "std": list(data.std)}
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"bagnet_lightning": about, "state_dict": weights}, path)
    return path


def analyze(*overrides) -> None:
    """The command within this process; a refusal is the UserError whose line it would print."""
    main.__wrapped__(composed(*map(str, overrides), name="analyze"))


def refusal(*overrides) -> str:
    with pytest.raises(UserError) as caught:
        analyze(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def bagnet(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("bagnet") / "best.ckpt", *BAGNET)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("resnet") / "best.ckpt", *RESNET)


@pytest.fixture
def boxed(bagnet, monkeypatch):
    """A trained BagNet, and images with boxes for it: twelve, of which the last has none. Masks are few, and quick."""
    monkeypatch.setattr("bagnet_lightning.analysis.measure.MASKING_STEPS", 2)
    trained = load_trained(bagnet)
    pixels = torch.randint(256, (12, 32, 32, 3), dtype=torch.uint8)
    boxes = torch.tensor([[4, 4, 19, 27]] * 11 + [[-1] * 4], dtype=torch.int16)
    return trained, Sample(pixels, torch.arange(12) % 6, boxes, torch.arange(12) + 100)


def reordered(trained: Trained, order: torch.Tensor) -> Trained:
    """The same network with its classes in another order."""
    network = copy.deepcopy(trained.network)
    network.fc.weight.data, network.fc.bias.data = network.fc.weight[order].data, network.fc.bias[order].data
    names = [trained.classes[i] for i in order]
    return Trained(network, trained.config, names, names, trained.mean, trained.std)


def strict_json(text: str) -> dict:
    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_bagnet_and_a_resnet_side_by_side(bagnet, resnet, tmp_path, command):
    pytest.importorskip("captum")
    out = tmp_path / "a"
    shown = command(
        "analyze", f"checkpoint={bagnet}", f"compare={resnet}", "count=12", "map_count=1", f"out={out}", "seed=3"
    )
    assert shown.returncode == 0, shown.stderr
    names = {"analysis.json", "analysis.html", "kept.png", "masked.png", "patches_1.png", "shuffled.png"}
    assert {path.name for path in out.iterdir()} == names
    heading = shown.stdout.splitlines()[0].split()
    assert heading == ["BagNet-9", "ResNet-18"]
    assert "note: ResNet-18 sees the whole image at once" in shown.stdout
    assert "note: No image has a bounding box" in shown.stdout

    analysis = strict_json((out / "analysis.json").read_text())
    ours, other = analysis["networks"]
    assert (ours["images"], ours["map_images"], analysis["seed"]) == (12, 1, 3)
    assert ours["additivity_error"] < 1e-5
    assert ours["shuffled"]["tile"] == [8, None]  # 40 px are not made of tiles of 16 or 32 px
    assert ours["shuffled"]["unchanged"][-1]["mean"] == 1
    assert ours["strongest"]["strongest"][-1] == ours["shuffled"]["accuracy"][-1]
    for fill in ("zero", "blur"):
        everywhere = {"grad_cam", "integrated_gradients", "random"}
        assert set(ours["masked"][fill]) == {"evidence", "contributions"} | everywhere
        assert set(other["masked"][fill]) == everywhere
        starts = [ours["masked"][fill][method]["deletion"]["curve"][0] for method in ("evidence", "random")]
        assert starts[0] == starts[1]  # the whole image
    assert ours["masked"]["zero"]["random"] != ours["masked"]["blur"]["random"]
    for missing in ("additivity_error", "strongest", "informative"):
        assert missing not in other
    for found in ours["informative"].values():
        assert all(0 <= entry["image"] < 24 and entry["left"] >= 0 for entry in found["correct"])

    (legend,) = draw_masked([other, ours]).legends
    assert len(legend.get_texts()) == 5  # also of the methods that the first network lacks

    page = (out / "analysis.html").read_text()
    assert page.count('src="data:image/png;base64,') == 4
    for reference in ("http:", "https:", "<script", "<link", "url("):
        assert reference not in page


def test_a_resnet_alone_and_two_of_a_kind(resnet, bagnet, tmp_path, capsys, monkeypatch):
    pytest.importorskip("captum")
    monkeypatch.setattr("bagnet_lightning.analysis.measure.MASKING_STEPS", 2)
    analyze(f"checkpoint={resnet}", "count=4", "map_count=1")
    out = resnet.parent / "analysis"
    assert {path.name for path in out.iterdir()} == {"analysis.json", "analysis.html", "masked.png", "shuffled.png"}
    second = save_checkpoint(tmp_path / "second/best.ckpt", *BAGNET)
    capsys.readouterr()
    analyze(f"checkpoint={bagnet}", f"compare={second}", "count=4", "map_count=1", f"out={tmp_path}")
    assert "BagNet-9 (second)" in capsys.readouterr().out.splitlines()[0]
    ours, same = strict_json((tmp_path / "analysis.json").read_text())["networks"]
    for network in (ours, same):  # equal networks, images, orders and shuffles: equal numbers
        del network["name"], network["checkpoint"]
    assert ours == same
    last = shutil.copy(second, second.with_name("last.ckpt"))
    analyze(f"checkpoint={second}", f"compare={last}", "count=1", "map_count=1")
    heading = capsys.readouterr().out.splitlines()[0]
    assert "BagNet-9 (best)" in heading
    assert "BagNet-9 (last)" in heading


def test_mistakes_are_one_line_and_cost_nothing(bagnet, tmp_path, command):
    refused = command("analyze", "checkpoint=none.ckpt")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: checkpoint none.ckpt does not exist")
    assert len(refused.stderr.splitlines()) == 1
    checkpoint = f"checkpoint={bagnet}"
    assert "no labelled images of that split" in refusal(checkpoint, "split=test")
    assert "count must be a whole number from 1" in refusal(checkpoint, "count=0")
    assert "the images have 40 px; choose a smaller tile" in refusal(checkpoint, "tile=40")
    assert "map_count must be a whole number" in refusal(checkpoint, "map_count=null")
    assert "none.ckpt does not exist" in refusal(checkpoint, "compare=none.ckpt")
    fewer = save_checkpoint(tmp_path / "fewer.ckpt", *BAGNET, "data.classes=2")
    assert "do not know the same classes" in refusal(checkpoint, f"compare={fewer}")
    larger = save_checkpoint(tmp_path / "larger.ckpt", *BAGNET, "data.image_size=48")
    assert "compare runs of the same size" in refusal(checkpoint, f"compare={larger}")
    held_out = save_checkpoint(tmp_path / "held_out.ckpt", *BAGNET, "data.holdout=0.25")
    assert "has seen these images" in refusal(f"checkpoint={held_out}", checkpoint.replace("checkpoint", "compare"))
    assert "is not one of them" in refusal(f"checkpoint={fewer}", "++data.classes=null", f"out={tmp_path}")
    (tmp_path / "file").touch()
    assert "choose another folder with out=FOLDER" in refusal(checkpoint, f"out={tmp_path}/file/x")
    assert not list(tmp_path.glob("**/analysis.*"))


def test_images_smaller_than_a_patch_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(of_config, "is_argument", lambda key: True)
    checkpoint = save_checkpoint(tmp_path / "best.ckpt", "model=bagnet17", "model.width=0.25")
    for number, name in enumerate(load_trained(checkpoint).classes * 2):
        folder = tmp_path / "images" / ("train" if number < 6 else "val") / name
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "0.png")
    own = ["data=image_folder", f"data.root={tmp_path}/images", "data.image_size=16"]
    assert "16 x 16 px" in refusal(f"checkpoint={checkpoint}", *own)


def test_the_pointing_game_is_played_where_there_are_boxes(boxed):
    pytest.importorskip("captum")
    trained, sample = boxed
    pointing = measure(trained, sample, map_count=12, seed=0)["pointing"]
    assert set(pointing) == {"chance", "centre", "evidence", "contributions", "grad_cam", "integrated_gradients"}
    assert pointing["chance"] == {"mean": 16 * 24 / 32**2, "se": 0, "n": 11}
    assert pointing["centre"]["mean"] == 1
    for method in ("evidence", "contributions", "grad_cam", "integrated_gradients"):
        assert pointing[method]["hits"]["n"] == 11
        assert 0 <= pointing[method]["mass"]["mean"] <= 1


def test_maps_of_the_true_class_point_and_maps_of_the_predicted_one_mask(boxed, monkeypatch):
    """A method that lights up one pixel a class: inside the boxes for class 1 alone, which is never predicted."""
    trained, sample = boxed
    monkeypatch.setitem(sys.modules, "captum", None)

    def lamp(network, images, classes):
        maps = torch.zeros(len(images), 32, 32)
        maps[torch.arange(len(images)), torch.where(classes == 1, 10, 30), 10] = 1
        return maps

    monkeypatch.setattr("bagnet_lightning.analysis.measure.evidence_maps", lamp)
    trained.network.fc.bias.data[1] = -1e4
    sample = Sample(sample.pixels, torch.tensor([1] * 6 + [2] * 6), sample.boxes, sample.indices)
    pointing = measure(trained, sample, map_count=12, seed=0)["pointing"]
    assert pointing["evidence"]["hits"]["mean"] == pointing["evidence"]["mass"]["mean"] == pytest.approx(6 / 11)


def test_without_captum_the_rest_is_measured(boxed, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    trained, sample = boxed
    measured = measure(trained, sample, map_count=2, seed=0, tile=11)
    assert measured["masked"]["tile"] == 11
    assert any("pip install 'bagnet-lightning[explain]'" in note for note in measured["notes"])
    assert set(measured["masked"]) == {"tile", "shares", "zero", "blur"}
    assert set(measured["masked"]["zero"]) == {"evidence", "contributions", "random"}
    assert "evidence" in measured["pointing"]


def test_a_network_that_grad_cam_says_nothing_about_is_measured_without_it(boxed, monkeypatch):
    pytest.importorskip("captum")
    monkeypatch.setattr("bagnet_lightning.explanation.attribution._last_stage", lambda *_: None)
    measured = measure(*boxed, map_count=1, seed=0)
    assert "BagNet-9 has no Grad-CAM: its last features are no map of two positions or more." in measured["notes"]
    assert set(measured["pointing"]) == {"chance", "centre", "evidence", "contributions", "integrated_gradients"}


def test_images_that_tiles_do_not_fit_are_left_whole(boxed):
    trained, sample = boxed
    odd = Sample(sample.pixels[:, :, :25], sample.labels, sample.boxes, sample.indices)
    measured = measure(trained, odd, map_count=1, seed=0)
    assert measured["shuffled"]["tile"] == [None]
    assert any("25 x 32 px are not made of several tiles of 8, 16, 32 px" in note for note in measured["notes"])


def test_measuring_is_a_function_of_the_seed(boxed):
    trained, sample = boxed
    first, again, other = (measure(trained, sample, map_count=2, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["masked"]["zero"]["random"] != other["masked"]["zero"]["random"]
    assert first["informative"] == other["informative"]
    assert first["shuffled"]["tile"] == [8, 16, None]  # one of 32 px would be the whole image


def test_informative_patches_are_told_by_their_image_in_the_split_and_their_corner(boxed):
    trained, sample = boxed
    wide = Sample(sample.pixels[:, :25], sample.labels, sample.boxes, sample.indices)  # 25 x 32 px
    informative = measure(trained, wide, map_count=1, seed=0)["informative"]
    patches = patch_evidence(trained.network, normalize(wide.pixels, trained.mean, trained.std))
    corners = patch_corners(trained.network, 25, 32)
    for label, name in enumerate(trained.classes):
        for entry in (entry for kind in informative[name].values() for entry in kind):
            place = (corners == torch.tensor([entry["top"], entry["left"]])).all(2)
            logits = patches[entry["image"] - 100, ..., label][place].tolist()
            assert logits == [pytest.approx(entry["logit"], rel=1e-4, abs=1e-4)]


def test_classes_in_another_order_are_measured_the_same(boxed):
    """Labels are given in a network's own order; the images are the same."""
    trained, sample = boxed
    order = torch.tensor([3, 1, 0, 2, 5, 4])
    labels = torch.empty_like(sample.labels)
    for place, label in enumerate(order.tolist()):
        labels[sample.labels == label] = place
    moved = Sample(sample.pixels, labels, sample.boxes, sample.indices)
    moved = measure(reordered(trained, order), moved, map_count=1, seed=0)
    assert moved["shuffled"]["accuracy"] == measure(trained, sample, map_count=1, seed=0)["shuffled"]["accuracy"]
