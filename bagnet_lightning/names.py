"""What networks, optimizers and classes are called where people read it."""

import re

OPTIMIZERS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adadelta": "Adadelta",
    "adamw": "AdamW",
    "muon": "Muon",
}  # in the paper's order


def model_name(model: str | None) -> str:
    """ "bagnet17" -> "BagNet-17"."""
    match = re.fullmatch(r"(bag|res)net(\d+)", model or "?")
    return f"{match[1].capitalize()}Net-{match[2]}" if match else model or "?"


def optimizer_name(optimizer: str | None) -> str:
    """ "adam" -> "Adam"."""
    return OPTIMIZERS.get(optimizer, optimizer or "?")


def model_order(model: str) -> tuple:
    """Sorts by patch size, then the networks that see the whole image."""
    match = re.fullmatch(r"(bagnet|resnet)(\d+)", model)
    return (match[1], int(match[2])) if match else ("~", model)


def clipped(value: object, length: int = 16) -> str:
    """As text for a narrow place; a list of classes can be very long."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
