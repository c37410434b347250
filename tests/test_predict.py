"""The predict command as a user runs it, and where its test images come from."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image
from trained_checkpoints import CLASS_NAMES, CLASSES, write_checkpoint

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.data import image_folder, tiny_imagenet
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.data.images import load_image
from bagnet_lightning.errors import UserError
from bagnet_lightning.inference.logits import predict
from bagnet_lightning.inference.top_classes import predict_files
from bagnet_lightning.predict import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt", "bagnet9")


def save(path, width=40, height=40, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_folder_with_a_broken_image(command, checkpoint, tmp_path):
    photos = [save(tmp_path / "vögel (1)" / name, seed=i) for i, name in enumerate(("a.png", "deep/b.jpg"))]
    (tmp_path / "vögel (1)/broken.jpg").write_text("no image")
    (tmp_path / "vögel (1)/notes.txt").write_text("no image, and not called one")
    done = command("predict", f"checkpoint={checkpoint}", "images=vögel (1)", "out=told")
    assert done.returncode == 1
    assert [line.split(": ")[0] for line in done.stdout.splitlines()[:2]] == ["vögel (1)/a.png", "vögel (1)/deep/b.jpg"]
    assert done.stderr.splitlines() == [
        "error: vögel (1)/broken.jpg is no image that can be read: replace or remove it",
        "error: 1 of 3 images could not be classified; the others are done",
    ]
    trained = load_trained(checkpoint)
    told = {record["image"]: record for record in json.loads((tmp_path / "told/predictions.json").read_text())}
    assert set(told["vögel (1)/broken.jpg"]) == {"image", "error"}
    for photo in photos:
        image = torch.tensor(load_image(photo, 40))[None]
        truth = trained.network(normalize(image, trained.mean, trained.std))[0].softmax(0).detach()
        top = told[str(photo.relative_to(tmp_path))]["top"]
        assert [one["class"] for one in top] == [CLASSES[i] for i in truth.argsort(descending=True)[:5]]
        for one in top:
            assert one["name"] == CLASS_NAMES[CLASSES.index(one["class"])]
            assert one["probability"] == pytest.approx(truth[CLASSES.index(one["class"])].item(), rel=1e-4)
    with open(tmp_path / "told/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["vögel (1)/a.png", "vögel (1)/broken.jpg", "vögel (1)/deep/b.jpg"]
    assert rows[0]["class_1"] == told["vögel (1)/a.png"]["top"][0]["class"]
    assert rows[1]["error"] == told["vögel (1)/broken.jpg"]["error"]


def test_predictions_do_not_depend_on_the_batch_and_small_images_are_told_apart(checkpoint, tmp_path):
    files = [save(tmp_path / f"{i}.png", 20 + i, 30, seed=i) for i in range(5)] + [save(tmp_path / "tiny.png", 8, 8)]
    trained = load_trained(checkpoint)
    whole, parts = (list(predict_files(trained, files, 33, batch_size=size)) for size in (10, 2))
    for one, other in zip(whole, parts, strict=True):
        assert [index for index, _ in one.top] == [index for index, _ in other.top]
    own = list(predict_files(trained, files, None, batch_size=10))
    assert [one.error is None for one in own] == [True] * 5 + [False]
    assert "tiny.png: images of 8 x 8 px" in own[-1].error


def predicted(checkpoint, *overrides):
    main.__wrapped__(composed(f"checkpoint={checkpoint}", *overrides, name="predict"))


def test_a_network_of_nan_predicts_nothing(checkpoint):
    trained = load_trained(checkpoint)
    torch.nn.init.constant_(trained.network.fc.bias, torch.nan)
    with pytest.raises(UserError, match="scores are not finite"):
        predict(trained, torch.zeros(1, trained.image_size, trained.image_size, 3, dtype=torch.uint8))


def test_the_test_split_of_an_image_folder_gives_a_submission(checkpoint, tmp_path):
    for name in ("x.png", "y.png"):
        save(tmp_path / "zoo/test" / name)
    data = ["data=image_folder", f"data.root={tmp_path}/zoo"]
    predicted(checkpoint, "split=test", *data, f"out={tmp_path}/told")
    lines = (tmp_path / "told/submission.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["x.png", "y.png"]
    assert {line.split()[1] for line in lines} <= set(CLASSES)
    save(tmp_path / "zoo/test/more/x.png")
    predicted(checkpoint, "split=test", *data, f"out={tmp_path}/of_two_folders")
    assert not (tmp_path / "of_two_folders/submission.txt").exists()  # it could not say which x.png


def test_tiny_imagenets_test_images_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 0):
        save(tmp_path / f"tiny-imagenet-200/test/images/test_{number}.JPEG")
    names = [file.name for file in tiny_imagenet.test_files(tmp_path)]
    assert names == ["test_0.JPEG", "test_9.JPEG", "test_10.JPEG"]
    for source in (tiny_imagenet, image_folder):
        with pytest.raises(UserError, match=r"holds no"):
            source.test_files(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "add images=FILE_OR_FOLDER, or split=test"),
        (["images=nowhere"], "nowhere does not exist"),
        (["images=."], "holds no image file"),
        (["split=val"], "split must be test"),
        (["split=test"], "textures has no test split"),
        (["images=.", "size=0"], "size must be a whole number"),
        (["images=photo.png", "size=5"], "size=5: images of 5 x 5 px are smaller"),
        (["images=text.png"], "no image could be classified; nothing is written"),
    ],
)
def test_what_cannot_be_predicted_is_said(checkpoint, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    if "images=." not in arguments:
        save(tmp_path / "photo.png")
        (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=words):
        predicted(checkpoint, *arguments)
    assert not [*checkpoint.parent.glob("predictions.*")]
