import itertools
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bagnet_lightning.analysis.figures import draw_patches
from bagnet_lightning.analysis.metrics import (
    accuracy_of_strongest,
    additivity_error,
    area_under,
    contribution_maps,
    evidence_maps,
    informative_patches,
    inside_boxes,
    masking_curves,
    mean_and_error,
    pointing_game,
    shuffle_tiles,
)
from bagnet_lightning.analysis.page import page, summary
from bagnet_lightning.evidence import contributions, dense_evidence, patch_corners, patch_evidence
from bagnet_lightning.models.bagnet import BagNet, bagnet9, bagnet17, bagnet33
from bagnet_lightning.models.resnet import resnet18

RESULTS = Path(__file__).parents[1] / "results/evidence/analysis.json"


@pytest.fixture
def images():
    return torch.randn(6, 3, 40, 48, generator=torch.Generator().manual_seed(0))


def network(make, classes=5, **options):
    torch.manual_seed(0)
    return make(num_classes=classes, width=0.25, **options).eval()


@pytest.mark.parametrize("make", [bagnet9, bagnet17, bagnet33])
def test_contributions_add_up_to_float_noise(make, images):
    model = network(make)
    with torch.no_grad():
        logits = model(images)
    patches = patch_evidence(model, images)
    assert additivity_error(logits, patches) < 1e-5
    assert additivity_error(logits + 0.01 * logits.abs().max(), patches) == pytest.approx(0.01, rel=0.02)


# Patches ------------------------------------------------------------------------------------------------------------


def test_all_patches_kept_are_the_networks_own_accuracy(images):
    model = network(bagnet9)
    with torch.no_grad():
        predicted = model(images).argmax(1)
    labels = torch.where(torch.arange(6) < 4, predicted, (predicted + 1) % 5)
    kept = accuracy_of_strongest(patch_evidence(model, images), labels, seed=0)
    patches = patch_evidence(model, images)[0, ..., 0].numel()
    assert kept["kept"] == [1, 2, 4, 8, 16, patches]
    for rule in ("strongest", "by_class", "random"):
        assert kept[rule][-1]["mean"] == pytest.approx(4 / 6)
        assert len(kept[rule]) == len(kept["kept"])


def test_rules_by_which_patches_are_kept():
    """One image of four patches: the mean says class 0, its most decided patch 1, the highest single logit 2."""
    patches = torch.tensor([[[4.0, 0, 0], [4, 0, 0]], [[0, 5, 0], [9.5, 9, 10]]])[None]
    expected = {"strongest": [1, 1, 0], "by_class": [2, 1, 0]}  # of the sums of 1, 2 and 4
    for label in range(3):
        kept = accuracy_of_strongest(patches, torch.tensor([label]), seed=0)
        assert kept["kept"] == [1, 2, 4]
        for rule, classes in expected.items():
            assert [value["mean"] for value in kept[rule]] == [float(c == label) for c in classes], (rule, label)


def test_a_constant_added_to_a_patchs_logits_keeps_the_strongest():
    patches = torch.randn(30, 3, 4, 7)
    labels = torch.randint(7, (30,))
    shifted = patches + 5 * torch.randn(30, 3, 4, 1)
    before, after = (accuracy_of_strongest(x, labels, seed=0) for x in (patches, shifted))
    assert before["strongest"] == after["strongest"]
    assert before["by_class"][:-1] != after["by_class"][:-1]


def test_random_patches_are_of_all_places_and_of_the_seed():
    """The first patch alone says class 0, so strongly that it outvotes seven others."""
    patches, labels = torch.zeros(160, 4, 4, 2), torch.zeros(160, dtype=torch.int64)
    patches[..., 1] = 1
    patches[:, 0, 0] = torch.tensor([8.5, 0])
    one, again, other = (accuracy_of_strongest(patches, labels, seed)["random"] for seed in (0, 0, 1))
    assert one == again != other
    for kept, value in zip((1, 2, 4, 8), one, strict=False):
        assert value["mean"] == pytest.approx(kept / 16, abs=0.12)


def test_informative_patches_are_the_highest_one_an_image():
    patches = torch.zeros(4, 2, 3, 2)
    labels = torch.tensor([0, 0, 1, 1])
    patches[0, 1, 2, 0], patches[0, 1, 1, 0] = 9, 8  # the second one is of the same image
    patches[1, 0, 1, 0] = 3
    patches[3, 1, 0, 0] = 7
    of_class = informative_patches(patches, labels, count=2)[0]
    assert of_class["correct"] == [
        {"image": 0, "row": 1, "column": 2, "logit": 9.0},
        {"image": 1, "row": 0, "column": 1, "logit": 3.0},
    ]
    assert of_class["misleading"][0] == {"image": 3, "row": 1, "column": 0, "logit": 7.0}
    assert of_class["misleading"][1]["image"] == 2


# Masks --------------------------------------------------------------------------------------------------------------


