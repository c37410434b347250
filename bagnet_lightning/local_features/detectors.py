"""OpenCV's keypoints and descriptors on small images. Worker processes import this module, so it does not import torch.

Keypoint detectors were made for photographs of a thousand pixels a side, and drop keypoints nearer to the edge than the
width of their patch: an ORB patch of 31 px fits into 64 px at few positions. Images are therefore enlarged first
(`upsample`), and ORB's patches may reach over the edge, where the image is continued by its mirror image.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from bagnet_lightning.local_features.bag import Bag

SIFT_BYTES, ORB_BYTES = 128, 32
ORB_PATCH = 31  # px; for this size the pairs of pixels are the learned ones (Rublee et al. 2011, section 4.3)
SIFT_BINS = 4  # a SIFT descriptor has 4 x 4 bins, each 3 sigma wide, and KeyPoint.size is 2 sigma


@dataclass(frozen=True)
class Detector(ABC):
    """Finds keypoints in an image and describes them. upsample: factor by which the image is enlarged first."""

    descriptor_bytes: ClassVar[int]
    diameter: ClassVar[float] = 1  # of the described region, in units of KeyPoint.size, which for ORB is the diameter
    binary: ClassVar[bool] = False
    logits: ClassVar[bool] = False
    explains: ClassVar[str] = "keypoints"
    parameters: ClassVar[int] = 0

    upsample: float

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns keypoints (M, 4) float32 and descriptors (M, D) uint8. image: (H, W, 3) uint8, RGB."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if self.upsample != 1:
            grey = cv2.resize(grey, None, fx=self.upsample, fy=self.upsample, interpolation=cv2.INTER_CUBIC)
        points, descriptors = self.detect(grey)
        if not len(points):
            return np.empty((0, 4), np.float32), np.empty((0, self.descriptor_bytes), np.uint8)
        keypoints = np.array([(*point.pt, self.diameter * point.size, point.angle) for point in points], np.float32)
        keypoints[:, :2] = (keypoints[:, :2] + 0.5) / self.upsample - 0.5  # pixel centres have whole coordinates
        keypoints[:, 2] /= self.upsample
        return keypoints, descriptors.astype(np.uint8)  # SIFT's are whole numbers up to 255 in float32

    def describe(self, images: np.ndarray) -> tuple[Bag, np.ndarray]:
        """Extracts the local features: see Features."""
        cv2.setNumThreads(0)  # processes share the cores already, and one thread finds keypoints in one order
        found = [self(image) for image in images]
        keypoints, descriptors = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Bag(descriptors, np.cumsum([0, *(len(each) for each, _ in found)])), keypoints

    @abstractmethod
    def detect(self, grey: np.ndarray) -> tuple[Sequence[cv2.KeyPoint], np.ndarray]:
        """Returns the keypoints of a grey image, in px of this image, and their descriptors."""


@dataclass(frozen=True)
class Sift(Detector):
    """Lowe 2004: extrema of differences of Gaussians, histograms of gradients. Arguments: cv2.SIFT_create's.

    keypoints: about this many, the strongest; OpenCV keeps equally strong ones, and each of a keypoint's angles.
    """

    descriptor_bytes: ClassVar[int] = SIFT_BYTES
    diameter: ClassVar[float] = SIFT_BINS * 3 / 2

    keypoints: int
    contrast_threshold: float
    edge_threshold: float
    sigma: float

    def detect(self, grey: np.ndarray) -> tuple[Sequence[cv2.KeyPoint], np.ndarray]:
        sift = cv2.SIFT_create(
            nfeatures=self.keypoints,
            contrastThreshold=self.contrast_threshold,
            edgeThreshold=self.edge_threshold,
            sigma=self.sigma,
            enable_precise_upscale=True,
        )
        return sift.detectAndCompute(grey, None)


@dataclass(frozen=True)
class DenseSift(Detector):
    """Upright SIFT descriptors on a grid of `step` px, with bins of each of `bin_sizes` px wherever they fit.

    As in Bosch et al. 2007 (PHOW) the image is smoothed to a blur of a sixth of a bin; OpenCV takes 0.5 px of it to be
    in the image already.
    """

    descriptor_bytes: ClassVar[int] = SIFT_BYTES
    diameter: ClassVar[float] = SIFT_BINS * 3 / 2

    step: int
    bin_sizes: Sequence[float]

    def detect(self, grey: np.ndarray) -> tuple[Sequence[cv2.KeyPoint], np.ndarray]:
        height, width = grey.shape
        points, descriptors = [], []
        for size in self.bin_sizes:
            grid = [
                cv2.KeyPoint(x, y, 2 * size / 3, 0)
                for y in _centres(height, SIFT_BINS * size, self.step)
                for x in _centres(width, SIFT_BINS * size, self.step)
            ]
            if grid:
                kept, described = cv2.SIFT_create(sigma=max(0.6, size / 6)).compute(grey, grid)
                points += kept
                descriptors.append(described)
        return points, np.concatenate(descriptors) if points else np.empty((0, SIFT_BYTES))


@dataclass(frozen=True)
class Orb(Detector):
    """Rublee et al. 2011: FAST corners of a pyramid with an angle, and 256 pixel comparisons rotated by it."""

    descriptor_bytes: ClassVar[int] = ORB_BYTES
    binary: ClassVar[bool] = True

    keypoints: int
    fast_threshold: int

    def detect(self, grey: np.ndarray) -> tuple[Sequence[cv2.KeyPoint], np.ndarray]:
        orb = cv2.ORB_create(nfeatures=self.keypoints, edgeThreshold=0, fastThreshold=self.fast_threshold)
        return orb.detectAndCompute(grey, None)


@dataclass(frozen=True)
class FastBrief(Detector):
    """FAST corners (Rosten & Drummond 2006), the strongest `keypoints` of them, with ORB's binary descriptor, upright.

    Upright, it is BRIEF (Calonder et al. 2010) on ORB's learned pairs: FAST itself gives corners no angle.
    """

    descriptor_bytes: ClassVar[int] = ORB_BYTES
    binary: ClassVar[bool] = True

    keypoints: int
    fast_threshold: int

    def detect(self, grey: np.ndarray) -> tuple[Sequence[cv2.KeyPoint], np.ndarray]:
        corners = cv2.FastFeatureDetector_create(threshold=self.fast_threshold).detect(grey)
        strongest = sorted(corners, key=lambda corner: (-corner.response, corner.pt[1], corner.pt[0]))
        upright = [cv2.KeyPoint(*corner.pt, ORB_PATCH, 0) for corner in strongest[: self.keypoints]]
        return cv2.ORB_create(edgeThreshold=0).compute(grey, upright)


def _centres(length: int, side: float, step: int) -> np.ndarray:
    """Returns the centres of all windows of `side` px, every `step` px, that fit into `length` px, centred in it."""
    count = int((length - side) // step) + 1 if length >= side else 0
    return (length - 1) / 2 + step * (np.arange(count) - (count - 1) / 2)
