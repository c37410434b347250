"""evidence.npz: the arrays behind the pictures and the page."""

from collections import defaultdict
from io import BytesIO

import numpy as np

from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.maps import APPROXIMATIONS, CONTRIBUTIONS, EVIDENCE, Explanation, Model

KEYS = {EVIDENCE: "evidence", CONTRIBUTIONS: "contributions"}
KEYS |= {name: name.lower().replace("-", "_").replace(" ", "_") for name in APPROXIMATIONS}


class Kept:
    """The arrays that networks and systems of local features have in common: for all pictures together and for each."""

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


class Arrays(Kept):
    """One model's arrays, by these keys; images are numbered from 0.

    images (N,) names; classes, class_names (C,); logits (N, C) float32; predicted, true (N,), -1 where unknown.
    For image i of H x W px, with K shown classes:
    pixels_i (H, W, 3) uint8; shown_i (K,) class indices; evidence_i (K, H, W) float32, the logit of the patch centred
    on each pixel; contributions_i (K, H, W) float32, each pixel's share of the logit; patch_logits_i
    (h, w, C) float32, of the patches at the native stride, whose mean is the image's logits; grad_cam_i and
    integrated_gradients_i (K, H, W) float32. Arrays that were not computed are missing.
    """

    def __init__(self, model: Model):
        super().__init__(model.trained.classes, model.trained.class_names)

    def add(self, picture: Picture, explanation: Explanation) -> None:
        image_arrays = {}
        for method, maps in explanation.maps().items():
            image_arrays[KEYS[method]] = maps.numpy().copy()  # a view would keep all classes' maps alive
        if explanation.patch_logits is not None:
            image_arrays["patch_logits"] = explanation.patch_logits.numpy()
        logits = explanation.logits.numpy()
        self.keep(picture, explanation.predicted, explanation.shown, image_arrays, logits=logits)
