"""Writing checkpoints during training: how often, and so that no failure leaves a broken one."""

import io
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map

from bagnet_lightning.checkpoint import read_checkpoint
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import write_bytes
from bagnet_lightning.results import lower_is_better

WAITING_AT_MOST = 2  # checkpoints: an epoch's best.ckpt and last.ckpt


class BestCheckpoint(ModelCheckpoint):
    """best.ckpt: the weights of the epoch that is best by `monitor`, kept also when the run's folder has been moved.

    Lightning forgets the best value in another folder, and would overwrite the best epoch with the next one.
    """

    def __init__(self, folder: Path, monitor: str):
        mode = "min" if lower_is_better(monitor) else "max"
        super().__init__(
            folder, "best", monitor=monitor, mode=mode, save_weights_only=True, enable_version_counter=False
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        def in_folder(path: str) -> str:
            return path and str(Path(self.dirpath) / Path(path).name)

        paths = {key: in_folder(state[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        models = {in_folder(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict({**state, **paths, "best_k_models": models, "dirpath": self.dirpath})


class LastCheckpoint(Checkpoint):
    """Writes the newest state to `path`: after every epoch, and between steps as often as configured.

    every_n_steps: in optimizer steps from the start of training. every_n_minutes: since the last write. None: never.
    """

    def __init__(self, path: Path, every_n_steps: int | None, every_n_minutes: float | None):
        self.path, self.every_n_steps, self.every_n_minutes = path, every_n_steps, every_n_minutes

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.written = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if gradients_pending(trainer, batch_idx):
            return
        due = bool(self.every_n_steps) and trainer.global_step % self.every_n_steps == 0
        if self.every_n_minutes:
            late = time.monotonic() - self.written >= 60 * self.every_n_minutes
            due |= trainer.strategy.reduce_boolean_decision(late, all=False)
        if due:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.written = time.monotonic()


def gradients_pending(trainer: Trainer, batch_idx: int) -> bool:
    """Whether gradients are half accumulated after this batch: checkpoints lack them, and resuming would lose them."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches != 0 and not trainer.is_last_batch


class CheckpointWriter(TorchCheckpointIO):
    """Writes a new file beside the old one, flushes it, reads it back, then renames it: until then the old one stays.

    Checkpoints on a GPU are copied and written in a thread, in the order of the calls: to write, flush and read back
    the 175 MB of BagNet-17 with Adam takes a second or more, and a fast GPU trains an epoch in a few. If a write in the
    thread fails, a later call or `wait` raises the error. seconds: how long training has waited for checkpoints so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.readable: set[Path] = set()  # files that have been found to hold nothing but data
        self.writing: deque[Future] = deque()
        self.thread: ThreadPoolExecutor | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes `path`, now or in the thread.

        Raises UserError if this or an earlier one cannot be written; the file it was to replace is then unchanged.
        """
        started = time.perf_counter()
        if tree_any(_on_gpu, checkpoint):
            self.thread = self.thread or ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
            self._wait_until(WAITING_AT_MOST - 1)
            self.writing.append(self.thread.submit(self.write, tree_map(_copied, checkpoint), Path(path)))
        else:
            self.write(checkpoint, Path(path))
        self.seconds += time.perf_counter() - started

    def write(self, checkpoint: dict[str, Any], path: Path) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)  # torch's own error would not say why a file cannot be written
        try:
            if not path.parent.exists():  # of a ModelCheckpoint that the user added
                path.parent.mkdir(parents=True, exist_ok=True)
            for left_over in path.parent.glob(f".{path.name}.*"):  # by a process that was killed while writing
                left_over.unlink()
            write_bytes(path, content.getbuffer(), read_back=True)
            if path not in self.readable:
                read_checkpoint(path)  # before there is much to lose
                self.readable.add(path)
        except OSError as error:
            old = "the one before it is whole" if path.exists() else "there is none before it"
            raise UserError(
                f"checkpoint {path} cannot be written ({error.strerror}); {old}; once that is fixed, the same command "
                "goes on"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> dict:
        """Returns the checkpoint's plain types and tensors; other content is refused whatever `weights_only` is."""
        self.wait()
        try:
            return read_checkpoint(Path(path), map_location)
        except UserError as error:
            raise UserError(f"{error}; remove it to train from the start") from error

    def wait(self) -> None:
        """Waits until all checkpoints are on the disk. Raises UserError if one could not be written."""
        started = time.perf_counter()
        self._wait_until(0)
        self.seconds += time.perf_counter() - started

    def teardown(self) -> None:
        """Waits and ends the thread; Lightning calls this when training ends, also after an error."""
        try:
            self.wait()
        finally:
            if self.thread is not None:
                self.thread.shutdown()
                self.thread = None

    def _wait_until(self, left: int) -> None:
        while len(self.writing) > left:
            self.writing.popleft().result()


def _on_gpu(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


def _copied(value: object) -> object:
    """Returns a copy on the CPU, which training does not change; tree_map makes new containers around it."""
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
