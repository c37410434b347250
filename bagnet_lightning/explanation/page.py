"""The page of explanations: one HTML file with its pictures, maps, style and script, which loads nothing."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from bagnet_lightning.explanation.drawing import PATCHES, exact_limit
from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.maps import Explanation, Model, strongest
from bagnet_lightning.names import MAPS
from bagnet_lightning.presentation.overlays import COLOURS, scale_end
from bagnet_lightning.presentation.standalone import page, png_uri

TEMPLATE = Path(__file__).parent / "template"
MOST_CLASSES = 12  # with maps on the page, for each image: those with the highest logits
TOP = 5


@dataclass
class Page:
    """Collects explanations one by one, and keeps only the data that the page shows."""

    models: list[Model]
    requested: int | None = None  # the class to show at first, instead of the predicted one
    images: list[dict] = field(default_factory=list)

    def add(self, picture: Picture, explanations: list[Explanation]) -> None:
        """Adds an image; scores are stored as 16-bit fixed-point numbers: see `fixed_point`."""
        height, width, _ = picture.pixels.shape
        offered = _offered(explanations)
        self.images.append(
            {
                "name": picture.name,
                "width": width,
                "height": height,
                "label": picture.label,
                "png": png_uri(picture.pixels),
                "classes": offered,
                "explanations": [
                    _explanation(model, explanation, offered, exact_limit(explanations))
                    for model, explanation in zip(self.models, explanations, strict=True)
                ],
            }
        )

    def html(self) -> str:
        data = {
            "models": [
                {
                    "name": model.name,
                    "checkpoint": f"{model.path.parent.name}/{model.path.name}",
                    "field": model.field,
                    "grey": "#{:02x}{:02x}{:02x}".format(*model.grey),
                }
                for model in self.models
            ],
            "classes": self.models[0].trained.class_names,
            "identifiers": self.models[0].trained.classes,
            "asked": self.requested,
            "images": self.images,
        }
        title = " and ".join(dict.fromkeys(model.name for model in self.models))
        return explanation_page("page", title, data)


def explanation_page(name: str, title: str, data: dict) -> str:
    """Returns the page template/`name`.html: "page" for networks, or "keypoints"."""
    colours = matplotlib.colormaps[COLOURS](np.linspace(0, 1, 255), bytes=True)[:, :3]
    return page(TEMPLATE, name, title, {**data, "colours": colours.tolist()}, ("shared.js", f"{name}.js"))


def fixed_point(values: Tensor) -> dict:
    """Encodes `values` as int16 multiples of a step, {"step", "data"} in little-endian base64; exact to half a step.

    The step is the largest absolute value over 32767.
    """
    step = values.abs().max().item() / 32767 or 1.0
    return {"step": step, "data": _base64((values.double() / step).round().to(torch.int16).numpy().astype("<i2"))}


def _offered(explanations: list[Explanation]) -> list[int]:
    """Returns the shown classes, then those of the networks' highest logits in turn, up to MOST_CLASSES in all."""
    ranked: Iterable[tuple[int, ...]] = zip(
        *(explanation.logits.argsort(descending=True).tolist() for explanation in explanations), strict=True
    )
    ordered = dict.fromkeys([*explanations[0].shown, *(index for indices in ranked for index in indices)])
    return [*ordered][: max(MOST_CLASSES, len(explanations[0].shown))]


def _explanation(model: Model, explanation: Explanation, offered: list[int], limit: float) -> dict:
    probabilities = explanation.logits.softmax(0)
    entry = {
        "predicted": explanation.predicted,
        "logits": [explanation.logits[index].item() for index in offered],
        "probabilities": [probabilities[index].item() for index in offered],
        "maps": [],
    }
    others = explanation.maps()
    if others.pop("evidence", None) is not None:
        exact = explanation.dense[..., offered].permute(2, 0, 1)  # (offered, H, W)
        entry["maps"].append({"method": MAPS["evidence"], "classes": offered, "limit": limit, **fixed_point(exact)})
        scores, indices = explanation.dense.topk(min(TOP, explanation.dense.shape[2]))  # (H, W, 5)
        dtype = np.dtype("<u1" if len(explanation.logits) <= 256 else "<u2")
        entry["top"] = {
            "count": scores.shape[2],
            "bytes": dtype.itemsize,
            "classes": _base64(indices.numpy().astype(dtype)),
            **fixed_point(scores),
        }
        entry["strongest"] = [
            [strongest(model, explanation, index, PATCHES, largest) for largest in (True, False)] for index in offered
        ]
        entry["patches"] = explanation.patch_logits[..., 0].numel()
        entry["error"] = explanation.largest_difference
    for key, maps in others.items():
        entry["maps"].append(
            {"method": MAPS[key], "classes": explanation.shown, "limit": scale_end([maps]), **fixed_point(maps)}
        )
    return entry


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values)).decode()
