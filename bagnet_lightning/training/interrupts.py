"""Stopping and continuing runs: SIGTERM (a machine taken back, a job cancelled), SIGINT (Ctrl-C), SIGUSR1 (SLURM's
warning before a job's time is over).
"""

import signal
import threading
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from bagnet_lightning.errors import SIGNALS, Interrupted
from bagnet_lightning.training.checkpoints import gradients_pending


class StopOnSignal(Callback):
    """Writes `last` after the batch in which a signal came and raises Interrupted; a second Ctrl-C stops at once.

    It stops between steps, so that the checkpoint is a state that an uninterrupted run passes through. All ranks stop
    after the step in which one of them received the signal.
    """

    def __init__(self, last: Path):
        self.last = last
        self.received: int | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # Lightning restores the old handlers
            for signum in SIGNALS:
                signal.signal(signum, self._note)
        if trainer.received_sigterm:  # caught by Lightning, which would end with exit code 0
            self.received = signal.SIGTERM

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not gradients_pending(trainer, batch_idx):
            self._stop(trainer, save=True)

    def on_validation_batch_end(self, trainer: Trainer, *args) -> None:
        if trainer.world_size == 1:  # ranks may have different numbers of batches
            self._stop(trainer, save=True)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop(trainer, save=False)  # the signal came while the epoch's checkpoints were written

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop(trainer, save=False)

    def _stop(self, trainer: Trainer, save: bool) -> None:
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            if save:
                trainer.save_checkpoint(self.last)
            raise Interrupted(self.received or signal.SIGTERM)

    def _note(self, signum: int, frame: object) -> None:
        self.received = self.received or signum  # at SLURM's time limit SIGTERM follows SIGUSR1
        signal.signal(signal.SIGINT, self._at_once)

    def _at_once(self, signum: int, frame: object) -> None:
        raise Interrupted(signum)


class ValidateOnContinuing(Callback):
    """Makes a checkpoint between an epoch's last step and the end of its validation continue with the whole validation.

    Lightning would go on with the next epoch, and the history and the choice of the best weights would lack this one.
    """

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict) -> None:
        loops = checkpoint["loops"]["fit_loop"]
        batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]["current"]
        unvalidated = batches["is_last_batch"] and epochs["processed"] < epochs["started"]
        # Lightning counts the batch after its checkpoint was written; before 2.5 it then trained on it again.
        if unvalidated or not hasattr(trainer.fit_loop, "restarted_mid_epoch"):
            for progress in (batches["total"], batches["current"]):
                progress["completed"] = progress["processed"]
        if not unvalidated:
            return
        # Lightning reads this as a validation that was interrupted in its first batch.
        validation = loops["epoch_loop.val_loop.batch_progress"]
        validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation["current"] = dict.fromkeys(validation["total"], 0)
        validation["is_last_batch"] = False
