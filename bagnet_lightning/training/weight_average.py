"""The exponential moving average of the weights: what is validated, and kept as best.ckpt."""

from collections.abc import Iterable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from bagnet_lightning.training.checkpoints import gradients_pending


class WeightAverage(Callback):
    """After every optimizer step average <- decay * average + (1 - decay) * weights, batch norm's statistics included.

    Early steps have a smaller decay, (1 + step) / (10 + step), so that the average does not hold the initial weights
    for long (as in TensorFlow's ExponentialMovingAverage). From the start of a validation to the next step the averages
    stand in the weights' own places: what reads the network or saves it alone then has them. A checkpoint to go on from
    always holds the weights, and the averages beside them.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.averages: dict[str, Tensor] = {}
        self.weights: list[Tensor] | None = None  # while the averages stand in their places

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # The tensors themselves, which stay where they are: a step has no time to look for them.
        places = {name: place for name, place in module.state_dict().items() if place.is_floating_point()}
        self.places, kept = [*places.values()], self.averages or places
        self.averages = {name: kept[name].to(place.device, copy=True) for name, place in places.items()}

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
        torch._foreach_add_(averages, self.places, alpha=1 - decay)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.weights is None:
            self.weights = [place.clone() for place in self.places]
            self._write(self.averages.values())

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._put_back()

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict) -> None:
        if self.weights is not None:  # Lightning does not ask for best.ckpt, which has no state of callbacks
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
        for place, value in zip(self.places, values, strict=True):
            place.copy_(value)  # a CUDA graph reads and writes there
