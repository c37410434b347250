"""The exponential moving average of the weights, which is validated and kept as best.ckpt."""

from collections.abc import Iterable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from bagnet_lightning.training.checkpoints import gradients_pending


class WeightAverage(Callback):
    """Averages weights and batch norm statistics after every step: average <- decay * average + (1 - decay) * weights.

    Early steps have a smaller decay, (1 + step) / (10 + step), so that the average does not hold the initial weights
    for long (as in TensorFlow's ExponentialMovingAverage). From the start of a validation to the next step the averages
    replace the weights in place: code that reads the network or saves it alone then has them. A checkpoint to continue
    from always holds the weights, and the averages beside them.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.averages: dict[str, Tensor] = {}
        self.weights: list[Tensor] | None = None  # while the averages replace them

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # The tensors themselves, which keep their addresses: looking them up at every step takes too long.
        tensors = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
        self.tensors, source = [*tensors.values()], self.averages or tensors
        self.averages = {name: source[name].to(tensor.device, copy=True) for name, tensor in tensors.items()}

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args) -> None:
        self._put_back()

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if gradients_pending(trainer, batch_idx):
            return
        decay = min(self.decay, (1 + trainer.global_step) / (10 + trainer.global_step))
        averages = [*self.averages.values()]
        torch._foreach_mul_(averages, decay)
        torch._foreach_add_(averages, self.tensors, alpha=1 - decay)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.weights is None:
            self.weights = [tensor.clone() for tensor in self.tensors]
            self._write(self.averages.values())

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._put_back()

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict) -> None:
        if self.weights is not None:  # not called for best.ckpt, which has no callback state
            checkpoint["state_dict"].update(zip(self.averages, self.weights, strict=True))

    def state_dict(self) -> dict:
        return {"averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        self.averages = state["averages"]

    def _put_back(self) -> None:
        if self.weights is not None:
            self._write(self.weights)
            self.weights = None

    @torch.no_grad()
    def _write(self, values: Iterable[Tensor]) -> None:
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.copy_(value)  # in place, where a CUDA graph reads and writes
