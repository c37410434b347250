"""Tells in progress.json how far a training is."""

import time
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from bagnet_lightning.results import progress_file, write_progress

INTERVAL = 5  # seconds between two writes


class Progress(Callback):
    """Writes the epoch, the steps and the seconds left to progress.json of a run at work, every few seconds."""

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

    def _write(self, trainer: Trainer) -> None:
        self.written = time.monotonic()
        steps, done = trainer.estimated_stepping_batches, trainer.global_step - self.first_step
        left = (steps - trainer.global_step) * (self.written - self.started) / done if done else None
        if trainer.is_global_zero and progress_file(self.folder).exists():  # EM's training is a part of a run
            write_progress(
                self.folder,
                epoch=trainer.current_epoch + 1,
                epochs=trainer.max_epochs,
                step=trainer.global_step,
                steps=steps,
                seconds_left=left,
            )
