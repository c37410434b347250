"""Display names of networks, optimizers, maps and classes."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from bagnet_lightning.errors import UserError

OPTIMIZERS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adadelta": "Adadelta",
    "adamw": "AdamW",
    "muon": "Muon",
}  # in the paper's order
MAPS = {  # by their keys in evidence.npz and analysis.json; in the order in which they are shown
    "evidence": "exact evidence",
    "contributions": "exact contributions",
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "integrated gradients",
}


def network_name(model: Mapping) -> str | None:
    """Returns the name of a configuration's network: "bagnet17", or of a network of timm the one that timm knows."""
    return str(model.get("model_name") or str(model.get("_target_") or "").rpartition(".")[2]) or None


def model_name(model: str | None) -> str:
    """Returns the display name: "BagNet-17" for "bagnet17"."""
    match = re.fullmatch(r"(bag|res)net(\d+)", model or "?")
    return f"{match[1].capitalize()}Net-{match[2]}" if match else model or "?"


def optimizer_name(optimizer: str | None) -> str:
    """Returns the display name: "Adam" for "adam"."""
    return OPTIMIZERS.get(optimizer, optimizer or "?")


def monitor_name(monitor: str) -> str:
    """Returns the column of what chooses the best epoch: "balanced" for "val_balanced_accuracy"."""
    return {"val_balanced_accuracy": "balanced", "val_top5_accuracy": "top-5"}.get(monitor, monitor)


def epochs_text(epochs: int | None) -> str:
    """Returns "15 epochs"."""
    return f"{epochs or '?'} epoch{'' if epochs == 1 else 's'}"


def model_order(model: str) -> tuple:
    """Returns a sort key: first BagNets by patch size, then the networks that see the whole image."""
    match = re.fullmatch(r"(bagnet|resnet)(\d+)", model)
    return (match[1], int(match[2])) if match else ("~", model)


def class_indices(classes: Sequence[str], class_names: Sequence[str]) -> dict[str, int]:
    """Returns the index of each class by its identifier, and by its name if no other class has that one too."""
    shared = Counter(class_names)
    of_names = {name: index for index, name in enumerate(class_names) if shared[name] == 1}
    return of_names | {name: index for index, name in enumerate(classes)}


def find_class(requested: str, classes: Sequence[str], class_names: Sequence[str], what: object) -> int:
    """Returns the index of the class with this identifier, or else with this name; if none, in other capitals.

    Raises UserError about `what` if there is no such class, with the nearest ones, or more than one.
    """
    for spelling in (str, str.casefold):
        for known in (classes, class_names):
            found = [index for index, name in enumerate(known) if spelling(name) == spelling(requested)]
            if len(found) == 1:
                return found[0]
            if found:
                candidates = ", ".join(f"{classes[index]} ({class_names[index]})" for index in found)
                raise UserError(f"{what}: {requested!r} may be any of {candidates}; give the identifier")
    names = {name.casefold(): name for name in [*classes, *class_names]}
    close = ", ".join(names[name] for name in nearest(requested.casefold(), names))
    raise UserError(f"{what}: there is no class {requested!r}; nearest: {close}")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Returns up to three of the `known` names, those most like `name`, to suggest for a misspelt one."""
    known = sorted(known)
    return get_close_matches(name, known, n=3, cutoff=0.5) or known[:3]


def told_apart(names: Sequence[str], paths: Sequence[str | Path]) -> list[str]:
    """Returns the names of the networks in `paths`, equal ones with the last part of the path that tells them apart."""
    reversed_parts = [Path(path).absolute().parts[::-1] for path in paths]
    labels = []
    for name, own in zip(names, reversed_parts, strict=True):
        same = [parts for other, parts in zip(names, reversed_parts, strict=True) if other == name]
        differing = (parts[0] for parts in zip(own, *same, strict=False) if len({*parts}) == len(same))
        part = next(differing, "/".join(own[1::-1]))
        labels.append(name if len(same) == 1 else f"{name} ({part.removesuffix('.ckpt')})")
    return labels


def clipped(value: object, length: int = 16) -> str:
    """Returns a value as text of at most `length` characters; a list of classes can be very long."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
