"""What pictures, arrays and the page hold, against evidence computed by itself."""

import base64
import json
import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from trained_checkpoints import CLASS_NAMES, CLASSES, write_checkpoint

from bagnet_lightning.data.augment import normalize
from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import dense_evidence
from bagnet_lightning.explanation.drawing import draw, exact_limit
from bagnet_lightning.explanation.inputs import Picture, pictures_of_files
from bagnet_lightning.explanation.maps import Explanation, explain, load_model, strongest
from bagnet_lightning.explanation.networks import Networks
from bagnet_lightning.explanation.page import Page
from bagnet_lightning.names import class_indices
from bagnet_lightning.presentation.overlays import cut_out

pytest.importorskip("captum", reason="captum is an optional dependency: pip install 'bagnet-lightning[explain]'")
CLASS_INDICES = class_indices(CLASSES, CLASS_NAMES)


def any_size(height, width):
    """Refuses no image."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return [load_model(write_checkpoint(folder / name / "best.ckpt", name), False) for name in ("bagnet17", "resnet18")]


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (34, 27, 3), dtype=np.uint8)
    return Picture("a </script> b.png", pixels, 2)


@pytest.fixture(scope="module")
def explanations(models, picture):
    return explain(models, picture, requested=4, approximate=True)


@pytest.fixture(scope="module")
def dense(models, picture):
    image = normalize(torch.tensor(picture.pixels)[None], models[0].trained.mean, models[0].trained.std)
    return dense_evidence(models[0].network, image)[0]  # (H, W, classes)


def test_both_networks_are_explained_for_the_same_classes(explanations):
    bagnet, resnet = explanations
    assert bagnet.shown == resnet.shown
    assert set(bagnet.shown) == {bagnet.predicted, resnet.predicted, 2, 4}
    assert [*bagnet.maps()] == ["evidence", "contributions", "grad_cam", "integrated_gradients"]
    assert [*resnet.maps()] == ["grad_cam", "integrated_gradients"]
    assert all(maps.shape == (len(bagnet.shown), 34, 27) for e in explanations for maps in e.maps().values())
    assert bagnet.largest_difference < 1e-5 * max(1, bagnet.logits.abs().max().item())


def test_a_network_that_grad_cam_says_nothing_about_is_explained_without_it(models, picture, monkeypatch):
    monkeypatch.setattr("bagnet_lightning.explanation.attribution._last_stage", lambda *_: None)
    networks = Networks([models[1].path], None, exact=False)
    assert networks.notes == ["ResNet-18 has no Grad-CAM: its last features are no map of two positions or more"]
    networks.explain(picture)
    held = np.load(BytesIO(networks.files()["evidence.npz"]), allow_pickle=False)
    assert "integrated_gradients_0" in held
    assert "grad_cam_0" not in held


def test_arrays_hold_the_evidence_itself(models, picture, dense):
    networks = Networks([models[0].path], CLASS_NAMES[2], exact=False)
    networks.explain(picture)
    held = np.load(BytesIO(networks.files()["evidence.npz"]), allow_pickle=False)
    shown = held["shown_0"]
    assert np.array_equal(held["evidence_0"], dense[..., shown].permute(2, 0, 1).numpy())
    assert held["evidence_0"].dtype == np.float32
    assert np.allclose(held["contributions_0"].sum((1, 2)), held["logits"][0, shown], atol=1e-5)
    assert held["images"].tolist() == [picture.name]
    assert held["classes"].tolist() == CLASSES
    assert held["class_names"].tolist() == CLASS_NAMES
    assert held["true"].tolist() == [2]
    assert held["predicted"].tolist() == held["logits"].argmax(1).tolist()
    assert np.allclose(held["patch_logits_0"].mean((0, 1)), held["logits"][0], atol=1e-5)
    assert np.array_equal(held["pixels_0"], picture.pixels)
    assert held["grad_cam_0"].shape == held["integrated_gradients_0"].shape == (len(shown), 34, 27)


def decoded(packed):
    return np.frombuffer(base64.b64decode(packed["data"]), "<i2") * packed["step"]


def test_the_page_holds_the_evidence_to_half_a_step_and_every_patchs_best_classes(models, picture, explanations, dense):
    page = Page(models)
    page.add(picture, explanations)
    html = page.html()
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    data = json.loads(text)
    assert data["classes"][:2] == ["goldfish", "trilobite"]
    (image,) = data["images"]
    assert image["name"] == picture.name
    assert sorted(image["classes"]) == [*range(7)]
    with Image.open(BytesIO(base64.b64decode(image["png"].partition(",")[2]))) as shown:
        assert np.array_equal(np.asarray(shown), picture.pixels)

    bagnet, resnet = image["explanations"]
    exact = bagnet["maps"][0]
    maps = decoded(exact).reshape(7, 34, 27)
    expected = dense[..., exact["classes"]].permute(2, 0, 1).numpy()
    assert np.abs(maps - expected).max() <= exact["step"] * 0.5001
    assert exact["step"] == pytest.approx(np.abs(expected).max() / 32767)

    contributed = bagnet["maps"][1]
    shown = explanations[0].shown
    assert (contributed["method"], contributed["classes"]) == ("exact contributions", shown)
    sums = decoded(contributed).reshape(len(shown), -1).sum(1)
    assert sums == pytest.approx(explanations[0].logits[shown].numpy(), abs=34 * 27 * contributed["step"])

    top = bagnet["top"]
    scores, indices = dense.topk(5)
    assert np.array_equal(np.frombuffer(base64.b64decode(top["classes"]), "u1").reshape(34, 27, 5), indices.numpy())
    assert np.abs(decoded(top).reshape(34, 27, 5) - scores.numpy()).max() <= top["step"] * 0.5001

    assert "top" not in resnet
    assert [one["method"] for one in resnet["maps"]] == ["Grad-CAM", "integrated gradients"]
    cam = resnet["maps"][0]
    expected = explanations[1].approximations["grad_cam"].numpy()
    assert np.abs(decoded(cam).reshape(expected.shape) - expected).max() <= cam["step"] * 0.5001


def test_the_page_loads_nothing_and_has_no_gaps(models, picture, explanations):
    page = Page(models)
    page.add(picture, explanations)
    html = page.html()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)|https?://|@import|url\(""", html)
    assert "{{" not in html
    assert html.count("</script>") == 2  # names in the data end no script


