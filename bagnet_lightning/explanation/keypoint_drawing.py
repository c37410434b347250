"""Draws the picture of an image's keypoints: circles of their size, coloured by share, and the strongest cut out."""

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bagnet_lightning.explanation.drawing import AGAINST, CLASS, DPI, FOR, PANEL, PATCHES, bare
from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.keypoint_maps import KeypointExplanation
from bagnet_lightning.names import clipped
from bagnet_lightning.presentation.overlays import COLOURS, LUMINANCE, cut_out, scale_end
from bagnet_lightning.presentation.plots import GREY, png

SIDE, GAP = 1.25 * PANEL, 0.15  # inches: side of a panel, and the gap beside it
CUT, ROW = 0.78, 1.3  # inches: side of a cut-out keypoint, and height of a row of them
OUTLINED = 16  # keypoints with an outline in a panel; more would hide each other
CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2


def draw(
    picture: Picture, explanation: KeypointExplanation, system: str, class_names: list[str], patches: bool
) -> bytes:
    """Returns a PNG: the image, a panel for each shown class, and a row of each one's strongest keypoints.

    patches: whether the keypoints are square patches.
    """
    shown, shares = explanation.shown, explanation.shares
    height_px, width_px, _ = picture.pixels.shape
    panel_height, rows_height = SIDE * min(2.0, height_px / width_px), len(shown) * ROW + 0.1  # inches
    width, height = max((1 + len(shown)) * (SIDE + GAP) + 1.1, 8.4), rows_height + panel_height + 0.85
    figure = Figure(figsize=(width, height), dpi=DPI)

    def axes_at(left: float, bottom: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, bottom / height, wide / width, high / height))

    predicted = class_names[explanation.predicted]
    truth = "" if picture.label is None else f" ✗ (it is {class_names[picture.label]})"
    mark = " ✓" if picture.label == explanation.predicted else truth
    figure.text(0.2 / width, 1 - 0.12 / height, f"{system}: {predicted}{mark}", weight="bold", va="top", fontsize=11)
    figure.text(1 - 0.2 / width, 1 - 0.12 / height, picture.name, color=GREY, va="top", ha="right", fontsize=8)
    axes = axes_at(0.2, rows_height, SIDE, panel_height)
    axes.imshow(picture.pixels)
    kind = "patches" if patches else "keypoints"
    axes.set_title(f"image, {len(shares)} {kind}", fontsize=9)
    bare(axes)
    end = scale_end([explanation.shares[:, explanation.shown]])
    digits = min(5, max(2, 2 - math.floor(math.log10(end))))  # three significant digits at the end of the scale
    scale = ScalarMappable(Normalize(-end, end, clip=True), colormaps[COLOURS])
    for column, index in enumerate(shown, start=1):
        axes = axes_at(0.2 + column * (SIDE + GAP), rows_height, SIDE, panel_height)
        axes.imshow(picture.pixels @ LUMINANCE, cmap="gray", vmin=-120, vmax=255)  # pale, so that the colours stand out
        bare(axes)
        _draw_keypoints(axes, explanation.keypoints, shares[:, index], scale, end, patches)
        score, bias = explanation.scores[index], explanation.bias[index]
        sign, added = "+" if score >= bias else "-", abs(score - bias)
        equation = f"score {score:.{digits}f} = bias {bias:.{digits}f} {sign} {added:.{digits}f}"
        axes.set_title(f"{clipped(class_names[index], CLASS)}\n{equation}", fontsize=9)
    bar = figure.colorbar(
        scale, cax=axes_at(0.2 + (1 + len(shown)) * (SIDE + GAP), rows_height, 0.1, panel_height), extend="both"
    )
    bar.ax.tick_params(labelsize=7)
    bar.set_label(f"what a {'patch' if patches else 'keypoint'} adds to the score", fontsize=7)
    for row, index in enumerate(shown):
        top = (len(shown) - row) * ROW
        name = clipped(class_names[index], CLASS)
        found = strongest(explanation.keypoints, shares[:, index])
        for title, numbers, left in ((f"most for {name}", found[0], 0.2), ("most against it", found[1], width / 2)):
            if numbers:
                figure.text(left / width, (top - 0.06) / height, title, fontsize=8.5, va="top")
            for position, number in enumerate(numbers):
                axes = axes_at(left + position * (CUT + 0.12), top - 0.25 - CUT, CUT, CUT)
                axes.imshow(cut_out(picture.pixels, *region(explanation.keypoints[number]), beyond=128))
                bare(axes)
                share = shares[number, index]
                axes.set_xlabel(f"{share:+.{digits}f}", fontsize=8, labelpad=2, color=FOR if share > 0 else AGAINST)
    return png(figure)


def strongest(keypoints: np.ndarray, shares: np.ndarray) -> tuple[list[int], list[int]]:
    """Returns up to PATCHES keypoints with the largest positive shares, and as many with the largest negative ones.

    keypoints: (M, 4). shares: (M,). Of two whose centres are closer than half the smaller one's size both across and
    down, only the stronger one is taken: they are nearly the same.
    """
    found = []
    for sign in (1, -1):
        kept: list[int] = []
        for number in np.argsort(-sign * shares, kind="stable").tolist():
            if len(kept) == PATCHES or sign * shares[number] <= 0:
                break
            distances = np.abs(keypoints[kept, :2] - keypoints[number, :2]).max(1)
            if (distances >= np.minimum(keypoints[kept, 2], keypoints[number, 2]) / 2).all():
                kept.append(number)
        found.append(kept)
    return tuple(found)


def region(keypoint: np.ndarray) -> tuple[int, int, int]:
    """Returns top, left and side, px, of the upright square around a keypoint's region."""
    x, y, size, _ = keypoint
    side = max(1, round(float(size)))
    left, top = round(float(x - (side - 1) / 2)), round(float(y - (side - 1) / 2))
    return top, left, side


def _draw_keypoints(
    axes: Axes, keypoints: np.ndarray, shares: np.ndarray, scale: ScalarMappable, end: float, patches: bool
) -> None:
    """Draws dots, and outlines of the OUTLINED strongest keypoints; the stronger, the more opaque and in front."""
    order = np.argsort(np.abs(shares), kind="stable")
    middles, colours = keypoints[order, :2], scale.to_rgba(shares[order])
    axes.scatter(*middles.T, s=14, c=colours, edgecolors="#333333", linewidths=0.3, zorder=3)
    order = order[-OUTLINED:]
    middles, sizes, strength = keypoints[order, :2], keypoints[order, 2], np.minimum(np.abs(shares[order]) / end, 1)
    lines, areas = scale.to_rgba(shares[order]), scale.to_rgba(shares[order])
    relative = sizes / np.ptp(axes.get_xlim())  # a keypoint that covers half the image must not hide the rest
    lines[:, 3], areas[:, 3] = 0.15 + 0.85 * strength, 0.3 * strength**2 * np.minimum(1, (0.25 / relative) ** 2)
    style = {"edgecolors": lines, "facecolors": areas, "linewidths": 0.6 + 1.4 * strength}
    if patches:
        axes.add_collection(PolyCollection(middles[:, None] + CORNERS * sizes[:, None, None], **style))
    else:
        circles = EllipseCollection(
            sizes, sizes, np.zeros(len(sizes)), units="xy", offsets=middles, offset_transform=axes.transData, **style
        )
        axes.add_collection(circles)
