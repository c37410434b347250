"""Draws the picture of an image's explanations: maps over the image on one scale, and the strongest patches."""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.maps import Explanation, Model, strongest
from bagnet_lightning.names import MAPS, clipped
from bagnet_lightning.presentation.overlays import COLOURS, OPACITY, cut_out, overlay, scale_end
from bagnet_lightning.presentation.plots import GREY, png

FOR, AGAINST = "#b2182b", "#2166ac"  # colours of positive and negative scores
PATCHES = 4  # shown with the highest and with the lowest scores for a class
CLASS = 24  # characters of a class's name
PANEL = 2.15  # inches
LABEL = 1.2  # inches, minimum height of a row for its colour bar's label
DPI = 130


def draw(picture: Picture, models: list[Model], explanations: list[Explanation]) -> bytes:
    """Returns a PNG with a block for each model: a row of maps for each method, a row of patches for each class."""
    limit = exact_limit(explanations)
    heights = [_height(picture, explanation) for explanation in explanations]
    columns = 1 + len(explanations[0].shown)
    width = max(PANEL * columns + 0.9, 8.4)
    figure = Figure(figsize=(width, sum(heights)), dpi=DPI)
    blocks = np.atleast_1d(figure.subfigures(len(models), 1, height_ratios=heights))
    for block, model, explanation in zip(blocks, models, explanations, strict=True):
        _draw_block(block, picture, model, explanation, limit)
    return png(figure)


def exact_limit(explanations: list[Explanation]) -> float:
    """Returns the end of the scale, in logits, that all maps of exact evidence of an image share.

    It is computed from the network's own patches: patches that reach beyond the image's edge contain what training
    never showed, and their logits may be many times as large.
    """
    return scale_end([e.patch_logits[..., e.shown] for e in explanations if e.patch_logits is not None])


def _height(picture: Picture, explanation: Explanation) -> float:
    """Returns the height of a model's block in inches."""
    height, width, _ = picture.pixels.shape
    panel = max(LABEL, PANEL * min(2.0, height / width))
    patches = len(explanation.shown) * 1.3 if explanation.dense is not None else 0
    return 0.95 + len(explanation.maps()) * (panel + 0.1) + patches


def _draw_block(block: SubFigure, picture: Picture, model: Model, explanation: Explanation, limit: float) -> None:
    names = model.trained.class_names
    maps, shown = explanation.maps(), explanation.shown
    height = _height(picture, explanation)
    patch_rows = len(shown) if explanation.dense is not None else 0
    probability = explanation.logits.softmax(0)[explanation.predicted].item()
    prediction = f"{names[explanation.predicted]} ({probability:.0%})"
    truth = "" if picture.label is None else f"; true class: {names[picture.label]}"
    block.text(0.02, 1 - 0.12 / height, f"{model.name}: {prediction}{truth}", weight="bold", va="top", fontsize=11)
    block.text(0.98, 1 - 0.12 / height, picture.name, color=GREY, va="top", ha="right", fontsize=8)

    bottom = (patch_rows * 1.3 + 0.1) / height
    grid = block.add_gridspec(
        len(maps),
        2 + len(shown),
        width_ratios=[1] * (1 + len(shown)) + [0.05],
        left=0.02,
        right=0.9,
        top=1 - 0.7 / height,
        bottom=bottom,
        wspace=0.06,
        hspace=0.12,
    )
    axes = block.add_subplot(grid[0, 0])
    axes.imshow(picture.pixels)
    axes.set_title("image", fontsize=9)
    bare(axes)
    for row, (key, values) in enumerate(maps.items()):
        end = limit if key == "evidence" else scale_end([values])
        if row:
            axes = block.add_subplot(grid[row, 0])
            axes.axis("off")
            note = "an approximation,\non a scale of its own"
            if key == "contributions":
                note = "each patch's share of the logit,\nspread over its pixels"
            axes.text(0.95, 0.5, f"{MAPS[key]}\n({note})", ha="right", va="center", size=8)
        for column, (index, class_map) in enumerate(zip(shown, values, strict=True), start=1):
            axes = block.add_subplot(grid[row, column])
            axes.imshow(overlay(picture.pixels, class_map.numpy(), end))
            bare(axes)
            if row == 0:
                logit = explanation.logits[index].item()
                axes.set_title(f"{clipped(names[index], CLASS)}\nlogit {logit:.2f}", fontsize=9)
        scale = ScalarMappable(Normalize(-end, end), COLOURS)
        bar = block.colorbar(scale, cax=block.add_subplot(grid[row, -1]), extend="both", alpha=OPACITY)
        bar.ax.tick_params(labelsize=7)
        unit = {"evidence": "logit of the patch", "contributions": "logit a pixel"}.get(key, "an approximation")
        bar.set_label(f"{MAPS[key]}\n{unit}", fontsize=7)
    for row in range(patch_rows):
        top = (patch_rows - row) * 1.3 / height
        _draw_patches(block, picture, model, explanation, shown[row], top, height)


def _draw_patches(
    block: SubFigure, picture: Picture, model: Model, explanation: Explanation, index: int, top: float, height: float
) -> None:
    """Draws the patches with the highest and the lowest scores for a class; `top` as a fraction of the block."""
    width = block.bbox.width / block.figure.dpi
    side = 0.78  # inches
    groups = (("highest", True, 0.02), ("lowest", False, 0.51))
    for extreme, largest, left in groups:
        title = f"{extreme} scores for {clipped(model.trained.class_names[index], CLASS)}"
        block.text(left, top - 0.06 / height, title, fontsize=8.5, va="top")
        found = strongest(model, explanation, index, PATCHES, largest)
        for number, (row, column, score) in enumerate(found):
            axes = block.add_axes(
                (left + number * (side + 0.12) / width, top - (0.25 + side) / height, side / width, side / height)
            )
            radius = (model.field - 1) // 2
            axes.imshow(cut_out(picture.pixels, row - radius, column - radius, model.field, model.grey))
            bare(axes)
            axes.set_xlabel(f"{score:+.2f}", fontsize=8, labelpad=2, color=FOR if score > 0 else AGAINST)


def bare(axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GREY)
        spine.set_linewidth(0.5)
