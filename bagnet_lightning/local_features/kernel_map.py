"""Explicit maps of additive homogeneous kernels: products of mapped histograms are nearly the kernel's values.

Vedaldi & Zisserman, Efficient additive kernels via explicit feature maps, PAMI 2012. A kernel k(x, y) = sum of
sqrt(x_i y_i) K(log(y_i / x_i)) is the sum of two products a frequency of the spectrum of K, which is sampled at
0, L, ..., order * L; an element of a histogram becomes 2 * order + 1 numbers.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: The spectrum of each kernel's signature (table 1 there), and the period L that is best for an order (section 4.3).
SPECTRA = {
    "chi2": lambda w: 1 / torch.cosh(math.pi * w),
    "intersection": lambda w: 2 / (math.pi * (1 + 4 * w.square())),
    "jensen_shannon": lambda w: 2 / (math.log(4) * torch.cosh(math.pi * w) * (1 + 4 * w.square())),
}


@dataclass(frozen=True)
class KernelMap:
    """kernel: "chi2", 2xy / (x + y); "intersection", min(x, y); "jensen_shannon". All are 1 for two equal histograms
    whose elements sum to 1.
    """

    kernel: str
    order: int

    @property
    def period(self) -> float:
        """Of sampling."""
        return 0.5

    def __call__(self, vectors: Tensor) -> Tensor:
        """(N, W) float, none negative, to (N, (2 * order + 1) * W)."""
        frequencies = self.period * torch.arange(self.order + 1)
        spectrum = self.period * SPECTRA[self.kernel](frequencies)
        roots, logs = vectors.sqrt(), vectors.clamp(min=torch.finfo(vectors.dtype).tiny).log()
        terms = [roots * spectrum[0].sqrt().item()]
        for frequency, height in zip(frequencies[1:].tolist(), spectrum[1:].tolist(), strict=True):
            scaled = roots * math.sqrt(2 * height)
            terms += [scaled * torch.cos(frequency * logs), scaled * torch.sin(frequency * logs)]
        return torch.cat(terms, 1)
