"""The baseline without learning, which every method has to beat: features of random weights."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class Random:
    """Leaves the weights as they were initialised, less the optimizer's decay, which is 0 in Adam, the default.

    Batch norms still estimate the statistics of tiles.
    """

    name: str
    kinds: ClassVar[int] = 1  # of tiles.py: anchors

    def head(self, features: int) -> nn.Module:
        return nn.Identity()

    def loss(self, embeddings: Tensor) -> Tensor:
        """Returns zero, whose gradients are zero too."""
        return 0.0 * embeddings.sum()
