"""A loss, and a measure that a callback takes."""

import torch
from pytorch_lightning import Callback
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_f1_score


def focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Cross-entropy in which images count the less the surer the network is (Lin et al. 2017)."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-losses)) ** gamma * losses).mean()


class F1(Callback):
    """Logs val_f1, the mean of the classes' F1 scores (on one device)."""

    def on_validation_start(self, trainer, module):
        self.predicted, self.labels = [], []

    def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
        self.predicted.append(outputs["predicted"])
        self.labels.append(batch[1])

    def on_validation_epoch_end(self, trainer, module):
        classes = len(trainer.datamodule.class_ids)
        found = torch.cat(self.predicted), torch.cat(self.labels)
        module.log("val_f1", multiclass_f1_score(*found, num_classes=classes, average="macro"))
