"""The most probable classes of image files, and the files that list them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bagnet_lightning.checkpoint import Trained
from bagnet_lightning.data.images import load_image
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import csv_of
from bagnet_lightning.inference.logits import predict

TOP = 5


@dataclass(frozen=True)
class TopClasses:
    """An image file's classes as (index, probability), the most probable first; if unreadable, none and an error."""

    file: Path
    top: list[tuple[int, float]]
    error: str | None = None


def predict_files(trained: Trained, files: Iterable[Path], size: int | None, batch_size: int) -> Iterator[TopClasses]:
    """Yields a TopClasses for each of `files`, in their order, as soon as its batch is done.

    size: as for load_image; if it is None the images may differ in size, and each is a batch of its own.
    """
    waiting, images = [], []
    for file in files:
        try:
            images.append(load_image(file, size))
            waiting.append(TopClasses(file, []))
        except UserError as error:
            waiting.append(TopClasses(file, [], str(error)))
        if len(waiting) == (batch_size if size else 1):
            yield from _predicted(trained, waiting, images)
            waiting, images = [], []
    yield from _predicted(trained, waiting, images)


def _predicted(trained: Trained, waiting: list[TopClasses], images: list) -> list[TopClasses]:
    if not images:
        return waiting
    try:
        probabilities = predict(trained, torch.stack([torch.from_numpy(image) for image in images])).softmax(1)
    except UserError as error:  # smaller than a patch
        return [one if one.error else TopClasses(one.file, [], f"{one.file}: {error}") for one in waiting]
    best = probabilities.topk(min(TOP, len(trained.classes)))
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [one if one.error else TopClasses(one.file, list(zip(*next(tops), strict=True))) for one in waiting]


def as_json(predictions: list[TopClasses], trained: Trained) -> list[dict]:
    """Returns one record per image, with "error" instead of "top" if it could not be read."""

    def record(index: int, probability: float) -> dict:
        return {"class": trained.classes[index], "name": trained.class_names[index], "probability": probability}

    return [
        {
            "image": str(one.file),
            **({"error": one.error} if one.error else {"top": [record(*pair) for pair in one.top]}),
        }
        for one in predictions
    ]


def as_csv(predictions: list[TopClasses], trained: Trained) -> str:
    """Returns a line per image: the file, then class, name and probability of each of its top classes, or the error."""
    ranks = range(1, min(TOP, len(trained.classes)) + 1)
    rows = [["image", *(f"{what}_{n}" for n in ranks for what in ("class", "name", "probability")), "error"]]
    for one in predictions:
        cells = [cell for i, p in one.top for cell in (trained.classes[i], trained.class_names[i], f"{p:.6f}")]
        rows.append([one.file, *(cells or [""] * 3 * len(ranks)), one.error or ""])
    return csv_of(rows)


def submission(predictions: list[TopClasses], trained: Trained) -> str:
    """Returns a submission for Tiny ImageNet's test split: a file's name and its class's identifier per line."""
    return "".join(f"{one.file.name} {trained.classes[one.top[0][0]]}\n" for one in predictions)
