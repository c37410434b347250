"""predictions.npz: a run's predictions for every validation image at its best epoch, and a few of the images.

Small (about 0.1 MB for 10,000 images of 64 px), so that confusions can be looked at without the data and
without a GPU. Light on purpose, as results.py is: reading needs no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bagnet_lightning.files import write_bytes

NAME = "predictions.npz"
PAIRS, IMAGES_PER_PAIR = 6, 3  # most confused pairs of classes with thumbnails, and misclassified images of each
SIDE = 48  # px of a thumbnail; a multiple of JPEG's blocks of 16, so that neighbours do not bleed into each other
EXAMPLES = 8  # validation images kept whole, for the evidence gallery


@dataclass(frozen=True)
class Predictions:
    """The labels and predictions of a run's validation images, with a few of the images.

    labels, predicted: (N,) class indices of the validation images, in their order.
    examples: (E, H, W, 3) uint8, spread evenly over the split; example_labels: (E,).
    sheet: a JPEG with a row of IMAGES_PER_PAIR thumbnails for each of the first PAIRS pairs of most_confused.
    """

    class_names: list[str]
    labels: np.ndarray
    predicted: np.ndarray
    examples: np.ndarray
    example_labels: np.ndarray
    sheet: bytes

    def confusion(self) -> np.ndarray:
        """Counts images by true and predicted class: (classes, classes)."""
        return confusion(self.labels, self.predicted, len(self.class_names))


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts images by true and predicted class: (classes, classes)."""
    return np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


def most_confused(matrix: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Returns (true, predicted) of up to `count` pairs of different classes, those with the most images first."""
    mistakes = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    return [divmod(int(place), len(matrix)) for place in order if mistakes.flat[place]]


def paired_error(one: Predictions | ValueError | None, other: Predictions | ValueError | None) -> float | None:
    """Returns the standard error of the difference of two accuracies; None if they are not known of the same images.

    Images that both classify rightly, or both wrongly, do not add to it (McNemar 1947).
    """
    if not (isinstance(one, Predictions) and isinstance(other, Predictions)) or len(one.labels) < 2:
        return None
    if not (np.array_equal(one.labels, other.labels) and np.array_equal(one.examples, other.examples)):
        return None
    differences = (one.predicted == one.labels).astype(float) - (other.predicted == other.labels)
    return float(differences.std(ddof=1) / len(differences) ** 0.5)


def spread(total: int, count: int) -> list[int]:
    """Returns up to `count` numbers below `total`, evenly spaced, each in the middle of its share."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def write_predictions(
    folder: Path,
    class_names: Sequence[str],
    labels: np.ndarray,
    predicted: np.ndarray,
    images: Callable[[list[int]], np.ndarray],
) -> None:
    """Writes a run's predictions.npz whole or not at all. images: indices -> (B, H, W, 3) uint8. Raises OSError."""
    places = spread(len(labels), EXAMPLES)
    stream = BytesIO()
    np.savez_compressed(
        stream,
        class_names=np.array(class_names, dtype=str),
        labels=labels.astype(np.uint16),
        predicted=predicted.astype(np.uint16),
        examples=images(places),
        example_labels=labels[places].astype(np.uint16),
        sheet=np.frombuffer(_sheet(labels, predicted, len(class_names), images), np.uint8),
    )
    write_bytes(folder / NAME, stream.getvalue())


def read_predictions(folder: Path) -> Predictions | None:
    """Reads a run's predictions.npz; None if there is none. Raises ValueError if the file is cut or of another kind."""
    try:
        with np.load(folder / NAME, allow_pickle=False) as arrays:
            data = {name: arrays[name] for name in arrays.files}
        names, labels, predicted = data["class_names"].tolist(), data["labels"], data["predicted"]
        if any(one.dtype != np.uint16 or one.ndim != 1 for one in (labels, predicted)) or len(names) > 2**16:
            raise ValueError("labels and predictions are of another kind")
        if labels.shape != predicted.shape or not len(labels) or max(labels.max(), predicted.max()) >= len(names):
            raise ValueError("labels and predictions do not fit")
        return Predictions(names, labels, predicted, data["examples"], data["example_labels"], data["sheet"].tobytes())
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ValueError(f"{NAME} cannot be read: {error.strerror}") from error
    except Exception as error:  # zipfile, zlib and numpy raise errors of many types for a damaged file
        raise ValueError(f"{NAME} is cut or damaged; run again with fresh=true") from error


def _sheet(labels: np.ndarray, predicted: np.ndarray, classes: int, images: Callable) -> bytes:
    pairs = most_confused(confusion(labels, predicted, classes), PAIRS)
    sheet = Image.new("RGB", (IMAGES_PER_PAIR * SIDE, max(1, len(pairs)) * SIDE))
    for row, (true, mistake) in enumerate(pairs):
        mistaken = np.flatnonzero((labels == true) & (predicted == mistake))[:IMAGES_PER_PAIR].tolist()
        for column, pixels in enumerate(images(mistaken)):
            sheet.paste(ImageOps.fit(Image.fromarray(pixels), (SIDE, SIDE)), (column * SIDE, row * SIDE))
    stream = BytesIO()
    sheet.save(stream, "JPEG", quality=75)
    return stream.getvalue()
