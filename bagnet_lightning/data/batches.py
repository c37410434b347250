"""Batches of a split's images, in an order that is a function of (seed, epoch)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bagnet_lightning.data.store import Split

Batch = tuple[Tensor, Tensor, Tensor]  # images, labels, indices
COPIED_AT_ONCE = 10_000  # images


@dataclass(frozen=True)
class Images:
    """A subset of a split's images: `images[indices]` is a Batch of uint8 (B, H, W, 3) and two int64 (B,).

    chosen: (N,) indices of the subset in the split. labels: (N,) their labels, instead of the split's.
    """

    split: Split
    chosen: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, indices: Tensor) -> Batch:
        return self.split.images.index_select(0, self.chosen[indices]), self.labels[indices], indices

    @property
    def nbytes(self) -> int:
        """Bytes of the chosen images alone."""
        return len(self) * self.split.images[0].numel()

    def copied_to(self, device: torch.device) -> "Images":
        """Returns a copy that holds the chosen images alone, on `device`, so that batches are gathered there."""
        images = torch.empty(len(self), *self.split.images.shape[1:], dtype=torch.uint8, device=device)
        for part, chosen in zip(images.split(COPIED_AT_ONCE), self.chosen.split(COPIED_AT_ONCE), strict=True):
            part.copy_(self.split.images.index_select(0, chosen))
        labels = self.labels.to(device)
        split = Split(images, labels, self.split.boxes.index_select(0, self.chosen))
        return Images(split, torch.arange(len(self), device=device), labels)


@dataclass(frozen=True)
class ShuffledBatches:
    """The batches of an epoch as indices on `device`, in an order that is a function of (seed, epoch) alone.

    The remainder is a smaller last batch; a single image, which has no batch statistics, joins the batch before.
    position: returns (epoch, number of the epoch's batches already used), so that a resumed run continues where it was.
    """

    count: int
    batch_size: int
    seed: int
    position: Callable[[], tuple[int, int]]
    device: torch.device

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.batch_size)
        return max(full + (rest > 1), 1)

    @property
    def smallest(self) -> int:
        """Number of images in the smallest batch."""
        return min(self.batch_size, self.count - self.batch_size * (len(self) - 1))

    def __iter__(self) -> Iterator[Tensor]:
        epoch, used = self.position()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.count, generator=generator).to(self.device)
        ends = [self.batch_size * number for number in range(1, len(self))]
        yield from order.tensor_split(ends)[used:]


@dataclass(frozen=True)
class Loader:
    """This rank's `share` of each batch of `images` in `order`. No workers: gathering a batch takes microseconds."""

    images: Images
    order: Iterable[Tensor]
    share: slice

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return (self.images[indices[self.share]] for indices in self.order)
