"""Measures what a network's decisions depend on, and how well attribution maps show it, as functions of tensors.

measure.py runs them on trained networks. Means over images are {"mean", "se", "n"}, as mean_and_error returns them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bagnet_lightning.evidence import dense_evidence, pixel_contributions
from bagnet_lightning.models.bagnet import BagNet

CHUNK = 50  # images whose patch logits are sorted at a time


# The patches of a BagNet ----------------------------------------------------------------------------------------------


def additivity_error(logits: Tensor, patch_logits: Tensor) -> float:
    """Computes max |logit - sum of the patches' contributions|, in multiples of the largest |logit|.

    logits: (N, C), the network's. patch_logits: (N, h, w, C); a patch contributes its logit / (h w).
    Brendel & Bethge 2019, section 3: the sum is exact up to the rounding of floats.
    """
    contributed = (patch_logits / patch_logits[0, ..., 0].numel()).sum((1, 2))
    return ((logits - contributed).abs().max() / logits.abs().max()).item()


def informative_patches(patch_logits: Tensor, labels: Tensor, count: int) -> list[dict[str, list[dict]]]:
    """Finds the patches with the highest logit for each class: Brendel & Bethge 2019, section 4.2 (figure 5).

    patch_logits: (N, h, w, C). labels: (N,). Only the strongest patch of each image counts, since its neighbours show
    the same. Returns for each class {"correct": in images of the class, "misleading": in images of other classes}, each
    up to `count` of {"image": 0 to N - 1, "row", "column": 0 to h - 1 and w - 1, "logit"}, the highest first.
    """
    columns = patch_logits.shape[2]
    highest, position = patch_logits.flatten(1, 2).max(1)  # (N, C) each
    classes = []
    for label in range(patch_logits.shape[3]):
        found = {}
        for kind, mask in (("correct", labels == label), ("misleading", labels != label)):
            images = mask.nonzero()[:, 0]
            images = images[highest[images, label].argsort(descending=True)[:count]].tolist()
            found[kind] = [
                {
                    "image": image,
                    "row": position[image, label].item() // columns,
                    "column": position[image, label].item() % columns,
                    "logit": highest[image, label].item(),
                }
                for image in images
            ]
        classes.append(found)
    return classes


def accuracy_of_strongest(patch_logits: Tensor, labels: Tensor, seed: int) -> dict:
    """Computes the accuracy if only k patches of each image are kept, and their logits averaged.

    patch_logits: (N, h, w, C). labels: (N,). No rule looks at the label:
        strongest   the k patches with the largest logit minus the mean of their logits over the classes (invariant to a
                    constant added to all logits of a patch, which changes no decision)
        by_class    each class averages its own k strongest patches: top-k pooling, k = 1 being max pooling
        random      k patches at random
    Returns {"kept": [1, 2, 4, ..., h w], and for each rule a list with the accuracy at each}. At k = h w all are the
    network's own. In the manner of Brendel & Bethge 2019, section 4.3 (they mask the strongest patches).
    """
    patches = patch_logits[0, ..., 0].numel()
    kept = [1 << n for n in range(patches.bit_length()) if 1 << n < patches] + [patches]
    generator = torch.Generator().manual_seed(seed)
    correct = {rule: [] for rule in ("strongest", "by_class", "random")}
    for logits, truth in zip(patch_logits.flatten(1, 2).split(CHUNK), labels.split(CHUNK), strict=True):
        strength = logits.amax(2) - logits.mean(2)  # (B, h w)
        ranked = {
            "strongest": logits.gather(1, strength.argsort(1, descending=True)[:, :, None].expand_as(logits)),
            "by_class": logits.sort(1, descending=True).values,
            "random": logits.gather(
                1, torch.rand(strength.shape, generator=generator).argsort(1)[:, :, None].expand_as(logits)
            ),
        }
        for rule, in_order in ranked.items():
            summed = in_order.cumsum(1)[:, [k - 1 for k in kept]]  # (B, len(kept), C)
            correct[rule].append(summed.argmax(2) == truth[:, None])
    return {"kept": kept} | {
        rule: [mean_and_error(column) for column in torch.cat(hits).T] for rule, hits in correct.items()
    }


# Masks, boxes, shuffles -----------------------------------------------------------------------------------------------


def evidence_maps(network: BagNet, images: Tensor, classes: Tensor) -> Tensor:
    """Computes the logit of the patch centred on each pixel: (B, 3, H, W), (B,) -> (B, H, W). See dense_evidence."""
    return _maps_of_classes(dense_evidence, network, images, classes)


def contribution_maps(network: BagNet, images: Tensor, classes: Tensor) -> Tensor:
    """Computes patches' shares of the logit, spread evenly over their pixels; same shapes. See pixel_contributions."""
    return _maps_of_classes(pixel_contributions, network, images, classes)


