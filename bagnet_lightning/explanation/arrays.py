"""evidence.npz: what the pictures and the page show, as numbers."""

from io import BytesIO

import numpy as np

from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.maps import APPROXIMATIONS, EXACT, Explanation, Model

KEYS = {EXACT: "evidence", **{name: name.lower().replace("-", "_").replace(" ", "_") for name in APPROXIMATIONS}}


class Arrays:
    """One model's arrays, by these keys; images are numbered from 0.

    images (N,) names; classes, class_names (C,); logits (N, C) float32; predicted, true (N,), -1 where unknown.
    For image i of H x W px, with K shown classes:
    pixels_i (H, W, 3) uint8; shown_i (K,) class indices; evidence_i (K, H, W) float32, the logit of the patch centred
    on each pixel; patch_logits_i (h, w, C) float32, of the patches at the native stride, whose mean is the image's
    logits; grad_cam_i and integrated_gradients_i (K, H, W) float32. What was not computed is not there.
    """

    def __init__(self, model: Model):
        self._whole = {
            "classes": np.array(model.trained.classes),
            "class_names": np.array(model.trained.class_names),
        }
        self._each = {"images": [], "logits": [], "predicted": [], "true": []}

    def add(self, picture: Picture, explanation: Explanation) -> None:
        number = len(self._each["images"])
        self._each["images"].append(picture.name)
        self._each["logits"].append(explanation.logits.numpy())
        self._each["predicted"].append(explanation.predicted)
        self._each["true"].append(-1 if picture.label is None else picture.label)
        self._whole[f"pixels_{number}"] = picture.pixels
        self._whole[f"shown_{number}"] = np.array(explanation.shown)
        for method, maps in explanation.maps().items():
            self._whole[f"{KEYS[method]}_{number}"] = maps.numpy().copy()  # a view would keep all classes' maps alive
        if explanation.shares is not None:
            height, width, _ = explanation.shares.shape
            self._whole[f"patch_logits_{number}"] = (explanation.shares * (height * width)).numpy()

    def npz(self) -> bytes:
        """The content of the .npz file."""
        stream = BytesIO()
        np.savez_compressed(stream, **{key: np.array(values) for key, values in self._each.items()}, **self._whole)
        return stream.getvalue()
