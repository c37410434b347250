"""How often a network is right about labelled images: in all, by class, and which classes it confuses."""

import torch
from torch import Tensor

from bagnet_lightning.predictions import confusion, most_confused


def evaluate(labels: Tensor, logits: Tensor, classes: list[str], class_names: list[str]) -> dict:
    """Returns the measurements as plain numbers, and the confusion matrix, (true, predicted), as an array.

    labels: (N,) int64, indices of `classes`. logits: (N, classes).
    auc: area under the ROC curve of a class's probability against all others; their mean, each class counting the same.
    None where images of one class are all there is. Classes without an image are left out.
    """
    count = len(labels)
    matrix = confusion(labels.numpy(), logits.argmax(1).numpy(), len(classes))
    top5 = logits.topk(min(5, len(classes))).indices.eq(labels[:, None]).any(1)
    odds = _log_odds(logits)
    accuracy = matrix.trace() / count
    by_class = [
        {
            "class": classes[i],
            "name": class_names[i],
            "images": matrix[i].sum().item(),
            "accuracy": matrix[i, i] / matrix[i].sum(),
            "auc": _auc(odds[:, i], labels == i) if matrix[i].sum() < count else None,
        }
        for i in labels.unique().tolist()
    ]
    variances = [entry["accuracy"] * (1 - entry["accuracy"]) / entry["images"] for entry in by_class]
    several = len(by_class) > 1
    return {
        "images": count,
        "accuracy": accuracy,
        "accuracy_standard_error": (accuracy * (1 - accuracy) / count) ** 0.5,
        "top5_accuracy": top5.float().mean().item(),
        "balanced_accuracy": sum(entry["accuracy"] for entry in by_class) / len(by_class),
        "balanced_accuracy_standard_error": sum(variances) ** 0.5 / len(by_class),
        "auc": sum(entry["auc"] for entry in by_class) / len(by_class) if several else None,
        "accuracy_by_class": by_class,
        "most_confused": [
            {"true": class_names[true], "predicted": class_names[predicted], "images": matrix[true, predicted].item()}
            for true, predicted in most_confused(matrix, 10)
        ],
        "confusion": matrix,
    }


def _auc(scores: Tensor, positive: Tensor) -> float:
    """Returns the share of (positive, negative) pairs in the right order; equal ones count half (Mann & Whitney 1947).

    scores, positive: (N,), some positive and some not.
    """
    _, place, ties = scores.unique(return_inverse=True, return_counts=True)
    ranks = (ties.cumsum(0) - (ties - 1) / 2)[place].double()  # from 1; equal scores share their mean rank
    count = positive.sum()
    return ((ranks[positive].sum() - count * (count + 1) / 2) / (count * (~positive).sum())).item()


def _log_odds(logits: Tensor) -> Tensor:
    """Returns the logarithm of each class's odds, (N, classes): probabilities of a confident network are all 1."""
    logits = logits.double()
    top, total = logits.argmax(1, keepdim=True), logits.logsumexp(1, keepdim=True)
    others = total + torch.log1p(-(logits - total).exp())  # of all other classes; exact but for the largest logit
    others.scatter_(1, top, logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True))
    return (logits - others).float()  # rounded, so that equal ones stay equal