def test_exact_evidence_of_a_linear_network_gives_the_best_curves_there_are():
    """Its logit is a sum over tiles, so masking in order of their share is optimal at every step, and computable."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    weights = torch.randn(3, 32, 32, generator=generator) / 8

    def linear(x):
        logit = (x * weights).sum((1, 2, 3))
        return torch.stack([logit, torch.zeros_like(logit)], 1)

    exact = (images * weights).sum(1)
    classes = torch.zeros(3, dtype=torch.long)
    blank = torch.zeros_like(images)
    curves = masking_curves(linear, images, blank, classes, exact, tile=8, steps=16)

    shares = exact.view(3, 4, 8, 4, 8).sum((2, 4)).flatten(1).sort(descending=True).values  # of 16 tiles
    shown = torch.cat([torch.zeros(3, 1), shares.cumsum(1)], 1)
    assert torch.allclose(curves["insertion"], shown.sigmoid(), atol=1e-5)
    assert torch.allclose(curves["deletion"], (shares.sum(1, keepdim=True) - shown).sigmoid(), atol=1e-5)
    for _ in range(5):
        order = torch.rand(exact.shape, generator=generator)
        other = masking_curves(linear, images, blank, classes, order, tile=8, steps=16)
        assert (curves["deletion"] <= other["deletion"] + 1e-6).all()
        assert (curves["insertion"] >= other["insertion"] - 1e-6).all()
        assert (area_under(curves["deletion"]) < area_under(other["deletion"])).all()
        assert (area_under(curves["insertion"]) > area_under(other["insertion"])).all()


def test_curves_run_from_the_image_to_its_fill_and_back():
    """Also where tiles do not fit the image, and steps not their number."""
    model = network(bagnet9).double()
    images = torch.randn(2, 3, 33, 21, dtype=torch.float64)
    classes = torch.tensor([3, 1])
    fill = torch.randn_like(images)
    curves = masking_curves(model, images, fill, classes, torch.randn(2, 33, 21), tile=8, steps=7)
    with torch.no_grad():
        whole, blank = (model(x).softmax(1)[[0, 1], classes] for x in (images, fill))
    assert curves["deletion"].shape == curves["insertion"].shape == (2, 8)
    for curve, start, end in ((curves["deletion"], whole, blank), (curves["insertion"], blank, whole)):
        assert torch.allclose(curve[:, 0], start)
        assert torch.allclose(curve[:, -1], end)


def test_as_many_tiles_are_masked_as_come_nearest_to_the_share():
    images = torch.ones(1, 3, 8, 40)  # five tiles
    shown = partial(masking_curves, fill=torch.zeros_like(images), classes=torch.tensor([0]), tile=8, steps=3)
    curves = shown(lambda x: torch.stack([x.mean((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1), images, maps=torch.rand(1, 8, 40))
    assert (5 * curves["deletion"].logit()).round().tolist() == [[5, 3, 2, 0]]
    assert (5 * curves["insertion"].logit()).round().tolist() == [[0, 2, 3, 5]]


def test_area_is_the_mean_height():
    assert area_under(torch.tensor([[1.0, 1, 1], [0, 0.5, 1], [1, 0, 0]])).tolist() == [1, 0.5, 0.25]


# Boxes --------------------------------------------------------------------------------------------------------------


def test_evidence_of_an_object_points_into_its_box():
    """An object amid the mean colour: patches that do not see it all have the same evidence, and play no part."""
    model = network(bagnet9)
    images = torch.zeros(1, 3, 40, 40)
    images[:, :, 20:26, 8:16] = 3 * torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    inside = inside_boxes(torch.tensor([[4, 16, 19, 29]]), 40, 40)  # whose patches reach the object
    dense = dense_evidence(model, images)[0]
    background = dense[0, 0]
    assert torch.allclose(dense[~inside[0]], background.expand_as(dense[~inside[0]]), atol=1e-5)
    label = (dense.amax((0, 1)) - background).argmax()
    maps = evidence_maps(model, images, label[None])
    assert torch.allclose(maps[0], dense[..., label], atol=1e-6)
    hits, mass = pointing_game(maps - background[label] - 1e-4, inside)
    assert hits.tolist() == mass.tolist() == [1]


def test_each_image_has_the_map_of_its_own_class(images):
    model = network(bagnet9)
    classes = torch.tensor([4, 0, 4, 2, 1, 0])
    dense = dense_evidence(model, images)
    maps = evidence_maps(model, images, classes)
    for i, label in enumerate(classes.tolist()):
        assert torch.allclose(maps[i], dense[i, ..., label], atol=1e-5)


@pytest.mark.parametrize("pad", [0, 1, 5])
def test_contributions_lie_on_the_pixels_of_their_patches(images, pad):
    model, classes = network(bagnet17, pad=pad), torch.tensor([4, 0, 4, 2, 1, 0])
    shares, corners = contributions(model, images), patch_corners(model, 40, 48)
    expected = torch.zeros(6, 40, 48)
    for i, label in enumerate(classes.tolist()):
        for (top, left), share in zip(corners.flatten(0, 1).tolist(), shares[i, ..., label].flatten(), strict=True):
            expected[i, max(top, 0) : top + 17, max(left, 0) : left + 17] += share / 17**2
    assert torch.allclose(contribution_maps(model, images, classes), expected, atol=1e-6)
    if pad == 0:
        with torch.no_grad():
            logits = model(images)[torch.arange(6), classes]
        assert torch.allclose(expected.sum((1, 2)), logits, atol=1e-5)


def test_boxes_hold_both_their_ends():
    inside = inside_boxes(torch.tensor([[0, 0, 63, 63], [2, 1, 2, 3]], dtype=torch.int16), 64, 64)
    assert inside[0].all()
    assert inside[1].nonzero().tolist() == [[1, 2], [2, 2], [3, 2]]


def test_pointing_at_chance_and_at_nothing():
    inside = inside_boxes(torch.tensor([[0, 0, 1, 3]] * 3), 4, 4)  # half of the image
    maps = torch.stack([torch.ones(4, 4), -torch.ones(4, 4), -torch.ones(4, 4)])
    maps[1, 0, 3], maps[1, 0, 0] = 3, 1
    hits, mass = pointing_game(maps, inside)
    assert hits.tolist() == [0.5, 0, 0.5]
    assert mass[:2].tolist() == [0.5, 0.25]
    assert math.isnan(mass[2])
    assert mean_and_error(mass)["n"] == 2


# Shuffles -----------------------------------------------------------------------------------------------------------


def test_shuffling_is_a_permutation_of_tiles():
    images = torch.randn(3, 3, 32, 48)
    shuffled = shuffle_tiles(images, 16, torch.Generator().manual_seed(0))

    def tiles(x):
        return x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(3, 6, -1)

    same = (tiles(images)[:, :, None] == tiles(shuffled)[:, None]).all(3)  # (image, tile before, tile after)
    assert (same.sum(1) == 1).all()
    assert (same.sum(2) == 1).all()
    assert not torch.equal(same[0], same[1])
    assert torch.equal(shuffle_tiles(images[:, :, :, :32], 32, torch.Generator()), images[:, :, :, :32])


def test_a_bagnet_whose_patches_are_within_tiles_ignores_their_order():
    """Patches of 5 px every 8 px: with tiles of 8, 16 px none is cut, so every logit stays. BagNet-17's are cut."""
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    small = network(lambda **options: BagNet((1, 0, 0, 0), **options)).double()
    assert (small.receptive_field, small.stride) == (5, 8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tile in (8, 16, 32):
            shuffled = shuffle_tiles(images, tile, generator)
            assert not torch.equal(shuffled, images)
            assert torch.allclose(small(shuffled), small(images), rtol=1e-12, atol=0)
            assert not torch.allclose(network(bagnet17).double()(shuffled), network(bagnet17).double()(images))
            torch.manual_seed(0)
            other = resnet18(5).double().eval()
            assert not torch.allclose(other(shuffled), other(images))


def test_the_error_of_a_share_is_the_binomial_one():
    hits = torch.arange(400) % 4 == 0
    assert mean_and_error(hits) == {
        "mean": 0.25,
        "se": pytest.approx(math.sqrt(0.25 * 0.75 / 400), rel=0.002),
        "n": 400,
    }
    assert mean_and_error(torch.tensor([0.0, 1.0]))["se"] == pytest.approx(0.5)  # of a sample: n - 1
    assert mean_and_error(torch.tensor([3.0])) == {"mean": 3, "se": None, "n": 1}
    assert mean_and_error(torch.tensor([])) == {"mean": None, "se": None, "n": 0}


def test_measurements_say_which_way_is_better():
    analysis = json.loads(RESULTS.read_text())
    rows = {name: cells for name, *cells in summary(analysis["networks"])}
    assert rows["deletion area ↓, mean colour, Grad-CAM"] == ["0.050 ± 0.005", "0.132 ± 0.007"]
    assert {"accuracy ↑", "insertion area ↑, blurred image, Grad-CAM", "points into the box ↑, Grad-CAM"} <= set(rows)
    assert not any(arrow in name for name in rows for arrow in "↑↓" if "shuffled" in name)  # neither way is better
    html = page(analysis, {})
    assert "<th scope=row>accuracy ↑</th><td>0.473 ± 0.011</td>" in html
    assert "↑ is better when higher" in html
    assert "colspan=3>deletion area ↓, mean colour</th></tr><tr><th scope=row>exact evidence</th>" in html
    assert html.count("scope=row>") == len(rows) - 1


def test_what_is_written_below_patches_can_be_read_and_does_not_touch():
    names = {"a": "academic gown", "b": "sulphur butterfly, Cleopatra", "c": "Chesapeake Bay retriever"}
    entry = {"image": 0, "top": 0, "left": 0, "logit": -20.5}
    found = {kind: [entry | {"label": label} for label in names] for kind in ("correct", "misleading")}
    network = {"receptive_field": 9, "informative": dict.fromkeys(names, found)}
    figure = draw_patches(network, names, np.zeros((1, 40, 40, 3), np.uint8))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert min(text.get_fontsize() for text in axes.texts) >= 7
