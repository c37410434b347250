"""Which classes take part, and which of their train images are held out: the same for every run and seed."""

import numpy as np
import torch
from torch import Tensor

from bagnet_lightning.data.store import Store
from bagnet_lightning.errors import UserError
from bagnet_lightning.names import find_class


def choose_classes(store: Store, classes: int | list[str] | None, name: str) -> list[int]:
    """Returns the labels of the chosen classes: all (None), the first N, or a list of identifiers or names.

    name: of the data, for the UserError about a class that they do not have.
    """
    known = store.classes
    if classes is None:
        return list(range(len(known)))
    if isinstance(classes, int):
        if classes > len(known):
            raise UserError(f"data.classes={classes}: {name} has {len(known)} classes")
        return list(range(classes))
    # str, since a folder named 3 is parsed as a number
    chosen = [find_class(str(one), known, store.class_names, f"data.classes, {name}") for one in classes]
    if len(set(chosen)) < len(chosen):
        raise UserError(f"data.classes={classes} names a class twice")
    return chosen


def hold_out(
    by_class: list[Tensor], share: float, fold: int, groups: list[str] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns each class's indices to keep and to hold out, both in random order.

    share: of every class's images. fold: which of these shares, from 0; they do not overlap. groups: of all images of
    the split, in their order. A group is held out as a whole, and is drawn among those of the class that most of its
    images have; shares are then as near as whole groups allow.
    """
    generator = torch.Generator().manual_seed(0)
    shuffled = [_shuffle(indices, generator) for indices in by_class]
    if groups is None:
        held = [_in_fold(torch.ones_like(indices), share, fold) for indices in shuffled]
    else:
        names, inverse = np.unique(groups, return_inverse=True)
        group = torch.from_numpy(inverse)  # (N,)
        # sizes: (classes, groups)
        sizes = torch.stack([group[indices].bincount(minlength=len(names)) for indices in by_class])
        main_class = sizes.argmax(0)
        group_held = torch.zeros_like(main_class, dtype=torch.bool)
        for label in range(len(by_class)):
            of_class = _shuffle((main_class == label).nonzero()[:, 0], generator)
            group_held[of_class] = _in_fold(sizes.sum(0)[of_class], share, fold)
        held = [group_held[group[indices]] for indices in shuffled]
    pairs = list(zip(shuffled, held, strict=True))
    return [indices[~chosen] for indices, chosen in pairs], [indices[chosen] for indices, chosen in pairs]


def _shuffle(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=generator)]


def _in_fold(sizes: Tensor, share: float, fold: int) -> Tensor:
    """Whether each of consecutive groups of these sizes has its middle in the fold."""
    middle = sizes.cumsum(0) - sizes / 2
    start, end = (round(sizes.sum().item() * share * number) for number in (fold, fold + 1))
    return (start <= middle) & (middle < end)
