"""Tiles of images for pretraining, cut from whole uint8 batches on whichever device the batch is on.

An anchor tile lies anywhere in an image, its neighbour within a radius of it, and the distant tile anywhere in another
image of the batch (Jean et al., Tile2Vec, AAAI 2019, section 3.2; the radius is of a square, as in their public code).

As in data/augment.py, draws are functions of (seed, epoch, index) alone, except the choice of the image that a distant
tile is cut from, and no tensor is made from Python numbers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bagnet_lightning.data.augment import random_bits
from bagnet_lightning.errors import UserError

ANCHOR, NEIGHBOUR, DISTANT = range(3)
STREAM = 0x03F07B357F6837AD  # difference between the keys of an image's streams of draws


@dataclass(frozen=True)
class Tiles:
    """Cuts tiles of size x size px out of batches of images (B, H, W, 3).

    radius: largest distance of a neighbour's corner from its anchor's, px, along each axis. flip: mirror half of the
    tiles. colour: strength of SimCLR's colour distortion (Chen et al. 2020, appendix A) without its change of hue.
    """

    size: int
    radius: int
    flip: bool
    colour: float

    def check(self, height: int, width: int) -> None:
        """Raises UserError unless tiles are smaller than images of this size.

        The neighbour of a tile as large as the image would be the tile itself.
        """
        if self.size >= min(height, width):
            raise UserError(f"tiles.size={self.size}: the images have {width} x {height} px; choose smaller tiles")

    def triplets(self, images: Tensor, indices: Tensor, key: Tensor) -> Tensor:
        """Returns unaugmented anchors, then neighbours, then distant tiles of the images: (3 B, size, size, 3) uint8.

        indices: (B,) int64, which images of the data set they are. key: of draw_key, int64, on their device.
        """
        places = self.places(indices, key, images.shape[1], images.shape[2])
        return torch.cat([_cut(images, place, self.size) for place in places])

    def augmented(self, images: Tensor, indices: Tensor, key: Tensor, kinds: int) -> Tensor:
        """Returns the first `kinds` of the three, each tile mirrored and recoloured by itself: same form, 0 to 255."""
        places = self.places(indices, key, images.shape[1], images.shape[2])[:kinds]
        bits = [random_bits(_stream(key, 4 + kind), indices) for kind in range(kinds)]
        mirrored = [self.flip * (draws & 1) for draws in bits]
        tiles = [_cut(images, place, self.size, mirror) for place, mirror in zip(places, mirrored, strict=True)]
        return distorted(torch.cat(tiles), torch.cat(bits) >> 1, self.colour) if self.colour else torch.cat(tiles)

    def places(self, indices: Tensor, key: Tensor, height: int, width: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns for each of the three kinds the image's index in the batch, top row and left column; (B,) int64."""
        batch = torch.arange(len(indices), device=indices.device)
        bits = [random_bits(_stream(key, kind), indices) for kind in range(4)]
        ends = height - self.size, width - self.size
        anchor = [_draw(bits[ANCHOR], 16 * axis, end + 1) for axis, end in enumerate(ends)]
        neighbour = []
        for axis, end in enumerate(ends):
            first = (anchor[axis] - self.radius).clamp(min=0)
            last = (anchor[axis] + self.radius).clamp(max=end)
            neighbour.append(first + _draw(bits[NEIGHBOUR], 16 * axis, last - first + 1))
        distant = [_draw(bits[DISTANT], 16 * axis, end + 1) for axis, end in enumerate(ends)]
        other = (batch + 1 + _draw(bits[3], 0, len(indices) - 1)) % len(indices)
        return [(batch, *anchor), (batch, *neighbour), (other, *distant)]


def distorted(tiles: Tensor, bits: Tensor, strength: float) -> Tensor:
    """Changes brightness, contrast and saturation of four tiles in five, and turns one in five grey.

    tiles: (N, h, w, 3), 0 to 255. bits: (N,), 60 random bits each. strength: 0.8 times it is the largest relative
    change of each of the three. Returns float32.
    """
    changed = (bits >> 48 & 63) < 51  # 51 of 64
    brightness, contrast, saturation = (
        (1 + changed * (0.8 * strength) * ((bits >> shift & 0xFFFF) / 32767.5 - 1))[:, None, None, None]
        for shift in (0, 16, 32)
    )
    coloured = ((bits >> 54 & 63) >= 13)[:, None, None, None]
    tiles = (tiles * brightness).clamp(0, 255)
    tiles = _blend(tiles, _grey(tiles).mean((1, 2, 3), keepdim=True), contrast)
    return _blend(tiles, _grey(tiles), saturation * coloured)


def _grey(tiles: Tensor) -> Tensor:
    """Returns the ITU-R 601-2 luma, (N, h, w, 1)."""
    return 0.299 * tiles[..., :1] + 0.587 * tiles[..., 1:2] + 0.114 * tiles[..., 2:]


def _blend(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return (one * share + other * (1 - share)).clamp(0, 255)


def _cut(images: Tensor, place: tuple[Tensor, Tensor, Tensor], size: int, mirror: Tensor | None = None) -> Tensor:
    """Returns the tiles at `place`, (B, size, size, 3). mirror: (B,), 1 where columns run from right to left."""
    image, top, left = place
    offsets = torch.arange(size, device=images.device)
    columns = offsets if mirror is None else torch.where(mirror[:, None] == 1, size - 1 - offsets, offsets)
    return images[image[:, None, None], (top[:, None] + offsets)[:, :, None], (left[:, None] + columns)[:, None, :]]


def _draw(bits: Tensor, shift: int, count: int | Tensor) -> Tensor:
    """Draws a number from 0 to below `count` from 16 of the bits."""
    return (bits >> shift & 0xFFFF) * count >> 16


def _stream(key: Tensor, number: int) -> Tensor:
    """Returns the key of another stream of draws for the same images."""
    return key + number * STREAM
