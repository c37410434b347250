"""A support vector machine with a Gaussian kernel, as LIBSVM trains it."""

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from bagnet_lightning.errors import UserError

ROWS = 1024  # images scored at a time


class GaussianSvm:
    """One-against-one SVMs with the kernel exp(-gamma |x - y|^2).

    gamma is 1 / (features * variance), as in scikit-learn, and 1 if the variance is 0. C: weight of the sum of losses.
    A class's score is the number of classes that it wins against; margins, scaled to less than a half, break ties.
    """

    additive = False  # over the elements of a vector
    kernel = None  # its own takes any vectors

    arrays: Mapping[str, np.ndarray]
    # vectors (S, W), the support vectors, class by class; counts (classes,) of them; coefficients (classes - 1, S), of
    # each against the other classes in order; intercepts, of (0, 1), (0, 2), ..., (1, 2), ...; gamma (1,).

    def __init__(self, C: float):
        self.C = C
        self.arrays = {}

    def learn(self, vectors: np.ndarray, labels: np.ndarray, classes: int) -> None:
        """Fits the SVMs. vectors: (N, W) float32. labels: (N,) int64.

        Raises UserError if one of the `classes` has no vector, or there are fewer than two.
        """
        present = len(np.unique(labels))
        if present < classes or classes < 2:
            raise UserError(
                f"the Gaussian SVM compares classes by their train images, and only {present} of {classes} have some: "
                "choose two classes or more, all with train images"
            )
        variance = vectors.var(dtype=np.float64)
        learned = SVC(C=self.C, kernel="rbf", gamma="scale").fit(vectors, labels)
        sign = -1 if classes == 2 else 1  # scikit-learn flips the sign for two classes
        self.arrays = {
            "vectors": learned.support_vectors_.astype(np.float32),
            "counts": learned.n_support_.astype(np.int64),
            "coefficients": (sign * learned.dual_coef_).astype(np.float32),
            "intercepts": (sign * learned.intercept_).astype(np.float32),
            "gamma": np.array([1 / (vectors.shape[1] * variance) if variance else 1], np.float32),
        }

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Computes the scores, (N, classes) float32, of vectors (N, W)."""
        return np.concatenate([self._scores(part).numpy() for part in torch.from_numpy(vectors).split(ROWS)])

    def _scores(self, vectors: Tensor) -> Tensor:
        support, coefficients = (torch.from_numpy(self.arrays[name]) for name in ("vectors", "coefficients"))
        kernel = torch.exp(-self.arrays["gamma"].item() * torch.cdist(vectors, support).square())  # (N, S)
        counts = self.arrays["counts"].tolist()
        # The sums over the support vectors of each class against each other class: (N, classes - 1) per class.
        against = [
            class_kernel @ weights.T
            for class_kernel, weights in zip(kernel.split(counts, 1), coefficients.split(counts, 1), strict=True)
        ]
        votes, margins = torch.zeros(2, len(vectors), len(counts))
        first, second = np.triu_indices(len(counts), 1)
        for i, j, intercept in zip(first, second, self.arrays["intercepts"], strict=True):
            margin = against[i][:, j - 1] + against[j][:, i] + intercept  # above 0: i rather than j
            votes[:, i] += margin >= 0
            votes[:, j] += margin < 0
            margins[:, i] += margin
            margins[:, j] -= margin
        return votes + margins / (3 * (margins.abs() + 1))
