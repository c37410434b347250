"""Training on discriminative patches, by expectation maximisation (Hou et al., CVPR 2016, section 3).

An image is a bag of patches that all carry its label; whether a patch shows the class is a hidden variable. The E step
takes the network's probability of the true class at every patch, smooths it over the image, and discards the patches
below a threshold; the M step trains the network as a classifier of the remaining patches. A round is an E step and an
epoch of the M step; both see the images with that epoch's augmentation, so the patches selected are those trained on.

Here the patches are a BagNet's at its native stride, so both steps take all patches of an image in one pass. The paper
averages two networks of different scales; here there is one, and it starts from trained weights, where the paper's
first M step takes every patch.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.config import plain
from bagnet_lightning.data.batches import Batch
from bagnet_lightning.data.image_data import ImageData
from bagnet_lightning.data.of_config import is_argument
from bagnet_lightning.errors import UserError
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.training.fit import fit

log = logging.getLogger(__name__)
TRAINING_KEYS = ("optim", "scheduler", "trainer", "label_smoothing", "checkpoint")  # in config.em
# Data settings, as in the run that EM starts from unless the command gives others.
INHERITED_KEYS = ("batch_size", "crop_padding", "flip", "normalize")


def fine_tuned(config: DictConfig, folder: Path) -> tuple[list[dict], float]:
    """Trains the network of config.features.checkpoint by config.em, on config.data, in `folder`.

    Continues from last.ckpt there if it exists, which holds in the end the network after the last round, whatever its
    validation accuracy. Returns ExpectationMaximization's `rounds`, and the seconds that they took in all processes
    that continued them. Raises UserError.
    """
    start = load_trained(config.features.checkpoint)
    data = start.config["data"]
    if missing := [key for key in INHERITED_KEYS if key not in data]:
        raise UserError(f"{config.features.checkpoint} does not tell its data.{missing[0]}: EM needs a run's best.ckpt")
    inherited = {key: data[key] for key in INHERITED_KEYS if not is_argument(f"data.{key}")}
    if any(isinstance(value, (dict, list)) for value in (*inherited.values(), *start.config["model"].values())):
        raise UserError(f"{config.features.checkpoint} is refused: a value of its model or data is more than a value")
    em = plain(config)["em"]
    if em["trainer"]["devices"] * em["trainer"]["num_nodes"] > 1:
        raise UserError("EM trains on one device; leave em.trainer.devices and em.trainer.num_nodes at 1")
    run_config = {
        **{key: em[key] for key in TRAINING_KEYS},
        **{"loss": {}, "class_weights": None, "patch_loss": 0.0},  # EM replaces the loss
        "weight_average": None,
        "monitor": "val_accuracy",
        "callbacks": {},
        "seed": config.seed,
        "data": {**plain(config)["data"], **inherited},
        "model": {**start.config["model"], "pretrained": str(config.features.checkpoint)},
    }
    callback = ExpectationMaximization(em["image_percentile"], em["class_percentile"], em["sigma"])
    result = fit(OmegaConf.create(run_config), folder, added_callbacks=[callback])
    return callback.rounds, result["train_seconds"]


class ExpectationMaximization(Callback):
    """Makes every epoch of a Classifier's training a round of EM; checkpoints hold its state.

    image_percentile, class_percentile: see `thresholds`. sigma: standard deviation of the smoothing, in patches.
    rounds: for every E step, and one after the last epoch, "log_likelihood", the mean over all train patches of the
    log-probability of their label, the network's for discriminative patches and that of guessing for others; and
    "discriminative", the share of discriminative patches.
    """

    def __init__(self, image_percentile: float, class_percentile: float, sigma: float):
        self.image_percentile, self.class_percentile, self.sigma = image_percentile, class_percentile, sigma
        self.rounds: list[dict[str, float]] = []
        self.epoch = -1  # of the latest E step
        self.discriminative = torch.zeros(0, 0, 0, dtype=torch.bool)  # (train images, h, w)

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not isinstance(module.network, BagNet):
            raise UserError(f"EM needs a network of patches, a BagNet, and not {type(module.network).__name__}")
        self.network, self.module = module.network, module
        module.logits_and_loss = self.logits_and_patch_loss

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.discriminative = self.discriminative.to(module.device)  # a checkpoint's, for the rest of its epoch

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.epoch != trainer.current_epoch:  # equal: a resumed epoch, which keeps the patches of its own E step
            self._e_step(trainer)
            self.epoch = trainer.current_epoch

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.chosen = self.discriminative[batch[2]]  # (B, h, w)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._e_step(trainer)

    def logits_and_patch_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the images' logits, (B, classes), and the M step's loss, over their discriminative patches."""
        logits = self.network.patch_logits(images)  # (B, h, w, classes)
        patch_labels = labels[:, None, None].expand(self.chosen.shape)
        return logits.mean((1, 2)), self.module.criterion(logits[self.chosen], patch_labels[self.chosen])

    def _e_step(self, trainer: Trainer) -> None:
        log_probabilities, labels = self._label_log_probabilities(trainer.datamodule)
        maps = smoothed(log_probabilities.exp(), self.sigma)
        limits = thresholds(maps.cpu().numpy(), labels.cpu().numpy(), self.image_percentile, self.class_percentile)
        self.discriminative = maps >= torch.from_numpy(limits).to(maps)[:, None, None]
        chance = torch.full_like(log_probabilities, 1 / self.network.fc.out_features).log()
        self.rounds.append(
            {
                "log_likelihood": log_probabilities.where(self.discriminative, chance).mean().item(),
                "discriminative": self.discriminative.float().mean().item(),
            }
        )
        log.info(
            "E step %d: %.1f %% of the patches discriminate, log-likelihood %.4f a patch",
            len(self.rounds),
            100 * self.rounds[-1]["discriminative"],
            self.rounds[-1]["log_likelihood"],
        )

    @torch.no_grad()
    def _label_log_probabilities(self, data: ImageData) -> tuple[Tensor, Tensor]:
        """Returns the log-probability of each train image's class at its patches, (N, h, w), and the classes, (N,)."""
        source, device = data.train_source, self.module.device
        order = torch.arange(len(source), device=source.labels.device)
        parts = []
        self.network.eval()
        for indices in order.split(data.eval_batch_size):
            batch = tuple(part.to(device) for part in source[indices])
            images, labels, _ = data.on_after_batch_transfer(batch, 0)  # as this epoch augments them
            logits = self.network.patch_logits(images.to(self.module.dtype)).float()
            patch_labels = labels[:, None, None, None].expand(*logits.shape[:3], 1)
            parts.append(logits.log_softmax(-1).gather(-1, patch_labels)[..., 0])
        self.network.train()
        return torch.cat(parts), source.labels

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "rounds": [*self.rounds], "discriminative": self.discriminative}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.rounds, self.discriminative = state["epoch"], state["rounds"], state["discriminative"]


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Smooths `maps` (N, h, w) by a Gaussian of `sigma` positions whose weights within the map sum to 1.

    sigma 0 leaves them unchanged.
    """
    if not sigma:
        return maps
    rows, columns = (_gaussian(size, sigma).to(maps) for size in maps.shape[1:])
    return rows @ maps @ columns.T


def thresholds(maps: np.ndarray, labels: np.ndarray, image_percentile: float, class_percentile: float) -> np.ndarray:
    """Computes each image's threshold: its patches at or above it are discriminative.

    maps: (N, h, w), smoothed probabilities of the images' own classes. labels: (N,). Returns (N,), in the dtype of the
    maps: the `image_percentile` of the image's patches or the `class_percentile` of all patches of its class, whichever
    is lower, so that at least the patches above the image's own percentile remain. Hou et al. 2016, section 3.2.
    """
    image_thresholds = np.percentile(maps.reshape(len(maps), -1), image_percentile, axis=1)
    class_thresholds = {label: np.percentile(maps[labels == label], class_percentile) for label in np.unique(labels)}
    return np.minimum(image_thresholds, [class_thresholds[label] for label in labels]).astype(maps.dtype)


def _gaussian(size: int, sigma: float) -> Tensor:
    """Returns (size, size): row i holds the weights of all positions in the smoothed value at i."""
    positions = torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-((positions[:, None] - positions) ** 2) / (2 * sigma**2))
    return weights / weights.sum(1, keepdim=True)
