"""The textures keep their promise: nothing but structure of the named size tells the two classes of a pair apart."""

import numpy as np
import pytest
import torch

from bagnet_lightning.data import textures
from bagnet_lightning.errors import UserError

FIELDS = list(textures.SCALES)
ROWS, COLUMNS = 0, 1


@pytest.fixture(scope="module")
def store():
    return textures.open_store(seed=3, train_images=3600, val_images=60)


def dots_of(store, field: int, direction: int) -> torch.Tensor:
    """(N, 64, 64) bool, where the dots of one class's training images are: they are brighter than any ground."""
    split = store.splits["train"]
    return split.images[split.labels == 2 * FIELDS.index(field) + direction].amin(3) > 170


def pairs(dots: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """(N,) how many dot pixels have another one `down` and `right` (down, right >= 0, or mirrored) of them, in px."""
    height, width = dots.shape[1] - down, dots.shape[2] - right
    one = dots[:, :height, :width] & dots[:, down:, right:]
    other = dots[:, :height, right:] & dots[:, down:, :width]
    return (one | other).sum((1, 2))


def is_columns(dots: torch.Tensor, field: int) -> torch.Tensor:
    """(N,) bool: whether more dots have a neighbour below than beside them; looks no further than the field."""
    _, distance, across = textures.SCALES[field]
    below = sum(pairs(dots, distance, right) for right in range(across + 1))
    beside = sum(pairs(dots, down, distance) for down in range(across + 1))
    return below > beside


def test_shapes_types_and_balance(store):
    assert len(store.classes) == len(store.class_names) == 6
    assert store.class_names[3] == "17 px: columns of dots"
    for name, count in (("train", 3600), ("val", 60)):
        split = store.splits[name]
        assert split.images.shape == (count, 64, 64, 3)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.labels.bincount().tolist() == [count // 6] * 6
        assert split.boxes.shape == (count, 4)
        assert split.boxes.dtype == torch.int16
        assert (split.boxes == -1).all()
    pixels = store.splits["train"].images.numpy().reshape(-1, 3)
    np.testing.assert_allclose(store.mean, pixels.mean(0) / 255, rtol=1e-9)
    np.testing.assert_allclose(store.std, pixels.std(0) / 255, rtol=1e-9)


DIGESTS = {
    "train": "a1571b34838853b1e422fbc2e53b921a237e648995200594605a5f9b70e9b723",
    "val": "5fd8f0b34ff7e21129a142544e7ce6518fd733736977275a34fcc25c745e4876",
}


def test_a_seed_gives_the_same_bits_everywhere():
    once, again = textures.open_store(0, 13, 7), textures.open_store(0, 13, 7)
    assert all(torch.equal(once.splits[s].images, again.splits[s].images) for s in ("train", "val"))
    assert once.digests == again.digests == DIGESTS
    assert once.digests["val"] != textures.open_store(1, 13, 7).digests["val"]
    assert not torch.equal(once.splits["train"].images[:7], once.splits["val"].images)


@pytest.mark.parametrize("field", FIELDS)
def test_pairs_of_dots_within_the_field_tell_the_class_also_mirrored(store, field):
    for direction in (ROWS, COLUMNS):
        dots = dots_of(store, field, direction)
        assert (is_columns(dots, field) == bool(direction)).all()
        assert (is_columns(dots.flip(2), field) == bool(direction)).all()
        assert (is_columns(dots.transpose(1, 2), field) != bool(direction)).all()


@pytest.mark.parametrize(("smaller", "field"), [(9, 17), (9, 33), (17, 33)])
@pytest.mark.parametrize("direction", [ROWS, COLUMNS])
def test_a_smaller_patch_never_touches_two_dots(store, smaller, field, direction):
    dots, dot = dots_of(store, field, direction), textures.SCALES[field][0]
    for down in range(smaller):
        for right in range(smaller):
            if max(down, right) >= dot:
                assert pairs(dots, down, right).sum() == 0
    distance = textures.SCALES[field][1]
    assert distance + dot <= field
    assert (pairs(dots, *((0, distance), (distance, 0))[direction])).sum() > 0


@pytest.mark.parametrize("field", FIELDS)
def test_dots_are_as_likely_everywhere_in_both_classes(store, field):
    """With one dot a patch at most, this makes the distribution of the smaller patches: the same in both classes."""
    dot, distance, _ = textures.SCALES[field]
    expected = dot**2 / (2 * distance**2)
    for direction in (ROWS, COLUMNS):
        share = dots_of(store, field, direction).double().mean(0)
        spread = (expected * (1 - expected) / 600) ** 0.5
        assert (share - expected).abs().max() < 5 * spread
        assert abs(share.mean() - expected) < 0.05 * expected


@pytest.mark.parametrize("field", FIELDS)
def test_global_statistics_do_not_tell_the_class(store, field):
    """A linear classifier on colours, contrast, histograms and borders guesses; given the pairs of dots, it knows."""
    split = store.splits["train"]
    chosen = split.labels // 2 == FIELDS.index(field)
    images, target = split.images[chosen].double() / 255, split.labels[chosen].double() % 2 * 2 - 1
    grey = images.mean(3)
    histograms = torch.stack([torch.histc(image, 12, 0.45, 1) for image in grey]) / 64**2
    counts = (grey > 0.66).sum((1, 2))
    border = torch.ones(64, 64, dtype=torch.bool)
    border[6:-6, 6:-6] = False
    features = [images.mean((1, 2)), images.std((1, 2)), images.amax((1, 2)), images.amin((1, 2)), histograms]
    features += [grey[:, border].mean(1)[:, None], grey[:, border].std(1)[:, None], counts[:, None] ** 2 / 1e5]

    def accuracy(columns):
        table = torch.cat(columns, 1)
        table = torch.cat([(table - table.mean(0)) / (table.std(0) + 1e-12), torch.ones(len(table), 1)], 1).double()
        weights = torch.linalg.lstsq(table[::2].T @ table[::2] + 1e-3 * torch.eye(table.shape[1]), table[::2].T @ y)[0]
        return ((table[1::2] @ weights > 0) == (target[1::2] > 0)).double().mean().item()

    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    features, target = [f[order] for f in features], target[order]
    y = target[::2]
    direction = is_columns(grey > 0.66, field)[order].double()[:, None]
    assert abs(accuracy(features) - 0.5) < 4 * 0.5 / len(y) ** 0.5
    assert accuracy([*features, direction]) > 0.95


def test_other_sizes():
    store = textures.open_store(0, 6, 6, image_size=100)
    assert store.splits["train"].images.shape == (6, 100, 100, 3)
    dots = store.splits["train"].images.amin(3) > 170
    assert [bool(is_columns(dots[k : k + 1], FIELDS[k // 2])) for k in range(6)] == [False, True] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 12, 64), r"data\.train_images is 5"),
        ((0, 12, 0, 64), r"data\.val_images is 0"),
        ((0, 12, 12, 32), r"data\.image_size is 32"),
    ],
)
def test_unusable_values_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        textures.open_store(*arguments)
