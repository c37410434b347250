"""Some images of a split, a batch at a time, in an order that (seed, epoch) decides."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bagnet_lightning.data.store import Split

Batch = tuple[Tensor, Tensor, Tensor]  # images, labels, indices
COPIED_AT_ONCE = 10_000  # images


@dataclass(frozen=True)
class Images:
    """Some images of a split, a batch at a time: `images[indices]` is a Batch of uint8 (B, H, W, 3), with int64 (B,)s.

    chosen: (N,) which of the split's images these are. labels: (N,) what they are labelled as here.
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
        """Of the chosen images alone."""
        return len(self) * self.split.images[0].numel()

    def copied_to(self, device: torch.device) -> "Images":
        """The chosen images alone, on `device`, where batches are gathered from then on."""
        images = torch.empty(len(self), *self.split.images.shape[1:], dtype=torch.uint8, device=device)
        for part, chosen in zip(images.split(COPIED_AT_ONCE), self.chosen.split(COPIED_AT_ONCE), strict=True):
            part.copy_(self.split.images.index_select(0, chosen))
        labels = self.labels.to(device)
        split = Split(images, labels, self.split.boxes.index_select(0, self.chosen))
        return Images(split, torch.arange(len(self), device=device), labels)


class ShuffledBatches:
    """The batches of an epoch as indices on `device`, in an order that is a function of (seed, epoch) alone.

    What is left at the end is a smaller batch, or, if it is one image, of which there are no statistics, part of the
    batch before.
    position: tells (epoch, number of the epoch's batches already used), so that a continued run goes on where it was.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        position: Callable[[], tuple[int, int]],
        device: torch.device,
    ):
        self.count, self.batch_size, self.seed, self.position, self.device = count, batch_size, seed, position, device

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.batch_size)
        return max(full + (rest > 1), 1)

    @property
    def smallest(self) -> int:
        """Images of the smallest batch."""
        return min(self.batch_size, self.count - self.batch_size * (len(self) - 1))

    def __iter__(self) -> Iterator[Tensor]:
        epoch, used = self.position()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.count, generator=generator).to(self.device)
        ends = [self.batch_size * number for number in range(1, len(self))]
        yield from order.tensor_split(ends)[used:]


@dataclass(frozen=True)
class Loader:
    """`share` of each batch of `images` by `order`. No worker processes: to gather a batch takes microseconds."""

    images: Images
    order: Iterable[Tensor]
    share: slice

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return (self.images[indices[self.share]] for indices in self.order)
