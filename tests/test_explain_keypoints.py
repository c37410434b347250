"""Which keypoint spoke for which class: shares against scores, pictures, arrays, and the command on such a model."""

import json
from io import BytesIO

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import composed
from local_models import WORDS, local_model, noise
from omegaconf import OmegaConf
from PIL import Image
from trained_checkpoints import CLASS_NAMES, CLASSES, write_checkpoint

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import contributions
from bagnet_lightning.explain import main
from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.keypoint_drawing import DPI, GAP, OUTLINED, SIDE, draw, region, scale_end, strongest
from bagnet_lightning.explanation.keypoint_maps import KeypointExplanation, explain
from bagnet_lightning.explanation.keypoint_page import KeypointPage
from bagnet_lightning.explanation.keypoints import Keypoints
from bagnet_lightning.local_features.model import (
    PARTS,
    LocalModel,
    is_local_model,
    load_local_model,
    made,
    save_local_model,
)

SYSTEMS = [
    ("features=sift", "features.contrast_threshold=0.01", "classifier=linear"),
    ("features=sift", "features.contrast_threshold=0.01", "classifier=additive", "classifier.order=2"),
    ("features=orb", "classifier=logistic"),
    ("features=fast_brief", "classifier=additive", "classifier.kernel=intersection"),
    ("features=dense_sift", "classifier=linear", "encoding.power=1", "encoding.norm=null"),
]
PICTURE = Picture("photo.png", noise(1)[0], 2)
EMPTY = Picture("empty", np.full((40, 40, 3), 90, np.uint8), None)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_local_model(local_model(*SYSTEMS[0]), path)
    return path


@pytest.mark.parametrize("choices", SYSTEMS, ids=lambda choices: "-".join(choices[::2]))
def test_shares_and_bias_are_the_score(choices):
    model = local_model(*choices)
    explanation = explain(model, PICTURE, requested=5)
    count = len(explanation.keypoints)
    assert count > 5
    assert explanation.shares.shape == (count, len(CLASSES))
    scores = model.scores(model.features.describe(PICTURE.pixels[None])[0])[0]
    assert explanation.shares.sum(0) + explanation.bias == pytest.approx(scores, abs=2e-5)
    assert explanation.largest_difference < 2e-5
    assert explanation.shown == list(dict.fromkeys([scores.argmax(), 2, 5]))
    assert np.abs(explanation.shares).max() > 1e-3


def test_of_plain_counts_a_share_is_its_words_weight():
    model = local_model(*SYSTEMS[-1])
    explanation = explain(model, PICTURE, None)
    assert set(explanation.words) <= set(range(WORDS))
    assert explanation.shares == pytest.approx(model.classifier.arrays["weight"].T[explanation.words], abs=1e-5)


def test_keypoints_of_one_word_have_equal_shares():
    explanation = explain(local_model(*SYSTEMS[0]), PICTURE, None)
    for word in set(explanation.words.tolist()):
        same = explanation.shares[explanation.words == word]
        assert np.ptp(same, axis=0).max() < 1e-6


def test_an_image_without_keypoints_has_its_bias():
    model = local_model(*SYSTEMS[0])
    explanation = explain(model, EMPTY, None)
    assert explanation.keypoints.shape == (0, 4)
    assert explanation.scores.tolist() == explanation.bias.tolist() == model.classifier.arrays["bias"].tolist()
    assert explanation.largest_difference == 0
    with Image.open(BytesIO(draw(EMPTY, explanation, "SIFT", CLASS_NAMES, patches=False))) as drawn:
        drawn.load()
    page = KeypointPage("SIFT", False, CLASSES, CLASS_NAMES)
    page.add(EMPTY, explanation)
    assert page.images[0]["shares"][0] == []
    assert '"keypoints":[]' in page.html()


def test_the_strongest_are_apart_and_of_their_sign():
    keypoints = np.array([[10, 10, 8, 0], [12, 11, 8, 0], [30, 10, 8, 0], [10, 30, 20, 0], [11, 31, 4, 0]], np.float32)
    shares = np.array([0.5, 0.4, 0.1, -0.2, 0.3], np.float32)
    assert strongest(keypoints, shares) == ([0, 4, 2], [3])
    assert strongest(keypoints, np.zeros(5)) == ([], [])


