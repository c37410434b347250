"""Pictures of evidence in an image, as arrays: a map drawn over it, and a patch cut out of it."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from numpy.typing import ArrayLike

COLOURS = "RdBu_r"  # red: evidence for the class, blue: against it
OPACITY = 0.7  # of a map over its image
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of R, G, B


def overlay(pixels: np.ndarray, evidence: np.ndarray, end: float) -> np.ndarray:
    """Draws evidence (H, W), red for and blue against, over an image in grey. pixels, result: (H, W, 3) uint8.

    end: the evidence, in logits, where the scale ends on either side.
    """
    grey = (pixels @ LUMINANCE)[..., None]
    colours = 255 * colormaps[COLOURS](Normalize(-end, end, clip=True)(evidence))[..., :3]
    return ((1 - OPACITY) * grey + OPACITY * colours).round().astype(np.uint8)


def scale_end(maps: Sequence[ArrayLike]) -> float:
    """Returns the absolute value that 99 % of the values in `maps` stay below: outliers must not hide the rest."""
    values = np.concatenate([np.zeros(0), *(np.abs(np.asarray(array)).ravel() for array in maps)])
    return (float(np.quantile(values, 0.99)) if values.size else 0) or 1.0


def cut_out(pixels: np.ndarray, top: int, left: int, side: int, beyond: ArrayLike) -> np.ndarray:
    """Cuts the side x side px square at (top, left) out of an image, (H, W, 3) uint8, padded with `beyond`."""
    square = np.empty((side, side, 3), np.uint8)
    square[:] = beyond
    height, width, _ = pixels.shape
    rows = slice(*np.clip((top, top + side), 0, height))
    columns = slice(*np.clip((left, left + side), 0, width))
    square[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = pixels[rows, columns]
    return square
