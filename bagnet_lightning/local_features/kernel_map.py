"""Explicit feature maps of additive kernels: dot products of mapped histograms approximate the kernel.

Vedaldi & Zisserman, Efficient additive kernels via explicit feature maps, PAMI 2012. The kernels are sums over the
elements of two histograms of sqrt(x y) K(log(y / x)). An integral over the spectrum of K, taken as a sum over the
frequencies 0, L, ..., order * L, makes each term a dot product of 2 * order + 1 numbers of x and as many of y.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Kernel(NamedTuple):
    """An additive kernel. spectrum: of K, their table 1. period: 2 pi / L by order, of least error, from VLFeat."""

    spectrum: Callable[[Tensor], Tensor]
    period: Callable[[int], float]


KERNELS = {
    "chi2": Kernel(
        lambda w: 1 / torch.cosh(math.pi * w),
        lambda order: 5.86 * math.sqrt(order) + 3.65,
    ),
    "intersection": Kernel(
        lambda w: 2 / (math.pi * (1 + 4 * w**2)),
        lambda order: 2.38 * math.log(order + 0.8) + 5.6,
    ),
    "jensen_shannon": Kernel(
        lambda w: 2 / (math.log(4) * torch.cosh(math.pi * w) * (1 + 4 * w**2)),
        lambda order: 6.64 * math.sqrt(order) + 7.24,
    ),
}


@dataclass(frozen=True)
class KernelMap:
    """The feature map of a kernel.

    kernel: "chi2", 2 x y / (x + y); "intersection", min(x, y); "jensen_shannon". Each kernel of a histogram with itself
    is the sum of its elements. order: the number of frequencies besides 0.
    """

    kernel: str
    order: int

    def __call__(self, vectors: Tensor) -> Tensor:
        """Maps (N, W) nonnegative floats to (N, (2 * order + 1) * W), one frequency after the other."""
        spectrum, period = KERNELS[self.kernel]
        step = 2 * math.pi / period(self.order)
        heights = (step * spectrum(step * torch.arange(self.order + 1, dtype=torch.float64))).tolist()
        roots = vectors.sqrt()
        logs = vectors.clamp(min=torch.finfo(vectors.dtype).tiny).log()  # any number for 0, whose root is 0
        terms = [math.sqrt(heights[0]) * roots]
        for number, height in enumerate(heights[1:], start=1):
            scaled, angles = math.sqrt(2 * height) * roots, number * step * logs
            terms += [scaled * angles.cos(), scaled * angles.sin()]
        return torch.cat(terms, 1)