def test_patches_are_cut_out_about_their_middle():
    assert region(np.array([4, 5, 3, 0])) == (4, 3, 3)
    assert region(np.array([0, 9, 5, 0])) == (7, -2, 5)
    assert region(np.array([5, 5, 40, 0]))[2] == 40


def by_patches(folder, head):
    """A head on the decisions of an untrained BagNet-9."""
    checkpoint = write_checkpoint(folder / "best.ckpt", "bagnet9")
    overrides = ["data=textures", "data.image_size=40", f"head={head}", f"checkpoint={checkpoint}"]
    config = OmegaConf.to_container(composed(*overrides, name="classical"), resolve=True) | {"image_size": 40}
    model = LocalModel(
        **{part: made(config, part) for part in PARTS}, config=config, classes=CLASSES, class_names=CLASS_NAMES
    )
    model.classifier.arrays = {"bias": np.zeros(len(CLASSES), np.float32)}
    return model


def test_shares_of_averaged_patches_are_the_networks_own_contributions(tmp_path):
    model = by_patches(tmp_path, "mean")
    explanation = explain(model, PICTURE, None)
    trained = model.features.trained
    image = normalize(torch.tensor(PICTURE.pixels)[None], trained.mean, trained.std)
    device = next(trained.network.parameters()).device
    expected = contributions(trained.network, image.to(device))[0].cpu()  # (h, w, classes)
    assert explanation.shares == pytest.approx(expected.flatten(0, 1).numpy(), abs=1e-5)
    assert explanation.keypoints[:, 2].tolist() == [9] * 16
    assert explanation.words is None
    save_local_model(model, tmp_path / "model.safetensors")
    keypoints = Keypoints(str(tmp_path / "model.safetensors"), None)
    png, lines = keypoints.explain(PICTURE)
    Image.open(BytesIO(png)).load()
    assert "BagNet-9, mean logits says" in lines[0]
    assert "16 patches' shares" in lines[0]
    assert '"patches":true' in keypoints.files()["index.html"].decode()


