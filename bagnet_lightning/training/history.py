"""metrics.csv: one row a finished epoch, and what a run's result needs of them."""

import csv
import io
import logging
import time
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from bagnet_lightning.files import write_text

log = logging.getLogger(__name__)
COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_top5_accuracy",
    "learning_rate",
    "seconds",
)


class History(Callback):
    """Keeps the rows and writes them to `path` after every epoch.

    They travel in the checkpoint, so that a continued run's file holds each epoch once, whatever was lost in between.
    An epoch's seconds begin where the ones before end, so that the writing of checkpoints counts.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.validation_seconds = 0.0
        self.unfinished_seconds = 0.0  # since the last row: of an epoch that another process began

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.epoch_started = time.perf_counter() - self.unfinished_seconds

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step} | logged
        now = time.perf_counter()
        row["seconds"], self.epoch_started = now - self.epoch_started, now
        self.rows.append({column: row[column] for column in COLUMNS})
        log.info("epoch %(epoch)d: train loss %(train_loss).4f, val accuracy %(val_accuracy).4f, %(seconds).1f s", row)
        if trainer.is_global_zero:
            table = io.StringIO(newline="")
            writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.path, table.getvalue())

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.unfinished_seconds = time.perf_counter() - self.epoch_started

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validation_seconds += time.perf_counter() - self.validation_started

    def state_dict(self) -> dict:
        return {
            "rows": self.rows,
            "validation_seconds": self.validation_seconds,
            "unfinished_seconds": time.perf_counter() - self.epoch_started,
        }

    def load_state_dict(self, state: dict) -> None:
        self.rows, self.validation_seconds = state["rows"], state["validation_seconds"]
        self.unfinished_seconds = state["unfinished_seconds"]

    def summary(self, images_per_epoch: int, compile_seconds: float) -> dict:
        """The result's figures: the best epoch (the first of equals), the last, and the time of training.

        compile_seconds: what of this time was spent once, and does not count in the images per second.
        """
        best = max(self.rows, key=lambda row: row["val_accuracy"])
        seconds = sum(row["seconds"] for row in self.rows) + self.unfinished_seconds  # of the last checkpoints
        return {
            "best_val_accuracy": best["val_accuracy"],
            "best_epoch": best["epoch"],
            "final_val_accuracy": self.rows[-1]["val_accuracy"],
            "val_top5_accuracy": best["val_top5_accuracy"],
            "train_seconds": seconds,
            "compile_seconds": compile_seconds,
            "images_per_second": images_per_epoch
            * len(self.rows)
            / (seconds - self.validation_seconds - compile_seconds),
        }
