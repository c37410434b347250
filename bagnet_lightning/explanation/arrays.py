"""evidence.npz: the arrays behind the pictures and the page."""

from collections import defaultdict
from io import BytesIO

import numpy as np

from bagnet_lightning.explanation.inputs import Picture


class Arrays:
    """The arrays of a network or a system of local features: for all pictures together, and for each."""

    def __init__(self, classes: list[str], class_names: list[str]):
        self._whole = {"classes": np.array(classes), "class_names": np.array(class_names)}
        self._each = defaultdict(list)

    def keep(self, picture: Picture, predicted: int, shown: list[int], arrays: dict, **scores: np.ndarray) -> None:
        number, true = len(self._each["images"]), -1 if picture.label is None else picture.label
        for key, value in {"images": picture.name, **scores, "predicted": predicted, "true": true}.items():
            self._each[key].append(value)
        for key, value in {"pixels": picture.pixels, "shown": shown, **arrays}.items():
            self._whole[f"{key}_{number}"] = value

    def npz(self, **more: np.ndarray) -> bytes:
        """Returns the content of the .npz file."""
        stream = BytesIO()
        np.savez_compressed(stream, **{key: np.array(rows) for key, rows in self._each.items()}, **self._whole, **more)
        return stream.getvalue()
