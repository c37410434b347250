import numpy as np
import pytest
import torch

from bagnet_lightning.data.augment import augment, draw_key, draw_keys, normalize, random_bits


def batch(count=64, height=20, width=24):
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.manual_seed(0))


def expected_windows(image, padding):
    """Every image that crop and flip may make of one, by numpy's own slicing."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = padded[top : top + height, left : left + width]
            yield (top, left, False), window
            yield (top, left, True), window[:, ::-1]


def test_each_image_becomes_one_of_its_own_windows_and_all_kinds_occur():
    images = batch(200)
    out = augment(images, torch.arange(200), draw_keys(seed=1, epoch=2), crop_padding=2, flip=True)
    kinds = []
    for image, made in zip(images.numpy(), out.numpy(), strict=True):
        (kind,) = [kind for kind, window in expected_windows(image, 2) if np.array_equal(window, made)]
        kinds.append(kind)
    assert len({(top, left) for top, left, _ in kinds}) == 25
    assert 70 < sum(flipped for _, _, flipped in kinds) < 130


def test_draws_are_of_seed_epoch_and_index_alone():
    images, indices = batch(), torch.arange(64)
    whole = augment(images, indices, draw_keys(0, 3), 4, True)
    some = torch.tensor([40, 3, 17])
    assert torch.equal(augment(images[some], indices[some], draw_keys(0, 3), 4, True), whole[some])
    for seed, epoch in [(1, 3), (0, 4)]:
        other = augment(images, indices, draw_keys(seed, epoch), 4, True)
        assert (other != whole).flatten(1).any(1).float().mean() > 0.9


def test_no_two_epochs_of_any_seeds_share_their_draws():
    keys = [draw_key(seed, epoch) for seed in range(40) for epoch in range(-1, 40)]
    assert len({*keys}) == len(keys)


def test_an_alternating_flip_is_each_images_own_in_every_other_epoch():
    images, indices = batch(200), torch.arange(200)

    def mirrored(seed, epoch):
        out = augment(images, indices, torch.tensor(draw_keys(seed, epoch)), 0, "alternating")
        is_mirrored = (out == images.flip(2)).flatten(1).all(1)
        assert torch.equal(out[~is_mirrored], images[~is_mirrored])
        return is_mirrored

    first = mirrored(0, 0)
    assert 70 < first.sum() < 130
    assert torch.equal(mirrored(0, 1), ~first)
    assert torch.equal(mirrored(0, 2), first)
    assert 70 < (mirrored(1, 0) ^ first).sum() < 130
    shifted = augment(images, indices, draw_keys(0, 1), 2, "alternating")
    assert torch.equal(shifted[first], augment(images, indices, draw_keys(0, 1), 2, False)[first])


def test_a_dihedral_flip_draws_the_eight_symmetries_of_a_square_alike():
    images, indices = batch(400, height=20, width=20), torch.arange(400)
    out = augment(images, indices, draw_keys(0, 0), 0, "dihedral")
    kinds = [image.rot90(turns, (1, 2)) for image in (images, images.flip(2)) for turns in range(4)]
    found = torch.stack([(out == kind).flatten(1).all(1) for kind in kinds])  # (8, 400)
    assert torch.equal(found.sum(0), torch.ones(400, dtype=torch.int64))
    assert found.sum(1).min() > 30
    shifted = augment(images, indices, draw_keys(0, 0), 2, "dihedral")  # the crop is another draw
    assert torch.equal(shifted[found[0]], augment(images, indices, draw_keys(0, 0), 2, False)[found[0]])


def test_bits_are_uniform_and_independent():
    bits = random_bits(draw_key(5, 7), torch.arange(100_000))
    assert bits.min() >= 0
    assert bits.unique().numel() == 100_000
    columns = torch.stack([bits >> i & 1 for i in range(61)]).double()
    assert (columns.mean(1) - 0.5).abs().max() < 0.01
    assert (torch.corrcoef(columns) - torch.eye(61)).abs().max() < 0.02
    following = random_bits(torch.tensor(draw_key(5, 8)), torch.arange(100_000))
    assert ((bits ^ following) & 1).double().mean() == pytest.approx(0.5, abs=0.01)


def test_without_crop_and_flip_nothing_changes():
    images = batch()
    assert torch.equal(augment(images, torch.arange(64), draw_keys(0, 0), 0, False), images)


def test_normalize_is_torchvisions():
    from torchvision.transforms import v2

    images, mean, std = batch(), (0.48, 0.45, 0.4), (0.27, 0.26, 0.28)
    ours = normalize(images, mean, std)
    scaled = v2.functional.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True)
    torch.testing.assert_close(ours, v2.functional.normalize(scaled, mean, std))
    assert ours.is_contiguous(memory_format=torch.channels_last)