def test_what_does_not_add_is_refused(tmp_path):
    save_local_model(by_patches(tmp_path, "svm"), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no sum over an image's local features"):
        Keypoints(str(tmp_path / "model.safetensors"), None)


@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize(("height", "width"), [(40, 40), (60, 30)])
def test_the_picture_has_the_colours_of_both_signs_where_the_keypoints_are(patches, height, width):
    """A keypoint for the class on the left is red, one against it on the right blue."""
    keypoints = np.array([[width / 4, height / 2, 10, 0], [3 * width / 4, height / 2, 10, 0]], np.float32)
    explanation = KeypointExplanation(
        scores=np.array([0.1, 0], np.float32),
        shown=[0],
        keypoints=keypoints,
        shares=np.array([[0.5, 0], [-0.4, 0]], np.float32),
        bias=np.zeros(2, np.float32),
        words=None,
    )
    picture = Picture("photo", np.full((height, width, 3), 128, np.uint8), 0)
    assert scale_end([explanation.shares[:, explanation.shown]]) == pytest.approx(0.5, abs=1e-2)
    drawn = Image.open(BytesIO(draw(picture, explanation, "SIFT", ["a", "b"], patches)))
    left, side = round((0.2 + SIDE + GAP) * DPI), round(SIDE * DPI)
    rows = slice(round(0.85 * DPI), round((0.85 + SIDE * height / width) * DPI))
    panel = np.array(drawn.convert("RGB")).astype(int)[rows, left : left + side]
    red, blue = panel[..., 0] - panel[..., 2] > 50, panel[..., 2] - panel[..., 0] > 50
    assert red[:, : side // 2].any()
    assert not red[:, side // 2 :].any()
    assert blue[:, side // 2 :].any()
    assert not blue[:, : side // 2].any()


def test_hundreds_of_keypoints_are_drawn():
    explanation = explain(local_model(*SYSTEMS[3]), PICTURE, None)
    assert len(explanation.keypoints) > 2 * OUTLINED
    draw(PICTURE, explanation, "FAST", CLASS_NAMES, patches=False)


def test_the_command_explains_files(model_file, tmp_path, capsys):
    Image.fromarray(noise(1, 60)[0]).save(tmp_path / "photo.png")
    asked = [f"checkpoint={model_file}", f"images={tmp_path}/photo.png", "class=goldfish", f"out={tmp_path}/out"]
    main.__wrapped__(composed(*asked, name="explain"))
    said = capsys.readouterr().out
    assert "SIFT, 12 words, linear SVM says" in said
    assert "keypoints' shares (off by" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"000_photo.png", "evidence.npz", "index.html"}
    with np.load(tmp_path / "out/evidence.npz") as held:
        assert held["pixels_0"].shape == (40, 40, 3)  # scaled as the training images were
        assert held["shares_0"].sum(0) + held["bias"] == pytest.approx(held["scores"][0], abs=2e-5)
        assert held["keypoints_0"].shape == (len(held["words_0"]), 4)
        assert 0 in held["shown_0"]
        assert held["true"].tolist() == [-1]
    page = (tmp_path / "out/index.html").read_text()
    assert "{{" not in page.split("<main")[0]
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    image = data["images"][0]
    assert [len(row) for row in image["shares"]] == [len(image["keypoints"])] * len(image["classes"])
    shares = np.array(image["shares"]).sum(1)
    assert shares + image["biases"] == pytest.approx(image["scores"], abs=1e-3)
    assert data["asked"] == 0


def test_images_of_the_runs_data_with_other_classes_are_refused(model_file, tmp_path):
    """The data are found by the file alone."""
    with pytest.raises(UserError, match="of the data is not one of them"):
        main.__wrapped__(composed(f"checkpoint={model_file}", f"out={tmp_path}/out", name="explain"))


def test_a_system_is_no_network(model_file):
    with pytest.raises(UserError, match=r"is a system of bagnet_lightning\.classical.*use explain"):
        load_trained(model_file)


def test_mistakes_are_one_line(model_file, tmp_path):
    network = write_checkpoint(tmp_path / "best.ckpt", "bagnet9")
    (tmp_path / "cut.safetensors").write_bytes(model_file.read_bytes()[:500])
    safetensors.numpy.save_file({"a": np.zeros(1)}, tmp_path / "other.safetensors")
    mistakes = {
        f"checkpoint=[{model_file},{network}]": "one by one",
        f"checkpoint={tmp_path}/none.safetensors": "does not exist",
        f"checkpoint={tmp_path}/cut.safetensors": "cannot be read",
        f"checkpoint={tmp_path}/other.safetensors": "was not exported by",
    }
    for argument, words in mistakes.items():
        with pytest.raises(UserError, match=words):
            main.__wrapped__(composed(argument, f"out={tmp_path}/out", name="explain"))
    with pytest.raises(UserError, match="nearest: goldfish"):
        main.__wrapped__(composed(f"checkpoint={model_file}", "class=goldfsh", name="explain"))
    assert not is_local_model(network)
    assert is_local_model(model_file.parent)
    assert load_local_model(model_file.parent).classes == load_local_model(model_file).classes
    with safetensors.safe_open(model_file, "np") as file:
        about = json.loads(file.metadata()["bagnet_lightning"])
    del about["classes"]
    safetensors.numpy.save_file({}, tmp_path / "old.safetensors", {"bagnet_lightning": json.dumps(about)})
    with pytest.raises(UserError, match="written by another version"):
        load_local_model(tmp_path / "old.safetensors")


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "bagnet_lightning.cli.command", "", "x"),
        *("bagnet_lightning.local_features.model.Path", "bagnet_lightning.local_features.model.made"),
    ],
)
def test_a_file_can_name_nothing_but_parts_of_systems(tmp_path, target):
    model = local_model(*SYSTEMS[0])
    model.config["features"]["_target_"] = target
    save_local_model(model, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is refused: it names"):
        load_local_model(tmp_path / "model.safetensors")
    model = local_model(*SYSTEMS[0])
    model.config["encoding"]["codebook"] = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "made")}
    save_local_model(model, tmp_path / "model.safetensors")
    load_local_model(tmp_path / "model.safetensors")
    assert not (tmp_path / "made").exists()
