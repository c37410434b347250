"""Exact evidence: how much each patch of an image contributes to each class.

A BagNet's image logits are the mean of its patches' logits (Brendel & Bethge, ICLR 2019, section 3), so evidence is
read off, not estimated:

    dense_evidence(network, images)            # (B, H, W, classes): the logits of the patch centred on every pixel
    patch_evidence(network, images, [3, 7])    # (B, h, w, 2): of the patches that the network itself uses
    contributions(network, images)             # (B, h, w, classes): each patch's share of the image's logits
    pixel_contributions(network, images)       # (B, H, W, classes): these shares, spread evenly over patches' pixels

Evidence is computed as in evaluation: batch norm uses its running statistics whatever the network's mode, which is
never changed. No autograd graph is built, and convolutions run in full float32 where a GPU would take TF32.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bagnet_lightning.errors import UserError
from bagnet_lightning.models.bagnet import BagNet, Bottleneck


def dense_evidence(
    model: BagNet,
    images: Tensor,
    classes: Sequence[int] | None = None,
    stride: int = 1,
    max_memory_mib: float = 1024,
) -> Tensor:
    """Computes the logits of the q x q patch centred on every pixel, as if each were run by itself.

    q: the receptive field.
    images: (B, 3, H, W), normalised, of any size, in the dtype and on the device of the model. They are surrounded by
        (q - 1) / 2 zeros, as in the public heatmap code (the train images' mean colour if they were normalised by it,
        else black); model.pad plays no part.
    classes: indices of the requested classes, in the order of the result's last axis; all by default. The last layer is
        computed for these alone.
    stride: 1, 2, 4 or 8: only every stride-th row and column, for about 1 / stride^2 of the work.
    max_memory_mib: limit on the activations held at a time, in MiB; images are run in groups or in tiles to keep to it.
        The result and one block's weights come on top.
    Returns (B, ceil(H / stride), ceil(W / stride), classes).

    Raises UserError if model is no BagNet; ValueError for a class that the model does not have, another stride, and a
    limit that is too small for a single patch.
    """
    _require_bagnet(model)
    before, after = (model.receptive_field - 1) // 2, model.receptive_field // 2
    surrounded = F.pad(images, (before, after, before, after))
    return _valid_evidence(model, surrounded, classes, stride, max_memory_mib)


def patch_evidence(model: BagNet, images: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """Computes the logits of the network's own patches, model.stride px apart; their mean is the image's logits.

    images: (B, 3, H, W), normalised; model.pad is added as the model does. classes and errors as for
    dense_evidence, and UserError for an image that is smaller than a patch. Returns (B, h, w, classes); patch_corners
    returns their positions in the image.
    """
    _require_bagnet(model)
    return _valid_evidence(model, model.padded(images), classes, model.stride)


def patch_corners(model: BagNet, height: int, width: int) -> Tensor:
    """Computes the top-left corners of patch_evidence's patches in an image of height x width px.

    Returns (h, w, 2), int64: row and column of each patch's top-left pixel. Patches are model.receptive_field px wide;
    where they reach into model.pad, a corner is negative or a patch ends beyond the image.
    """
    rows, columns = (
        torch.arange(0, size + model.pad - model.receptive_field + 1, model.stride) - model.pad // 2
        for size in (height, width)
    )
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)


def contributions(model: BagNet, images: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """Computes each patch's share of the image's logits, bias included: their sum over h, w is model(images).

    Arguments and errors as for patch_evidence. Returns (B, h, w, classes). Brendel & Bethge 2019, section 3.
    """
    evidence = patch_evidence(model, images, classes)
    return evidence / (evidence.shape[1] * evidence.shape[2])


def pixel_contributions(model: BagNet, images: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """Spreads each patch's share of the image's logits evenly over its pixels; overlapping patches add up.

    Arguments and errors as for patch_evidence. Returns (B, H, W, classes). The sum over H, W is model(images), except
    for the parts of patches that lie in model.pad; pixels that no patch sees have 0.
    """
    shares = contributions(model, images, classes).permute(0, 3, 1, 2)
    field, before = model.receptive_field, model.pad // 2
    even = shares.new_full((1, 1, field, field), field**-2)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # field**-2 has more digits than TF32
        spread = F.conv_transpose2d(shares.flatten(0, 1)[:, None], even, stride=model.stride)
    spread = spread.unflatten(0, shares.shape[:2])
    maps = shares.new_zeros(*shares.shape[:2], *(size + model.pad for size in images.shape[2:]))
    maps[..., : spread.shape[3], : spread.shape[4]] = spread[:, :, 0]
    return maps[..., before : before + images.shape[2], before : before + images.shape[3]].permute(0, 2, 3, 1)


def check_additive(model: BagNet, side: int) -> None:
    """Raises UserError unless the logits of an image are the mean of its patches', which a subclass may have changed.

    side: of the images that the model is for, px.
    """
    model = deepcopy(model).eval()
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(model.fc.weight)
    with torch.no_grad():
        logits = model(images)
    difference = (patch_evidence(model, images).mean((1, 2)) - logits).abs().max()
    if not difference <= 0.01 * logits.abs().max():
        raise UserError(
            f"{type(model).__name__} is a BagNet, but its logits are not the mean of its patches' logits (off by "
            f"{difference:.2g}): derive it from torch.nn.Module instead"
        )


def _require_bagnet(model: nn.Module) -> None:
    if not isinstance(model, BagNet):
        raise UserError(f"exact evidence needs a BagNet, not {type(model).__name__}; use gradients for other networks")


@torch.no_grad()
def _valid_evidence(
    model: BagNet, images: Tensor, classes: Sequence[int] | None, stride: int, max_memory_mib: float = 1024
) -> Tensor:
    """Computes the logits of the patches that begin at every stride-th pixel: (B, 3, H, W) -> (B, h, w, classes)."""
    strides = {1 << n for n in range(model.stride.bit_length())}
    if stride not in strides:
        raise ValueError(f"stride is one of {sorted(strides)}, not {stride}")
    weight, bias = model.fc.weight, model.fc.bias
    if classes is not None:
        if unknown := [index for index in classes if not 0 <= index < len(weight)]:
            raise ValueError(f"there is no class {unknown[0]}; the model has classes 0 to {len(weight) - 1}")
        chosen = torch.as_tensor(classes, device=weight.device)
        weight, bias = weight[chosen], bias[chosen]
    field = model.receptive_field
    rows, columns = ((size - field) // stride + 1 for size in images.shape[2:])
    limit = max_memory_mib * 2**20 / weight.element_size()
    group, tile_rows, tile_columns = _tiles(model, rows, columns, stride, limit)

    evidence = images.new_empty(len(images), rows, columns, len(weight))
    for first in range(0, len(images), group):
        for top in range(0, rows, tile_rows):
            for left in range(0, columns, tile_columns):
                tile = evidence[first : first + group, top : top + tile_rows, left : left + tile_columns]
                seen = images[
                    first : first + group,
                    :,
                    top * stride : (top + tile.shape[1] - 1) * stride + field,
                    left * stride : (left + tile.shape[2] - 1) * stride + field,
                ]
                with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                    logits = F.conv2d(_features(model, seen, stride), weight[:, :, None, None], bias)
                tile.copy_(logits.permute(0, 2, 3, 1))
    return evidence


def _tiles(model: BagNet, rows: int, columns: int, stride: int, limit: float) -> tuple[int, int, int]:
    """Returns the images per group, and the rows and columns per tile, for which about `limit` numbers are held."""
    while (held := _numbers_held(model, rows, columns, stride)) > limit:
        if rows == columns == 1:
            raise ValueError("max_memory_mib is too small for a single patch; one of 16 or more always works")
        if rows >= columns:
            rows = (rows + 1) // 2
        else:
            columns = (columns + 1) // 2
    return int(limit // held), rows, columns


def _numbers_held(model: BagNet, rows: int, columns: int, stride: int) -> int:
    """Returns an upper bound on the activations held at a time for rows x columns patches that are stride px apart."""
    sides = [(n - 1) * stride + model.receptive_field - 2 for n in (rows, columns)]
    most = 0
    for block, step, dilation in _steps(model, stride):
        before = sides[0] * sides[1]
        reach = dilation * (block.conv2.kernel_size[0] - 1)
        sides = [(side - reach - 1) // step + 1 for side in sides]
        after = sides[0] * sides[1]
        planes, outputs = block.conv2.out_channels, block.conv3.out_channels
        most = max(most, before * (block.conv1.in_channels + planes) + after * (planes + 2 * outputs))
    return most


def _steps(model: BagNet, stride: int) -> Iterator[tuple[Bottleneck, int, int]]:
    """Yields each block, its stride and its dilation for evidence of a patch every `stride` px.

    Blocks keep their strides as long as the product divides `stride`. Each later stride becomes 1, and the 3 x 3
    convolutions after it are dilated by it instead, so that they read the same pixels as before.
    """
    taken = dilation = 1
    for block in model.blocks:
        own = block.conv2.stride[0]
        step = own if stride % (taken * own) == 0 else 1
        yield block, step, dilation
        taken *= step
        dilation *= own // step


def _features(model: BagNet, images: Tensor, stride: int) -> Tensor:
    """Computes the feature vector of the patch at every stride-th pixel: (B, 3, H, W) -> (B, 2048 * width, h, w).

    Batch norm is folded into the convolution before it, for one block at a time, whose folded weights are freed after
    it. Only in-place operations stand between the convolutions, which run channels-last, as oneDNN and cuDNN prefer.
    """
    weight, bias = _folded(model.conv2, model.bn1)
    weight = torch.einsum("omhw,mi->oihw", weight, model.conv1.weight[:, :, 0, 0])
    x = F.conv2d(images.contiguous(memory_format=torch.channels_last), weight, bias).relu_()
    for block, step, dilation in _steps(model, stride):
        x = _block(block, x, step, dilation)
    return x


def _block(block: Bottleneck, x: Tensor, step: int, dilation: int) -> Tensor:
    out = F.conv2d(x, *_folded(block.conv1, block.bn1)).relu_()
    out = F.conv2d(out, *_folded(block.conv2, block.bn2), stride=step, dilation=dilation).relu_()
    out = F.conv2d(out, *_folded(block.conv3, block.bn3))
    shortcut = x[:, :, ::step, ::step][:, :, : out.shape[2], : out.shape[3]]
    if block.downsample is not None:
        shortcut = F.conv2d(shortcut, *_folded(*block.downsample))
    return out.add_(shortcut).relu_()


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of one convolution that equals conv followed by norm in evaluation."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