def test_sixteen_images_of_64_px_and_200_classes_make_a_page_below_five_megabytes(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", "bagnet17", [f"n{number}" for number in range(200)])
    model = load_model(checkpoint, False)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = Picture("x", pixels, 0)
    page = Page([model])
    empty = len(page.html())
    page.add(picture, explain([model], picture, None, True))
    assert len(page.images[0]["classes"]) == 12
    assert empty + 16 * (len(page.html()) - empty) < 5e6


def test_the_strongest_patches_are_those_that_the_network_looks_at_and_apart(models):
    patches = torch.zeros(3, 6, 7)  # of 17 px every 8 px
    patches[0, 0, 2], patches[0, 1, 2], patches[0, 3, 2], patches[2, 5, 2] = 5, 4, 3, -2
    image = Explanation(torch.zeros(7), [2], torch.zeros(33, 57, 7), None, patches, {})
    assert strongest(models[0], image, 2, 2) == [(8, 8, 5), (8, 32, 3)]
    assert strongest(models[0], image, 2, 1, largest=False) == [(24, 48, -2)]


def test_the_strongest_patches_are_scored_as_the_evidence_around_their_middle(models, explanations, dense):
    for index in range(7):
        found = strongest(models[0], explanations[0], index, 4)
        assert found
        expected = [dense[row, column, index].item() for row, column, _ in found]
        assert [score for *_, score in found] == pytest.approx(expected, rel=1e-4)


def test_a_patch_of_padding_alone_has_its_colour():
    image = np.full((4, 6, 3), 200, np.uint8)
    for top, left in ((-3, 0), (4, 0), (0, -5), (0, 6), (-9, -9)):
        assert (cut_out(image, top, left, 3, (1, 2, 3)) == (1, 2, 3)).all()
    assert (cut_out(image, -2, 5, 3, 0)[2, 0] == 200).all()


def test_cut_outs_are_the_patches_that_the_network_saw(models, picture):
    patch = cut_out(picture.pixels, 0, 0, 17, models[0].grey)
    assert np.array_equal(patch, picture.pixels[:17, :17])
    corner = cut_out(picture.pixels, -8, 18, 17, models[0].grey)
    assert np.array_equal(corner[8:, :9], picture.pixels[:9, 18:])
    assert (corner[:8] == (128, 102, 76)).all()
    assert (corner[:, 9:] == (128, 102, 76)).all()


def test_the_picture_is_drawn(models, picture, explanations):
    with Image.open(BytesIO(draw(picture, models, explanations))) as drawn:
        assert drawn.format == "PNG"
        colours = np.asarray(drawn.convert("RGB")).reshape(-1, 3).astype(int)
    assert (colours[:, 0] - colours[:, 2] > 60).any()  # red and blue of the scale
    assert (colours[:, 2] - colours[:, 0] > 60).any()


def save(path, size=(40, 40), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, **options).save(path)


def test_a_folders_images_and_their_true_classes(tmp_path):
    save(tmp_path / "n02/a.png")
    save(tmp_path / "n03/images/b.jpg", (50, 40))
    save(tmp_path / "c.png", (20, 90))
    save(tmp_path / ".hidden/d.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    pictures, notes = pictures_of_files(tmp_path, 32, 16, CLASS_INDICES, any_size)
    assert [(p.name, p.label) for p in pictures] == [("c.png", None), ("n02/a.png", 1), ("n03/images/b.jpg", 2)]
    assert all(p.pixels.shape == (32, 32, 3) for p in pictures)
    assert [note.partition("torn.jpg")[0] for note in notes] == [f"skipped: {tmp_path}/"]
    own, _ = pictures_of_files(tmp_path, None, 16, CLASS_INDICES, any_size)
    assert [p.pixels.shape for p in own] == [(90, 20, 3), (40, 40, 3), (40, 50, 3)]
    for count in (1, 2):
        some, notes = pictures_of_files(tmp_path, 32, count, CLASS_INDICES, any_size)
        assert len(some) == count
        assert "count=N for more" in notes[-1]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "I;16", "L"])
