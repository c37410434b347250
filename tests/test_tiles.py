import pytest
import torch

from bagnet_lightning.data.augment import draw_key
from bagnet_lightning.errors import UserError
from bagnet_lightning.pretraining.tiles import Tiles, distorted

HEIGHT, WIDTH = 40, 48


def coordinates(count: int) -> torch.Tensor:
    """Images (count, HEIGHT, WIDTH, 3) whose pixels say where they are: image, row, column."""
    axes = torch.arange(count), torch.arange(HEIGHT), torch.arange(WIDTH)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(torch.uint8)


def key(seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return torch.tensor(draw_key(seed, epoch))


def test_tiles_are_whole_windows_of_the_right_images_and_neighbours_within_the_radius():
    count, size, radius = 200, 17, 5
    tiles = Tiles(size, radius, flip=True, colour=0.0).triplets(coordinates(count), torch.arange(count), key())
    assert tiles.shape == (3 * count, size, size, 3)
    image, row, column = tiles.int().unbind(-1)
    assert (image == image[:, :1, :1]).all()
    along = torch.arange(size)
    assert (row == row[:, :1, :1] + along[:, None]).all()
    assert (column == column[:, :1, :1] + along).all()
    corners = torch.stack([row[:, 0, 0], column[:, 0, 0]], 1).view(3, count, 2)
    assert corners.amax((0, 1)).tolist() == [HEIGHT - size, WIDTH - size]  # the last places there are are drawn too
    assert corners.amin((0, 1)).tolist() == [0, 0]
    apart = (corners[0] - corners[1]).abs()
    assert apart.amax(0).tolist() == [radius, radius]
    assert ((corners[0] - corners[2]).abs() > radius).any(1).float().mean() > 0.5
    anchor, neighbour, distant = image[:, 0, 0].view(3, count)
    assert torch.equal(anchor, torch.arange(count))
    assert torch.equal(neighbour, anchor)
    assert not (distant == anchor).any()
    assert len(distant.unique()) > count / 2  # 1 - 1/e of them are expected


def test_draws_are_of_seed_epoch_and_index_alone():
    images, indices = coordinates(64), torch.arange(64)
    tiles = Tiles(17, 8, flip=True, colour=0.0)
    whole = tiles.augmented(images, indices, key(0, 3), kinds=2)
    assert torch.equal(tiles.augmented(images, indices, key(0, 3), kinds=2), whole)
    some = torch.tensor([40, 3, 17])
    part = tiles.augmented(images[some], indices[some], key(0, 3), kinds=2)
    assert torch.equal(part, whole.view(2, 64, 17, 17, 3)[:, some].flatten(0, 1))
    for other in (key(1, 3), key(0, 4)):
        assert not torch.equal(tiles.augmented(images, indices, other, kinds=2), whole)


def test_each_tile_is_mirrored_by_itself():
    images, indices = coordinates(400), torch.arange(400)
    as_they_are = Tiles(9, 8, flip=False, colour=0.0).augmented(images, indices, key(), kinds=3)
    assert torch.equal(as_they_are, Tiles(9, 8, flip=True, colour=0.0).triplets(images, indices, key()))
    tiles = Tiles(9, 8, flip=True, colour=0.0).augmented(images, indices, key(), kinds=3)
    mirrored = (tiles == as_they_are.flip(2)).flatten(1).all(1)
    assert torch.equal(tiles[~mirrored], as_they_are[~mirrored])
    anchor, neighbour, distant = mirrored.view(3, 400).double()
    for kind, other in ((anchor, neighbour), (neighbour, distant), (distant, anchor)):
        assert 0.4 < kind.mean() < 0.6
        assert 0.4 < (kind == other).double().mean() < 0.6


def test_colours_change_by_brightness_contrast_and_saturation_or_turn_grey():
    torch.manual_seed(0)
    tiles = torch.rand(4000, 3, 3, 3) * 100 + 50
    bits = torch.randint(0, 1 << 60, (4000,))
    out = distorted(tiles, bits, strength=0.5)
    assert out.min() >= 0
    assert out.max() <= 255
    grey = (out.amax(-1) - out.amin(-1)).flatten(1).amax(1) < 1e-3
    same = torch.isclose(out, tiles).flatten(1).all(1)
    assert grey.float().mean() == pytest.approx(13 / 64, abs=0.02)
    assert same.float().mean() == pytest.approx(13 / 64 * 51 / 64, abs=0.02)
    assert (out.mean((1, 2, 3)) / tiles.mean((1, 2, 3))).std() == pytest.approx(0.4 / 3**0.5 * 0.89, rel=0.15)


def test_one_saturation_by_hand():
    none = 0x8000  # of 16 bits, the factor 1
    bits = torch.tensor([none | none << 16 | 0xFFFF << 32 | 63 << 54])
    out = distorted(torch.tensor([100.0, 50.0, 0.0]).expand(1, 2, 2, 3), bits, strength=0.5)
    grey = 0.299 * 100 + 0.587 * 50
    expected = torch.tensor([1.4 * 100 - 0.4 * grey, 1.4 * 50 - 0.4 * grey, 0.0])
    torch.testing.assert_close(out, expected.expand(1, 2, 2, 3), atol=0.01, rtol=0)


def test_one_contrast_and_one_brightness_by_hand():
    none = 0x8000  # of 16 bits, the factor 1
    tile = torch.tensor([100.0, 50.0])[None, None, :, None].expand(1, 1, 2, 3)
    for bits, expected in ((none | 0xFFFF << 16, [110, 40]), (0xFFFF | none << 16, [140, 70])):
        out = distorted(tile, torch.tensor([bits | none << 32 | 63 << 54]), strength=0.5)
        torch.testing.assert_close(out[0, 0, :, 0], torch.tensor(expected).float(), atol=0.01, rtol=0)


def test_each_tile_is_recoloured_by_itself():
    """Else a neighbour would be known by its colours, which is what the changes are there to prevent."""
    images = torch.full((400, HEIGHT, WIDTH, 3), 100, dtype=torch.uint8)
    tiles = Tiles(9, 8, flip=False, colour=0.5).augmented(images, torch.arange(400), key(), kinds=3)
    brightness = tiles.mean((1, 2, 3)).view(3, 400)
    assert brightness.std(1).min() > 10
    assert (torch.corrcoef(brightness) - torch.eye(3)).abs().max() < 0.2


def test_tiles_that_do_not_fit_are_refused():
    tiles = Tiles(17, 8, flip=True, colour=0.0)
    tiles.check(18, 40)
    for height in (16, 17):  # of 17, a neighbour would lie nowhere else
        with pytest.raises(UserError, match=rf"tiles\.size=17: the images have 40 x {height} px"):
            tiles.check(height, 40)
