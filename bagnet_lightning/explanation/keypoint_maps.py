"""The scores of a system of local features, divided exactly among an image's keypoints.

A score is a bias, the same for all images, plus a share for every keypoint (local_features/model.py). For a system on a
BagNet's patches the same holds for the patches.
"""

from dataclasses import dataclass

import numpy as np

from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.local_features.encoding import BagOfWords
from bagnet_lightning.local_features.model import LocalModel, keypoint_shares


@dataclass(frozen=True)
class KeypointExplanation:
    """A system's explanation of an image with M keypoints, or patches."""

    scores: np.ndarray  # (classes,) float32
    shown: list[int]  # classes that the picture shows: predicted, true, requested
    keypoints: np.ndarray  # (M, 4) float32, of `describe`: x, y, diameter or side, px; angle, degrees
    shares: np.ndarray  # (M, classes) float32: each keypoint's part of each class's score
    bias: np.ndarray  # (classes,) float32: the score of an image without keypoints
    words: np.ndarray | None  # (M,) the visual word of each; None: the system has no words

    @property
    def predicted(self) -> int:
        return int(self.scores.argmax())

    @property
    def largest_difference(self) -> float:
        """Largest difference, over the classes, of a score and the sum of its bias and shares."""
        return float(np.abs(self.shares.sum(0) + self.bias - self.scores).max())


def explain(model: LocalModel, picture: Picture, requested: int | None) -> KeypointExplanation:
    """Explains `picture` by `model`. requested: a class to show besides the predicted and the true one."""
    bag, keypoints = model.features.describe(picture.pixels[None])
    scores = model.scores(bag)[0]
    candidates = [int(scores.argmax()), picture.label, requested]
    return KeypointExplanation(
        scores=scores,
        shown=list(dict.fromkeys(index for index in candidates if index is not None)),
        keypoints=keypoints,
        shares=keypoint_shares(model, bag).astype(np.float32),
        bias=model.classifier.arrays["bias"],
        words=model.encoding.words(bag) if isinstance(model.encoding, BagOfWords) else None,
    )