def test_files_of_every_mode_are_explained(tmp_path, models, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    save(path, mode=mode)
    ((only,), notes) = pictures_of_files(path, None, 1, CLASS_INDICES, any_size)
    assert notes == []
    assert only.pixels.shape == (40, 40, 3)
    (explanation,) = explain(models[:1], only, None, approximate=False)
    assert explanation.dense.isfinite().all()


def test_an_image_in_place_of_one_that_cannot_be_read_stands_in_the_order_of_names(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    for name in "bc":
        save(tmp_path / f"{name}.png", (40, 40))
    pictures, _ = pictures_of_files(tmp_path, None, 2, CLASS_INDICES, any_size)
    assert [picture.name for picture in pictures] == ["b.png", "c.png"]


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 40)).save(tmp_path / "x.jpg", exif=exif)
    ((only,), _) = pictures_of_files(tmp_path / "x.jpg", None, 1, CLASS_INDICES, any_size)
    assert only.pixels.shape == (50, 40, 3)


def test_mistakes_are_explained(tmp_path, models):
    with pytest.raises(UserError, match="does not exist"):
        pictures_of_files(tmp_path / "none", None, 1, CLASS_INDICES, any_size)
    with pytest.raises(UserError, match="holds no image file"):
        pictures_of_files(tmp_path, None, 1, CLASS_INDICES, any_size)
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=r"holds no image that can be explained; the first: .*torn\.jpg"):
        pictures_of_files(tmp_path, None, 1, CLASS_INDICES, any_size)
    save(tmp_path / "huge.png", (2000, 1001))
    with pytest.raises(UserError, match=r"huge\.png has 2000 x 1001 px, too many for a page"):
        pictures_of_files(tmp_path / "huge.png", None, 1, CLASS_INDICES, any_size)
    with pytest.raises(UserError, match=r"x\.txt is no image"):
        pictures_of_files(tmp_path / "x.txt", None, 1, CLASS_INDICES, any_size)
    small = Picture("small.png", np.zeros((16, 30, 3), np.uint8), None)
    with pytest.raises(UserError, match=r"small\.png: images of 30 x 16 px are smaller .* 17 px or more are needed"):
        explain(models, small, None, False)
    with pytest.raises(UserError, match="is a ResNet-18, and only BagNets have exact evidence"):
        load_model(models[1].path, exact_only=True)


def test_the_scale_is_of_patches_in_the_image_and_not_of_its_edge():
    inside, beyond = torch.full((2, 2, 1), 3.0), torch.full((30, 30, 1), -400.0)
    explanation = Explanation(torch.zeros(1), [0], beyond, beyond, inside, {})
    assert exact_limit([explanation]) == 3


def test_predictions_are_never_tf32(models, picture, monkeypatch):
    """As in evidence: else the logits would be off from the sum of their shares by more than float noise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    allowed = []
    hooks = [
        model.network.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
        for model in models
    ]
    explain(models, picture, None, approximate=False)
    for hook in hooks:
        hook.remove()
    assert allowed == [False] * len(models)
