"""Encodings of an image's local features as one vector of a fixed length.

Every encoding is a sum of one vector per local feature, then a power of each element, then a norm, so that the score of
a linear classifier can be divided exactly among the local features (keypoint_shares in model.py).
"""

import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from bagnet_lightning.errors import UserError
from bagnet_lightning.local_features.bag import Bag, Bags
from bagnet_lightning.local_features.codebook import learn_words, nearest_word, sample


class Encoding(ABC):
    """Base class. power: sign(x) |x|^power of every element; norm: "l1", "l2" or None, of the vector after that."""

    of_bits: ClassVar[bool] = False  # whether descriptors may be binary
    signed: ClassVar[bool] = False  # whether elements can be negative for any descriptors

    arrays: Mapping[str, np.ndarray]  # learned parameters

    def __init__(self, power: float, norm: str | None):
        self.power, self.norm = power, norm
        self.arrays = {}

    def learn(self, bags: Bags, seed: int) -> None:  # noqa: B027  not abstract: some have nothing to learn
        """Learns `arrays` from the local features of the training images."""

    @abstractmethod
    def parts(self, bag: Bag) -> np.ndarray:
        """Computes each local feature's summand in its image's sum, (M, W) float32."""

    def sums(self, bag: Bag) -> np.ndarray:
        """Computes the sums of the images, (n, W) float32; zeros for an image without local features."""
        parts = self.parts(bag)
        sums = np.zeros((len(bag), parts.shape[1]), np.float32)
        present = bag.lengths > 0
        if present.any():
            sums[present] = np.add.reduceat(parts, bag.offsets[:-1][present])
        return sums

    def normalized(self, sums: np.ndarray) -> np.ndarray:
        """Applies the power and the norm to sums, (n, W) -> (n, W) float32."""
        vectors = sums if self.power == 1 else np.sign(sums) * np.abs(sums) ** self.power
        if self.norm:
            order = {"l1": 1, "l2": 2}[self.norm]
            lengths = np.linalg.norm(vectors, order, axis=1, keepdims=True)
            vectors = vectors / np.where(lengths > 0, lengths, 1)
        return vectors.astype(np.float32)

    def __call__(self, bag: Bag) -> np.ndarray:
        """Encodes the images, (n, W) float32."""
        return self.normalized(self.sums(bag))


class Mean(Encoding):
    """The mean of an image's descriptors."""

    def parts(self, bag: Bag) -> np.ndarray:
        return bag.descriptors.astype(np.float32) / bag.lengths[bag.images, None].astype(np.float32)


class Decisions(Encoding):
    """The histogram of the classes that a network predicts for an image's patches: the mean of their probabilities.

    Hou et al., Patch-based CNN for whole slide tissue image classification, CVPR 2016, section 4, who sum the
    probabilities instead of counting the most probable class.
    """

    def parts(self, bag: Bag) -> np.ndarray:
        return softmax(bag.descriptors, axis=1) / bag.lengths[bag.images, None].astype(np.float32)


class BagOfWords(Encoding):
    """The number of local features nearest to each visual word (Csurka et al. 2004).

    codebook: size (words) and sample (local features that they are learned from). With power 1/2 and norm l2 the
    dot product of two vectors is Hellinger's kernel of the histograms.
    """

    of_bits = True

    def __init__(self, codebook: dict, power: float, norm: str | None):
        super().__init__(power, norm)
        self.codebook = codebook

    def learn(self, bags: Bags, seed: int) -> None:
        descriptors = sample(bags, self.codebook["sample"], seed)
        words = learn_words(descriptors, self.codebook["size"], bags.binary, seed)
        self.arrays = {"words": words}

    def words(self, bag: Bag) -> np.ndarray:
        """Returns the index of each local feature's word, (M,)."""
        return nearest_word(bag.descriptors, self.arrays["words"])

    def parts(self, bag: Bag) -> np.ndarray:
        parts = np.zeros((len(bag.descriptors), len(self.arrays["words"])), np.float32)
        parts[np.arange(len(parts)), self.words(bag)] = 1
        return parts

    def sums(self, bag: Bag) -> np.ndarray:
        size = len(self.arrays["words"])
        cells = bag.images * size + self.words(bag)
        return np.bincount(cells, minlength=len(bag) * size).reshape(len(bag), size).astype(np.float32)


