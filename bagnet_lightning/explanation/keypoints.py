"""Pictures as a system of local features sees them: its scores divided exactly among the keypoints.

A score is a bias, the same for all images, and the sum of what every keypoint adds to it (local_features/model.py). Of
a system on a BagNet's patches the same holds of the patches.
"""

from dataclasses import dataclass

import numpy as np

from bagnet_lightning.config import image_size
from bagnet_lightning.errors import UserError
from bagnet_lightning.explanation.arrays import Kept
from bagnet_lightning.explanation.inputs import Picture, find_class
from bagnet_lightning.explanation.keypoint_drawing import draw
from bagnet_lightning.explanation.keypoint_page import KeypointPage
from bagnet_lightning.local_features.bag import Bag
from bagnet_lightning.local_features.encoding import BagOfWords
from bagnet_lightning.local_features.model import LocalModel, keypoint_shares, load_local_model, system


@dataclass(frozen=True)
class KeypointExplanation:
    """An image of which a system describes M keypoints, or patches."""

    scores: np.ndarray  # (classes,) float32
    shown: list[int]  # classes that the picture shows: predicted, true, asked
    keypoints: np.ndarray  # (M, 4) float32, as in a Bag: x, y, diameter or side, px; angle, degrees
    shares: np.ndarray  # (M, classes) float32: what each adds to each class's score
    bias: np.ndarray  # (classes,) float32: the score of an image without keypoints
    words: np.ndarray | None  # (M,) the visual word of each; None: the system has no words

    @property
    def predicted(self) -> int:
        return int(self.scores.argmax())

    @property
    def additivity_error(self) -> float:
        """Largest difference, over the classes, of a score and the bias with the keypoints' shares."""
        return float(np.abs(self.shares.sum(0) + self.bias - self.scores).max())


def explain(model: LocalModel, picture: Picture, asked: int | None) -> KeypointExplanation:
    """asked: a class to show besides the predicted and the true one."""
    bag: Bag = model.features.describe(picture.pixels[None])
    scores = model.scores(bag)[0]
    wanted = [int(scores.argmax()), picture.label, asked]
    return KeypointExplanation(
        scores=scores,
        shown=list(dict.fromkeys(index for index in wanted if index is not None)),
        keypoints=bag.keypoints,
        shares=keypoint_shares(model, bag).astype(np.float32),
        bias=model.classifier.arrays["bias"],
        words=model.encoding.words(bag) if isinstance(model.encoding, BagOfWords) else None,
    )


class Keypoints:
    """What explain writes of pictures, as of networks (networks.py).

    asked: a class to show besides the predicted and the true one. Raises UserError if the file is no system's model,
    its classifier does not add, or it does not know that class.
    """

    def __init__(self, path: str, asked: str | None):
        self.model = load_local_model(path)
        if not self.model.classifier.additive:
            raise UserError(f"what {path} decides is no sum over an image's local features: there are no exact shares")
        self.config, self.classes, self.class_names = self.model.config, self.model.classes, self.model.class_names
        self.image_size = image_size(self.config)
        self.asked = None if asked is None else find_class(asked, self.classes, self.class_names)
        self.notes: list[str] = []
        self.name = system(self.config, self.model.features)
        self.patches = self.model.features.explains == "patches"
        self.page = KeypointPage(self.name, self.patches, self.classes, self.class_names, self.asked)
        self.arrays = Kept(self.classes, self.class_names)

    def explain(self, picture: Picture) -> tuple[bytes, list[str]]:
        """A PNG, and lines for the terminal. The numbers are kept for `files`."""
        explanation = explain(self.model, picture, self.asked)
        self.page.add(picture, explanation)
        of_image = {"keypoints": explanation.keypoints, "shares": explanation.shares}
        if explanation.words is not None:
            of_image["words"] = explanation.words
        self.arrays.keep(picture, explanation.predicted, explanation.shown, of_image, scores=explanation.scores)
        said = self.class_names[explanation.predicted]
        truth = "" if picture.label is None else f", true class {self.class_names[picture.label]}"
        count, what = len(explanation.keypoints), "patches" if self.patches else "keypoints"
        exact = (
            f"its score is its bias and the sum of {count} {what}' shares (off by {explanation.additivity_error:.0e})"
        )
        exact = exact if count else f"it has no {what}, and its score is its bias"
        png = draw(picture, explanation, self.name, self.class_names, self.patches)
        return png, [f"{self.name} says {said}{truth}; {exact}"]

    def files(self) -> dict[str, bytes]:
        """The page, and evidence.npz by these keys; images are numbered from 0.

        images (N,) names; classes, class_names (C,); scores (N, C) and bias (C,) float32; predicted, true (N,), -1
        where unknown. For image i of H x W px with M keypoints: pixels_i (H, W, 3) uint8; shown_i (K,) class indices;
        keypoints_i (M, 4) float32, x, y, diameter (px) and angle (degrees); shares_i (M, C) float32, which with the
        bias sum to the scores; words_i (M,) visual words, where the system has some.
        """
        evidence = self.arrays.npz(bias=self.model.classifier.arrays["bias"])
        return {"evidence.npz": evidence, "index.html": self.page.html().encode()}
