"""The measurements of metrics.py on a trained network and a sample of images.

    measured = measure(trained, sample, map_count=100, seed=0)  # plain numbers, as they go into analysis.json

Means over images are {"mean", "se", "n"}, as mean_and_error returns them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

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
from bagnet_lightning.checkpoint import Trained
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.evidence import patch_corners, patch_evidence
from bagnet_lightning.explanation.attribution import NO_STAGE, Maps, methods_for
from bagnet_lightning.inference.logits import best_device
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.progress_bar import progress_bar

MASKING_STEPS = 16  # from the whole image to none of it
FILLS: dict[str, Callable[[Tensor], Tensor]] = {  # replacements for masked parts of images (B, 3, H, W)
    "zero": torch.zeros_like,  # as evidence.py pads images, and integrated gradients start
    "blur": lambda images: gaussian_blur(images, 17, 8),  # px; in the manner of RISE
}
SHUFFLED_TILES = (8, 16, 32)  # px
PATCHES_A_CLASS = 6  # most informative patches, correct and misleading ones each
BATCH, MAP_BATCH = 50, 10  # images; fewer if each takes hundreds of passes, so that the progress bar moves


@dataclass(frozen=True)
class Sample:
    """Images to measure on.

    pixels: (N, H, W, 3) uint8. labels: (N,) int64, positions in the network's classes. boxes: (N, 4) int16, x0 y0 x1 y1
    of the labelled object in pixels, both ends inside; -1 if there is none. indices: (N,), their indices in the split.
    """

    pixels: Tensor
    labels: Tensor
    boxes: Tensor
    indices: Tensor

    def first(self, count: int) -> "Sample":
        return Sample(self.pixels[:count], self.labels[:count], self.boxes[:count], self.indices[:count])


def measure(trained: Trained, sample: Sample, map_count: int, seed: int, tile: int = 8) -> dict:
    """Takes all measurements of one network; maps and masks, which take longest, on the first `map_count` images.

    tile: px, side of the squares that are masked; by default the stride of a BagNet's patches.
    Returns plain numbers, strings, lists and dicts. Measurements that are not possible are left out, and "notes" says
    why. Float32 throughout, TF32 off: a rounding of 1e-3 would be mistaken for an error of the evidence.
    Raises UserError if the images are smaller than a BagNet's patches.
    """
    network = trained.network.to(best_device(), memory_format=torch.channels_last).eval()
    name = trained.name
    if isinstance(network, BagNet):
        network.check_size(*sample.pixels.shape[1:3])
    notes = []
    measured = {"model": name, "images": len(sample.labels), "map_images": min(map_count, len(sample.labels))}
    measured["notes"] = notes
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        if isinstance(network, BagNet):
            measured |= _measure_patches(trained, sample, seed)
        else:
            notes.append(
                f"{name} sees the whole image at once: it has no patches, hence no exact evidence, no most informative "
                "patches, no accuracy by kept patches and no additivity error."
            )
        measured["shuffled"] = _measure_shuffles(trained, sample, seed, notes)
        measured |= _measure_maps(trained, sample.first(map_count), seed, tile, notes)
    return measured


@torch.no_grad()
def _measure_patches(trained: Trained, sample: Sample, seed: int) -> dict:
    network, logits, patches = trained.network, [], []
    for images, _ in _batches(trained, sample, "patches"):
        logits.append(network(images).cpu())
        patches.append(patch_evidence(network, images).cpu())
    logits, patches = torch.cat(logits), torch.cat(patches)
    corners = patch_corners(network, *sample.pixels.shape[1:3])
    informative = informative_patches(patches, sample.labels, PATCHES_A_CLASS)
    for entry in (entry for kinds in informative for entries in kinds.values() for entry in entries):
        entry["top"], entry["left"] = corners[entry.pop("row"), entry.pop("column")].tolist()
        entry["label"] = trained.classes[sample.labels[entry["image"]]]
        entry["image"] = sample.indices[entry["image"]].item()
    return {
        "receptive_field": network.receptive_field,
        "patches": corners.shape[0] * corners.shape[1],
        "additivity_error": additivity_error(logits, patches),
        "strongest": accuracy_of_strongest(patches, sample.labels, seed),
        "informative": dict(zip(trained.classes, informative, strict=True)),
    }


@torch.no_grad()
def _measure_shuffles(trained: Trained, sample: Sample, seed: int, notes: list[str]) -> dict:
    """Measures accuracy and the share of unchanged predictions with shuffled tiles; tile size null: unshuffled."""
    height, width = sample.pixels.shape[1:3]
    sizes = [size for size in SHUFFLED_TILES if height % size == width % size == 0 and size < max(height, width)]
    if left_out := [str(size) for size in SHUFFLED_TILES if size not in sizes]:
        notes.append(
            f"Images of {width} x {height} px are not made of several tiles of {', '.join(left_out)} px: not shuffled."
        )
    generators = {size: torch.Generator().manual_seed(seed) for size in sizes}  # the same orders for every network
    predicted = {size: [] for size in (*sizes, None)}
    for images, _ in _batches(trained, sample, "shuffled tiles"):
        for size, predictions in predicted.items():
            shuffled = shuffle_tiles(images, size, generators[size]) if size else images
            predictions.append(trained.network(shuffled).argmax(1).cpu())
    predicted = {size: torch.cat(predictions) for size, predictions in predicted.items()}
    return {
        "tile": [*predicted],
        "accuracy": [mean_and_error(predictions == sample.labels) for predictions in predicted.values()],
        "unchanged": [mean_and_error(predictions == predicted[None]) for predictions in predicted.values()],
    }


def _measure_maps(trained: Trained, sample: Sample, seed: int, tile: int, notes: list[str]) -> dict:
    """Measures deletion, insertion and the pointing game for every method that gives maps of this network."""
    methods: dict[str, Maps] = {}
    if isinstance(trained.network, BagNet):
        methods = {"evidence": evidence_maps, "contributions": contribution_maps}
    if find_spec("captum"):
        methods |= methods_for(trained.network, *sample.pixels.shape[1:3])
        if "grad_cam" not in methods:
            notes.append(f"{trained.name} has no Grad-CAM: {NO_STAGE}.")
    else:
        notes.append("Grad-CAM and integrated gradients need captum: pip install 'bagnet-lightning[explain]'.")
    pointing = {name: ([], []) for name in methods}
    generator = torch.Generator().manual_seed(seed)
    methods["random"] = lambda _, images, __: torch.rand(images[:, 0].shape, generator=generator).to(images.device)
    curves = {fill: {name: {"deletion": [], "insertion": []} for name in methods} for fill in FILLS}
    boxed = (sample.boxes >= 0).all(1)
    inside = inside_boxes(sample.boxes, *sample.pixels.shape[1:3])
    for images, rows in _batches(trained, sample, "maps and masks", MAP_BATCH):
        with torch.no_grad():
            predicted = trained.network(images).argmax(1)
        labels = sample.labels[rows].to(predicted.device)
        wrong = predicted != labels
        fills = {fill: filling(images) for fill, filling in FILLS.items()}
        for name, method in methods.items():
            maps = method(trained.network, images, predicted)
            for fill, fill_images in fills.items():
                points = masking_curves(trained.network, images, fill_images, predicted, maps, tile, MASKING_STEPS)
                for kind, values in points.items():
                    curves[fill][name][kind].append(values.cpu())
            if name in pointing and boxed[rows].any():
                if wrong.any():  # boxes are of the true class
                    maps[wrong] = method(trained.network, images[wrong], labels[wrong]).to(maps)
                for values, new in zip(pointing[name], pointing_game(maps.cpu(), inside[rows]), strict=True):
                    values.append(new[boxed[rows]])
    masked: dict = {"tile": tile, "shares": [step / MASKING_STEPS for step in range(MASKING_STEPS + 1)]}
    for fill, of_fill in curves.items():
        masked[fill] = {name: {kind: _summary(c) for kind, c in kinds.items()} for name, kinds in of_fill.items()}
    measured = {"masked": masked}
    if not boxed.any():
        notes.append("No image has a bounding box: the pointing game is left out.")
    elif pointing:
        centre = inside[boxed, sample.pixels.shape[1] // 2, sample.pixels.shape[2] // 2]
        measured["pointing"] = {
            "chance": mean_and_error(inside[boxed].double().mean((1, 2))),  # the box's share of the image
            "centre": mean_and_error(centre),  # hits of a map that always points to the middle
        } | {
            name: {"hits": mean_and_error(torch.cat(hits)), "mass": mean_and_error(torch.cat(mass))}
            for name, (hits, mass) in pointing.items()
        }
    return measured


def _summary(curves: list[Tensor]) -> dict:
    """Returns the mean curve and the mean area of batches of curves."""
    points = torch.cat(curves)
    return {"curve": [mean_and_error(column) for column in points.T], "area": mean_and_error(area_under(points))}


def _batches(trained: Trained, sample: Sample, what: str, size: int = BATCH) -> Iterator[tuple[Tensor, slice]]:
    """Yields normalised images (B, 3, H, W) on the network's device, and their slice of the sample."""
    with progress_bar(f"{trained.name}: {what}", len(sample.pixels)) as advance:
        for start in range(0, len(sample.pixels), size):
            rows = slice(start, start + size)
            images = normalize(sample.pixels[rows].to(best_device()), trained.mean, trained.std)
            yield images, rows
            advance(len(images))