class FisherVectors(Encoding):
    """Normalised gradients of the log-likelihood of local features under a Gaussian mixture (Perronnin et al. 2010).

    gaussians: the number of Gaussians, of diagonal covariance, over the first `dimensions` principal components of the
    descriptors, learned from `sample` of these. The gradients are with respect to the means and the standard deviations
    of every Gaussian: W = 2 * gaussians * dimensions.
    """

    signed = True

    def __init__(self, gaussians: int, dimensions: int, sample: int, power: float, norm: str | None):
        super().__init__(power, norm)
        self.gaussians, self.dimensions, self.sample = gaussians, dimensions, sample

    def learn(self, bags: Bags, seed: int) -> None:
        descriptors = sample(bags, self.sample, seed).astype(np.float32, copy=False)
        needed = max(self.gaussians, self.dimensions)
        if len(descriptors) <= needed or descriptors.shape[1] < self.dimensions:
            raise UserError(
                f"encoding=fisher: {len(descriptors)} descriptors of {descriptors.shape[1]} numbers are too few for "
                f"encoding.gaussians={self.gaussians} over encoding.dimensions={self.dimensions}; ask for less"
            )
        projection = PCA(self.dimensions, svd_solver="covariance_eigh").fit(descriptors)
        mixture = GaussianMixture(self.gaussians, covariance_type="diag", max_iter=50, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # more iterations change little
            mixture.fit(projection.transform(descriptors))
        learned = {
            "mean": projection.mean_,
            "components": projection.components_,
            "weights": mixture.weights_,
            "means": mixture.means_,
            "deviations": np.sqrt(mixture.covariances_),
        }
        self.arrays = {name: array.astype(np.float32) for name, array in learned.items()}

    def parts(self, bag: Bag) -> np.ndarray:
        """Computes the gradients by their definition, with an array of (M, gaussians, dimensions)."""
        projected = self._projected(bag)
        weights = self.arrays["weights"][:, None]
        posteriors = self._posteriors(projected)[:, :, None]
        standard = (projected[:, None] - self.arrays["means"]) / self.arrays["deviations"]
        gradients = [posteriors * standard / np.sqrt(weights), posteriors * (standard**2 - 1) / np.sqrt(2 * weights)]
        counts = bag.lengths[bag.images].astype(np.float32)
        return np.stack(gradients, 1).reshape(len(projected), -1) / counts[:, None]

    def sums(self, bag: Bag) -> np.ndarray:
        """Computes sums of `parts` without that array, from moments of an image's features weighted by posteriors."""
        projected = self._projected(bag)
        posteriors = self._posteriors(projected)
        shape = len(bag), self.gaussians, self.dimensions
        zeroth, first, second = np.zeros((*shape[:2], 1), np.float32), np.zeros(shape, np.float32), np.zeros(shape)
        for image, (start, stop) in enumerate(itertools.pairwise(bag.offsets)):
            if stop > start:
                x, gamma = projected[start:stop], posteriors[start:stop].T / (stop - start)
                zeroth[image], first[image], second[image] = gamma.sum(1, keepdims=True), gamma @ x, gamma @ x**2
        weights = self.arrays["weights"][:, None]
        means, deviations = self.arrays["means"], self.arrays["deviations"]
        by_means = (first - means * zeroth) / deviations / np.sqrt(weights)
        squares = (second - 2 * means * first + means**2 * zeroth) / deviations**2
        by_deviations = (squares - zeroth) / np.sqrt(2 * weights)
        return np.stack([by_means, by_deviations], 1).reshape(len(bag), -1).astype(np.float32)

    def _projected(self, bag: Bag) -> np.ndarray:
        """Computes the principal components of the descriptors, (M, dimensions) float32."""
        return (bag.descriptors.astype(np.float32) - self.arrays["mean"]) @ self.arrays["components"].T

    def _posteriors(self, projected: np.ndarray) -> np.ndarray:
        """Computes the probability of every Gaussian given the feature, (M, gaussians)."""
        means, deviations = self.arrays["means"], self.arrays["deviations"]
        precisions = 1 / deviations**2
        constants = np.log(self.arrays["weights"]) - np.log(deviations).sum(1) - (means**2 * precisions).sum(1) / 2
        return softmax(projected @ (means * precisions).T - projected**2 @ precisions.T / 2 + constants, axis=1)
