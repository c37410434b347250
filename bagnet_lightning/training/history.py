"""metrics.csv, one row per finished epoch, and the timing that a run's result takes from its rows."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from pytorch_lightning import Callback, LightningModule, Trainer

from bagnet_lightning.errors import UserError
from bagnet_lightning.files import csv_of, write_text

log = logging.getLogger(__name__)


class History(Callback):
    """Keeps the rows and writes them to `path` after every epoch.

    Checkpoints hold them, so that a continued run's file has each epoch once, whatever was lost in between.
    An epoch's seconds start where those of the previous one end, so that writing checkpoints is included.
    logged: names of what the module logs at the end of an epoch; what callbacks log follows, without what they log in
    training in an epoch that goes on in another process, where Lightning's means are of its last steps alone.
    compiling: returns the seconds that this process has spent on compiling so far.
    """

    def __init__(self, path: Path, logged: tuple[str, ...], compiling: Callable[[], float]):
        self.path, self.compiling = path, compiling
        self.columns = ("epoch", "step", *logged)
        self.rows: list[dict[str, float]] = []
        self.training_seconds: list[float] = []  # each row's seconds without validation
        self.validation_seconds = 0.0  # since the last row
        self.unfinished_seconds = 0.0  # since the last row: of an earlier process, or of the last checkpoints
        self.compile_seconds = 0.0  # in processes before this one

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.epoch_started = time.perf_counter() - self.unfinished_seconds
        self.began_within = trainer.fit_loop.epoch_loop.batch_progress.current.ready > 0  # in the middle of an epoch

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        names = self.validated if self.began_within else trainer.callback_metrics
        logged = {name: trainer.callback_metrics[name].item() for name in names}
        self.began_within = False
        row = logged | {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        if not self.validation_seconds:  # the logged values are of an earlier epoch, or missing
            raise UserError(f"epoch {row['epoch']} ended without a validation: leave out trainer.limit_val_batches")
        now = time.perf_counter()
        row["seconds"], self.epoch_started = now - self.epoch_started, now
        self.rows.append({column: row[column] for column in dict.fromkeys([*self.columns, *row])})
        self.training_seconds.append(row["seconds"] - self.validation_seconds)
        self.validation_seconds = 0.0
        values = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in [*self.rows[-1].items()][2:-1])
        log.info("epoch %d: %s, %.1f s", row["epoch"], values, row["seconds"])
        if trainer.is_global_zero:
            columns = [*dict.fromkeys(name for row in self.rows for name in row)]
            write_text(self.path, csv_of([columns, *([row.get(name) for name in columns] for row in self.rows)]))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.strategy.checkpoint_io.wait()  # for the last checkpoints, whose time is included
        self.unfinished_seconds = time.perf_counter() - self.epoch_started

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.validation_seconds += time.perf_counter() - self.validation_started
        self.validated = [*trainer.callback_metrics]

    def state_dict(self) -> dict:
        return {
            "rows": self.rows,
            "training_seconds": self.training_seconds,
            "validation_seconds": self.validation_seconds,
            "unfinished_seconds": time.perf_counter() - self.epoch_started,
            "compile_seconds": self.compile_seconds + self.compiling(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.rows, self.training_seconds = state["rows"], state["training_seconds"]
        self.validation_seconds = state["validation_seconds"]
        self.unfinished_seconds, self.compile_seconds = state["unfinished_seconds"], state["compile_seconds"]

    def timing(self, images_per_epoch: int) -> dict:
        """Returns the training times of a result.

        Images per second are of training without validation, in the median epoch after the first, which also compiles,
        records and searches for kernels; with a single epoch, in that one.
        """
        return {
            "train_seconds": sum(row["seconds"] for row in self.rows) + self.unfinished_seconds,  # last checkpoints
            "compile_seconds": self.compile_seconds + self.compiling(),
            "images_per_second": images_per_epoch / median(self.training_seconds[1:] or self.training_seconds),
        }