def _maps_of_classes(evidence: Callable[..., Tensor], network: BagNet, images: Tensor, classes: Tensor) -> Tensor:
    distinct, inverse = classes.unique(return_inverse=True)
    return evidence(network, images, distinct.tolist())[torch.arange(len(images), device=images.device), :, :, inverse]


@torch.no_grad()
def masking_curves(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    fill: Tensor,
    classes: Tensor,
    maps: Tensor,
    tile: int,
    steps: int,
) -> dict[str, Tensor]:
    """Computes deletion and insertion curves: Petsiuk et al., RISE, BMVC 2018, with tiles for pixels.

    images: (B, 3, H, W), normalised. fill: (B, 3, H, W), replaces masked pixels. classes: (B,), whose probability
    is followed. maps: (B, H, W); tiles of tile x tile px are ordered by the map's mean in them, the highest first.
    deletion: the first s / steps of the tiles are masked; insertion: all others are. Returns both (B, steps + 1), at
    s = 0 ... steps.
    """
    height, width = images.shape[2:]
    strength = F.avg_pool2d(maps[:, None].double(), tile, ceil_mode=True)  # tiles at the border may be smaller
    rank = strength.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1).view_as(strength)
    rank = rank.repeat_interleave(tile, 2).repeat_interleave(tile, 3)[:, :, :height, :width]
    curves = {"deletion": [], "insertion": []}
    for step in range(steps + 1):
        first = rank < round(step / steps * strength[0].numel())
        for name, masked in (("deletion", first), ("insertion", ~first)):
            masked = torch.where(masked, fill, images)
            curves[name].append(network(masked).softmax(1).gather(1, classes[:, None])[:, 0])
    return {name: torch.stack(points, 1) for name, points in curves.items()}


def area_under(curves: Tensor) -> Tensor:
    """Computes the mean height of each curve, by the trapezoidal rule: (B, points) -> (B,)."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1))


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Computes which pixels lie in each box, x0 y0 x1 y1 with both ends inside: (B, 4) -> (B, height, width) bool."""
    x0, y0, x1, y1 = boxes.long()[:, :, None, None].unbind(1)  # (B, 1, 1) each
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return (y0 <= rows) & (rows <= y1) & (x0 <= columns) & (columns <= x1)


def pointing_game(maps: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Measures whether maps point into the boxes. maps: (B, H, W). inside: (B, H, W) bool. Returns two (B,):

    hits: 1 where the strongest pixel lies in the box (Zhang et al., Excitation Backprop, ECCV 2016, without their
        tolerance, which is large beside these images); of several equally strong ones, the share that does.
    mass: share of the positive part of the map that lies in the box (the energy-based pointing game: Wang et al.,
        Score-CAM, CVPR workshops 2020); nan if no pixel is positive.
    """
    strongest = maps == maps.amax((1, 2), keepdim=True)
    hits = (strongest & inside).sum((1, 2)) / strongest.sum((1, 2))
    positive = maps.double().clamp(min=0)
    return hits, (positive * inside).sum((1, 2)) / positive.sum((1, 2))


def shuffle_tiles(images: Tensor, tile: int, generator: torch.Generator) -> Tensor:
    """Shuffles the tile x tile px tiles of each image.

    images: (B, C, H, W); H and W are multiples of `tile`. Returns the same shape.
    In the manner of the scrambled images of Brendel & Bethge 2019, section 4.3, who synthesise textures instead; tiles
    as in Zhang & Zhu, ICML 2019.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // tile, width // tile
    tiles = images.reshape(batch, channels, rows, tile, columns, tile).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(batch, rows * columns, generator=generator).argsort(1).to(images.device)
    tiles = tiles[torch.arange(batch, device=images.device)[:, None], order]
    tiles = tiles.view(batch, rows, columns, channels, tile, tile).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(images.shape)


def mean_and_error(values: Tensor) -> dict:
    """Returns the mean of (n,) values without nan, and its standard error (for hits and misses the binomial one)."""
    values = values.double()
    values = values[~values.isnan()]
    count = len(values)
    return {
        "mean": values.mean().item() if count else None,
        "se": values.std().item() / math.sqrt(count) if count > 1 else None,
        "n": count,
    }
