"""evidence.npz: what the pictures and the page show, as numbers."""

from io import BytesIO

import numpy as np

from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.maps import APPROXIMATIONS, EXACT, Explanation, Model

KEYS = {EXACT: "evidence", **{name: name.lower().replace("-", "_").replace(" ", "_") for name in APPROXIMATIONS}}


def pack(model: Model, pictures: list[Picture], explanations: list[Explanation]) -> dict[str, np.ndarray]:
    """One model's arrays; images are numbered from 0 in the order of `images`.

    images (N,) names; classes, class_names (C,); logits (N, C) float32; predicted, true (N,), -1 where unknown.
    For image i of H x W px, with K shown classes:
    pixels_i (H, W, 3) uint8; shown_i (K,) class indices; evidence_i (K, H, W) float32, the logit of the patch centred
    on each pixel; patch_logits_i (h, w, C) float32, of the patches at the native stride, whose mean is the image's
    logits; grad_cam_i and integrated_gradients_i (K, H, W) float32. What was not computed is not there.
    """
    arrays = {
        "images": np.array([picture.name for picture in pictures]),
        "classes": np.array(model.trained.classes),
        "class_names": np.array(model.trained.class_names),
        "logits": np.stack([explanation.logits.numpy() for explanation in explanations]),
        "predicted": np.array([explanation.predicted for explanation in explanations]),
        "true": np.array([-1 if picture.label is None else picture.label for picture in pictures]),
    }
    for number, (picture, explanation) in enumerate(zip(pictures, explanations, strict=True)):
        arrays[f"pixels_{number}"] = picture.pixels
        arrays[f"shown_{number}"] = np.array(explanation.shown)
        for method, maps in explanation.maps().items():
            arrays[f"{KEYS[method]}_{number}"] = maps.numpy()
        if explanation.shares is not None:
            height, width, _ = explanation.shares.shape
            arrays[f"patch_logits_{number}"] = (explanation.shares * (height * width)).numpy()
    return arrays


def as_npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of a .npz file."""
    stream = BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()
