"""SimCLR-style contrast of tiles (Chen et al., ICML 2020): a tile finds its neighbour among the tiles of a batch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class SimCLR:
    """NT-Xent: the cross-entropy of each tile's neighbour among all tiles of the batch but itself, mean over tiles.

    The logits are cosine similarities, divided by `temperature`, of the outputs of a two-layer head with `projection`
    outputs on the network's mean features (sections 2.1 and 4.2). SimCLR's two views are an anchor and its neighbour.
    """

    name: str
    temperature: float
    projection: int
    kinds: ClassVar[int] = 2  # of tiles.py: anchors and neighbours

    def head(self, features: int) -> nn.Module:
        return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, self.projection))

    def loss(self, embeddings: Tensor) -> Tensor:
        """Returns the loss. embeddings: (2 B, D) from the head, all anchors first, then their neighbours."""
        directions = F.normalize(embeddings, dim=1)
        logits = directions @ directions.T / self.temperature  # (2 B, 2 B)
        tile = torch.arange(len(logits), device=logits.device)
        logits = logits.masked_fill(tile[:, None] == tile, float("-inf"))
        return F.cross_entropy(logits, (tile + len(tile) // 2) % len(tile))
