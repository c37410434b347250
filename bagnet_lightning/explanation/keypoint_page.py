"""The page of keypoints: one HTML file, like that of networks, that shows the shares of the keypoint pointed at."""

from dataclasses import dataclass, field

import numpy as np

from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.keypoint_drawing import strongest
from bagnet_lightning.explanation.keypoint_maps import KeypointExplanation
from bagnet_lightning.explanation.page import MOST_CLASSES, TOP, explanation_page
from bagnet_lightning.presentation.overlays import scale_end
from bagnet_lightning.presentation.standalone import png_uri

DIGITS = 5  # significant digits of a number


@dataclass
class KeypointPage:
    """Collects explanations one by one, and keeps only the data that the page shows."""

    system: str  # the system's name
    patches: bool  # whether keypoints are square patches
    classes: list[str]
    class_names: list[str]
    requested: int | None = None  # the class to show at first, instead of the predicted one
    images: list[dict] = field(default_factory=list)

    def add(self, picture: Picture, explanation: KeypointExplanation) -> None:
        """Adds an image, with the shown classes and those of the highest scores, up to MOST_CLASSES."""
        shares = explanation.shares
        ranked = np.argsort(-explanation.scores, kind="stable").tolist()
        offered = [*dict.fromkeys([*explanation.shown, *ranked])][: max(MOST_CLASSES, len(explanation.shown))]
        top = np.argsort(-shares, axis=1, kind="stable")[:, :TOP]  # (M, TOP)
        height, width, _ = picture.pixels.shape
        self.images.append(
            {
                "name": picture.name,
                "width": width,
                "height": height,
                "label": picture.label,
                "png": png_uri(picture.pixels),
                "classes": offered,
                "predicted": explanation.predicted,
                "scores": _rounded(explanation.scores[offered]),
                "biases": _rounded(explanation.bias[offered]),
                "keypoints": _rounded(explanation.keypoints),
                "words": None if explanation.words is None else explanation.words.tolist(),
                "shares": _rounded(shares[:, offered].T),
                "top": [
                    [*zip(classes.tolist(), _rounded(row[classes]), strict=True)]
                    for classes, row in zip(top, shares, strict=True)
                ],
                "strongest": [strongest(explanation.keypoints, shares[:, index]) for index in offered],
                "limit": scale_end([explanation.shares[:, explanation.shown]]),
                "error": explanation.largest_difference,
            }
        )

    def html(self) -> str:
        data = {
            "system": self.system,
            "patches": self.patches,
            "classes": self.class_names,
            "identifiers": self.classes,
            "asked": self.requested,
            "images": self.images,
        }
        return explanation_page("keypoints", self.system, data)


def _rounded(values: np.ndarray) -> list:
    """Converts to nested lists of numbers with DIGITS significant digits."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
