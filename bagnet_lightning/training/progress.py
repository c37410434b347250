"""progress.json: how far a run is, for those who watch it; read by results.read_run, gone when the run has ended."""

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from bagnet_lightning.files import write_text

INTERVAL = 5  # s between two writes


class Progress(Callback):
    """Writes the epoch, the steps and the seconds left to `path` every few seconds.

    A file that cannot be written stops no training. pid and host tell a run that goes on from one that was killed.
    """

    def __init__(self, path: Path):
        self.path = path
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
        state = {
            "epoch": trainer.current_epoch + 1,
            "epochs": trainer.max_epochs,
            "step": trainer.global_step,
            "steps": steps,
            "seconds_left": left,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        if trainer.is_global_zero:
            with contextlib.suppress(OSError):
                write_text(self.path, json.dumps(state) + "\n")

    def _remove(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)
