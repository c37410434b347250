"""Display names of networks, optimizers and classes."""

import re
from collections.abc import Mapping

OPTIMIZERS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adadelta": "Adadelta",
    "adamw": "AdamW",
    "muon": "Muon",
}  # in the paper's order


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


def model_order(model: str) -> tuple:
    """Returns a sort key: first BagNets by patch size, then the networks that see the whole image."""
    match = re.fullmatch(r"(bagnet|resnet)(\d+)", model)
    return (match[1], int(match[2])) if match else ("~", model)


def clipped(value: object, length: int = 16) -> str:
    """Returns a value as text of at most `length` characters; a list of classes can be very long."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
