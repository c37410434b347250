"""Linear classifiers of encoded images, plain or on the explicit map of an additive kernel.

Trained by L-BFGS, all classes at once. The optimum is that of scikit-learn's LogisticRegression, and of its LinearSVC
except for the bias, which LinearSVC penalises. 200 classes of 100,000 images take minutes: these are matrix products.
"""

import logging
from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from bagnet_lightning.errors import UserError
from bagnet_lightning.inference.logits import best_device
from bagnet_lightning.local_features.kernel_map import KernelMap
from bagnet_lightning.progress_bar import progress_bar

log = logging.getLogger(__name__)
ROWS = 8192  # images mapped and multiplied at a time
ITERATIONS = 1000  # at most
GRADIENT, DECREASE = 1e-6, 1e-6  # converged if no slope is steeper, or a step lowers the mean loss by less


class LinearClassifier:
    """Scores each class by w . map(x) + b.

    loss: "squared_hinge", each class against the rest (a linear SVM), or "logistic", multinomial. C: weight of the sum
    of losses against |w|^2 / 2, as in scikit-learn; b is not penalised. kernel, order: see KernelMap; None: x itself.
    """

    additive = True  # a score is a sum over the elements of a vector

    arrays: Mapping[str, np.ndarray]  # weight (classes, features) and bias (classes,), float32

    def __init__(self, loss: str, C: float, kernel: str | None, order: int):
        self.loss, self.C, self.kernel = loss, C, kernel
        self.map = KernelMap(kernel, order) if kernel else None
        self.arrays = {}

    def learn(self, vectors: np.ndarray, labels: np.ndarray, classes: int) -> None:
        """Fits weight and bias. vectors: (N, W) float32. labels: (N,) int64, of `classes` classes.

        Raises UserError if a kernel of histograms is given negative numbers.
        """
        if self.map and vectors.min() < 0:
            raise UserError(
                f"classifier.kernel={self.kernel} takes histograms, and these vectors have negative elements: use "
                "classifier=linear, or encoding=bow"
            )
        device = best_device()
        mapped = unmapped = torch.from_numpy(vectors)
        if self.map:  # block by block: computing the map takes several times its memory
            mapped = torch.empty(len(unmapped), self.mapped(unmapped[:1]).shape[1], device=device)
            for rows, block in zip(mapped.split(ROWS), unmapped.split(ROWS), strict=True):
                rows.copy_(self.mapped(block.to(device)))
        mapped = mapped.to(device)  # (N, F)
        truth = torch.from_numpy(labels).to(device)
        count, shape = len(mapped), (classes, mapped.shape[1] + 1)
        mean = mapped.mean(0)  # which is taken off all vectors, in effect: a large one would slow L-BFGS down
        penalty = 1 / (self.C * count)

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            """Returns mean loss plus penalty, and its gradient, for weights with biases as their last column."""
            exact = torch.from_numpy(flat).view(shape)
            weights = exact.float().to(device)
            bias = weights[:, -1] - weights[:, :-1] @ mean
            value, gradient = 0.0, torch.zeros(shape, device=device)
            for rows, row_labels in zip(mapped.split(ROWS), truth.split(ROWS), strict=True):
                loss, score_grad = _loss(self.loss, torch.addmm(bias, rows, weights[:, :-1].T), row_labels)
                value += loss
                gradient[:, :-1].addmm_(score_grad.T, rows)
                gradient[:, -1] += score_grad.sum(0)
            gradient[:, :-1] -= torch.outer(gradient[:, -1], mean)
            total = gradient.double().cpu() / count
            total[:, :-1] += penalty * exact[:, :-1]
            return value / count + penalty / 2 * exact[:, :-1].square().sum().item(), total.numpy().ravel()

        with progress_bar("classifier", None) as advance:
            result = minimize(
                objective,
                np.zeros(shape).ravel(),
                jac=True,
                method="L-BFGS-B",
                callback=lambda _: advance(1),
                options={"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "gtol": GRADIENT, "ftol": DECREASE},
            )
        if not result.success:
            log.warning("the classifier is not at its optimum after %d iterations: %s", result.nit, result.message)
        weight, bias = np.split(result.x.reshape(shape), [-1], axis=1)
        bias = bias[:, 0] - weight @ mean.double().cpu().numpy()
        self.arrays = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Computes the scores, (N, classes) float32, of vectors (N, W)."""
        weight, bias = (torch.from_numpy(self.arrays[name]) for name in ("weight", "bias"))
        blocks = torch.from_numpy(vectors).split(ROWS)
        return torch.cat([torch.addmm(bias, self.mapped(rows), weight.T) for rows in blocks]).numpy()

    def contributions(self, vector: np.ndarray) -> np.ndarray:
        """Computes what each element of a vector (W,) adds to each class's score, (W, classes); bias is the rest."""
        weight = torch.from_numpy(self.arrays["weight"])
        mapped = self.mapped(torch.from_numpy(vector)[None])  # (1, terms * W): one term after the other
        return (mapped * weight).view(len(weight), -1, len(vector)).sum(1).T.numpy()

    def mapped(self, vectors: Tensor) -> Tensor:
        return self.map(vectors) if self.map else vectors


class Argmax:
    """Uses the vectors themselves as scores: a network's mean logits are scores already."""

    additive = True
    kernel = None

    arrays: Mapping[str, np.ndarray]  # bias (classes,), of zeros

    def __init__(self) -> None:
        self.arrays = {}

    def learn(self, vectors: np.ndarray, labels: np.ndarray, classes: int) -> None:
        self.arrays = {"bias": np.zeros(classes, np.float32)}

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        return vectors

    def contributions(self, vector: np.ndarray) -> np.ndarray:
        """Returns the contributions, (classes, classes), like LinearClassifier.contributions."""
        return np.diag(vector)


def _loss(name: str, scores: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Computes the sum of the losses of (B, classes) scores, and its gradient with respect to them."""
    if name == "logistic":
        log_probability = scores.log_softmax(1)
        score_grad = log_probability.exp()
        score_grad[torch.arange(len(labels)), labels] -= 1
        return F.nll_loss(log_probability, labels, reduction="sum").item(), score_grad
    signs = 2.0 * F.one_hot(labels, scores.shape[1]) - 1
    violations = (1 - signs * scores).clamp(min=0)  # of the margin
    return violations.square().sum().item(), -2 * signs * violations
