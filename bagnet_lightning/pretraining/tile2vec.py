"""Tile2Vec (Jean et al., AAAI 2019): a tile lies nearer to its neighbour than to a tile from elsewhere."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Tile2Vec:
    """The mean over triplets of [|a - n| - |a - d| + margin]+ + l2 (|a| + |n| + |d|), with Euclidean norms.

    a, n, d: the embeddings of an anchor, its neighbour and a distant tile. The penalty keeps embeddings from growing
    until every margin is kept. The public code multiplies l2 by the norm of the whole batch of each, about the square
    root of the batch size times the mean norm used here; with the mean, l2 means the same for every batch size.
    """

    name: str
    margin: float
    l2: float
    kinds: ClassVar[int] = 3  # of tiles.py: anchors, neighbours, distant tiles

    def head(self, features: int) -> nn.Module:
        """Returns the identity: the embedding is the network's mean feature itself."""
        return nn.Identity()

    def loss(self, embeddings: Tensor) -> Tensor:
        """Returns the loss. embeddings: (3 B, D), all anchors first, then neighbours and distant tiles."""
        anchor, neighbour, distant = embeddings.chunk(3)
        violations = (anchor - neighbour).norm(dim=1) - (anchor - distant).norm(dim=1) + self.margin
        return F.relu(violations).mean() + self.l2 * 3 * embeddings.norm(dim=1).mean()
