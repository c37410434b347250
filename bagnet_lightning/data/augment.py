"""Random crop and flip of whole uint8 batches, and normalisation, on whichever device the batch is on.

Each image's random draws are a function of (seed, epoch, index) alone: they do not depend on the batch, the order, the
device or earlier draws, so a resumed run sees what an uninterrupted one would have seen.

`augment` and `rescale` make no tensor from Python numbers: on a GPU each would wait for the device, and a CUDA graph
would keep the numbers of the step it was recorded at.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def draw_key(seed: int, epoch: int) -> int:
    """Returns the key that an epoch's draws are computed from, within the range of int64."""
    return _signed(0xD1B54A32D192ED03 * (1 + seed) + 0x8CB92BA72F3D8DD7 * (1 + epoch))


def draw_keys(seed: int, epoch: int) -> tuple[int, int, int]:
    """Returns the key of an epoch's own draws, the key of the draws that all epochs share, and the epoch."""
    return draw_key(seed, epoch), draw_key(seed, -1), epoch


def random_bits(key: int | Tensor, indices: Tensor) -> Tensor:
    """Returns 61 random bits for each of `indices` (B,), as int64, by splitmix64 (Steele et al. 2014, figure 15).

    key: from draw_key, as a number or an int64 tensor on the device of the indices.
    """
    x = indices * _signed(0x9E3779B97F4A7C15)
    x = x + key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shift_right(x, shift)) * _signed(factor)
    return _shift_right(x ^ _shift_right(x, 31), 3)


def augment(
    images: Tensor, indices: Tensor, keys: Sequence[int] | Tensor, crop_padding: int, flip: bool | str
) -> Tensor:
    """Shifts each image by up to `crop_padding` px (black beyond its edge) and mirrors half of them.

    images: (B, H, W, 3) uint8. indices: (B,) int64, which images of the data set they are. keys: from draw_keys, as
    numbers or as an int64 tensor (3,) on their device. flip: False, True (half of the images, drawn anew in every
    epoch), "alternating" (each image in every other epoch: no epoch repeats the view of the one before; Jordan 2024,
    airbench) or "dihedral" (one of the eight symmetries of a square, drawn anew: turned by 0, 90, 180 or 270 degrees,
    mirrored or not; H = W). Returns (B, H, W, 3) uint8.
    """
    own, shared, epoch = keys
    bits = random_bits(own, indices)
    if crop_padding:
        shifts = 2 * crop_padding + 1
        images = _crop(images, crop_padding, (bits >> 1 & 0xFFFF) * shifts >> 16, (bits >> 17 & 0xFFFF) * shifts >> 16)
    if flip:
        mirrored = random_bits(shared, indices) + epoch if flip == "alternating" else bits
        images = _replaced(images, images.flip(2), mirrored)
    if flip == "dihedral":
        images = _replaced(images, images.flip(1), bits >> 33)
        images = _replaced(images, images.transpose(1, 2), bits >> 34)
    return images


def scale_and_bias(mean: tuple[float, ...], std: tuple[float, ...], width: int) -> tuple[Tensor, Tensor]:
    """Returns the scale and bias by which `rescale` gives (pixels / 255 - mean) / std: two (width * 3,) float32."""
    scale = torch.tensor([1 / (255 * s) for s in std]).repeat(width)
    bias = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).repeat(width)
    return scale, bias


def rescale(images: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Converts (B, H, W, 3) uint8 to (B, 3, H, W) float32 in channels_last memory: pixels * scale + bias."""
    # Rows of W * 3 values, since a broadcast over 3 channels alone would defeat vectorisation on the CPU.
    values = images.flatten(2).float()
    torch.addcmul(bias, values, scale, out=values)
    return values.view(images.shape).permute(0, 3, 1, 2)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalises pixels / 255 by a mean and a standard deviation per channel; shapes and memory as for `rescale`."""
    return rescale(images, *(values.to(images.device) for values in scale_and_bias(mean, std, images.shape[2])))


def _crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Returns the H x W window at (top, left) (B,) of each image padded with zeros by `padding` on each side."""
    batch, height, width, channels = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    image_bytes, row_bytes, pixel_bytes, _ = padded.stride()
    # A window is H runs of W * 3 bytes. In a view with a run at every byte, one gather of rows copies all of them.
    run = width * channels
    runs = padded.as_strided((padded.numel() - run + 1, run), (1, 1))
    first = torch.arange(batch, device=images.device) * image_bytes + top * row_bytes + left * pixel_bytes  # (B,)
    rows = first[:, None] + torch.arange(height, device=images.device) * row_bytes  # (B, H)
    return runs.index_select(0, rows.flatten()).view(images.shape)


def _replaced(images: Tensor, others: Tensor, where: Tensor) -> Tensor:
    """Returns the image of `others` where the lowest bit of `where` (B,) is set, and of `images` elsewhere."""
    image = torch.arange(len(images), device=images.device)
    return torch.cat([images, others]).index_select(0, image + len(images) * (where & 1))


def _signed(value: int) -> int:
    """Returns the int64 that equals `value` modulo 2^64."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shifts right and fills with zeros, where int64's own shift repeats the sign."""
    return x >> bits & (1 << (64 - bits)) - 1
