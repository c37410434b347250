"""SIGTERM (a machine taken back, a job cancelled) and SIGINT (Ctrl-C): the step is finished, saved, then we stop."""

import signal
import threading
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from bagnet_lightning.errors import Interrupted


class StopOnSignal(Callback):
    """Writes `last` after the step in which a signal came and raises Interrupted; a second Ctrl-C stops at once.

    Between steps, so that the checkpoint is one that an unbroken run passes through. A signal during validation stops
    at once: the checkpoint before it stands.
    """

    def __init__(self, last: Path):
        self.last = last
        self.received: int | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # Lightning puts the old handlers back
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, self._note)

    def on_train_batch_end(self, trainer: Trainer, *args) -> None:
        if self.received:
            trainer.save_checkpoint(self.last)
            raise Interrupted(self.received)

    def on_validation_batch_end(self, trainer: Trainer, *args) -> None:
        if self.received:
            raise Interrupted(self.received)

    def _note(self, signum: int, frame: object) -> None:
        self.received = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)
