"""Writes progress.json while a run trains, by results.write_progress."""

import time
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from bagnet_lightning.results import progress_file, write_progress

INTERVAL = 5  # seconds between two writes


class Progress(Callback):
    """Writes the epoch, the steps and the seconds left to the run's `folder` every few seconds."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.written = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.started, self.first_step = time.monotonic(), trainer.global_step
        self._write(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args) -> None:
        if time.monotonic() - self.written > INTERVAL:
            self._write(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args) -> None:
        self.on_train_batch_end(trainer)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._remove(trainer)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._remove(trainer)

    def _write(self, trainer: Trainer) -> None:
        self.written = time.monotonic()
        steps, done = trainer.estimated_stepping_batches, trainer.global_step - self.first_step
        left = (steps - trainer.global_step) * (self.written - self.started) / done if done else None
        if trainer.is_global_zero:
            write_progress(
                self.folder,
                epoch=trainer.current_epoch + 1,
                epochs=trainer.max_epochs,
                step=trainer.global_step,
                steps=steps,
                seconds_left=left,
            )

    def _remove(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            progress_file(self.folder).unlink(missing_ok=True)
