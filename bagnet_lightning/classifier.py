"""The LightningModule: loss, metrics, optimizer and schedule of an image classifier."""

from collections.abc import Callable

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from bagnet_lightning.data.module import Batch


class Classifier(LightningModule):
    """Trains `network` ((B, 3, H, W) -> (B, num_classes)) by cross-entropy.

    optimizer: makes one from parameters. scheduler: makes one from the optimizer; with interval "epoch" it is stepped
    once an epoch, with "step" once an optimizer step, and then it is given the run's `total_steps`.
    about: plain data that travels in every checkpoint (config, classes, class_names, mean, std).
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        interval: str,
        num_classes: int,
        label_smoothing: float,
        about: dict,
    ):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer, self.scheduler, self.interval = optimizer, scheduler, interval
        self.label_smoothing, self.about = label_smoothing, about
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_top5_accuracy = MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: Batch) -> Tensor:
        images, labels, _ = batch
        logits = self.network(images)  # (B, classes)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.train_accuracy(logits, labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: Batch) -> None:
        images, labels, _ = batch
        logits = self.network(images)
        self.val_accuracy(logits, labels)
        self.val_top5_accuracy(logits, labels)
        self.log("val_loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)
        self.log("val_top5_accuracy", self.val_top5_accuracy)

    def configure_optimizers(self) -> dict:
        optimizer = self.optimizer(self.network.parameters())
        steps = self.trainer.estimated_stepping_batches
        if self.interval == "step":
            schedule = {"scheduler": self.scheduler(optimizer, total_steps=steps), "interval": "step"}
        else:
            # After the epoch's last batch: Lightning's own "epoch" comes too late for the checkpoint.
            schedule = {
                "scheduler": self.scheduler(optimizer),
                "interval": "step",
                "frequency": self.trainer.num_training_batches,
            }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["bagnet_lightning"] = self.about
