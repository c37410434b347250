"""Logging to Weights & Biases: curves by epoch, evidence for a few images; at the end the result and confusions."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import torch
import wandb
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from bagnet_lightning.data.augment import normalize
from bagnet_lightning.errors import in_one_line
from bagnet_lightning.evidence import dense_evidence, patch_evidence
from bagnet_lightning.files import write_text
from bagnet_lightning.machine.wandb_account import wandb_mode
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.predictions import Predictions, most_confused, read_predictions
from bagnet_lightning.presentation.overlays import overlay, scale_end
from bagnet_lightning.training.loggers import RunLogger

log = logging.getLogger(__name__)
SHOWN = 6  # validation images whose evidence is logged, the same ones in every run on the same data
ZOOM = 4  # screen pixels per image pixel
CONFUSIONS = 50  # most confused pairs of classes in the table


class WandbRun(RunLogger):
    """A W&B run, grouped by sweep and named by its folder, which keeps its id: the same if continued, new if restarted.

    project: of W&B. evidence_every_n_epochs: how often a BagNet's evidence for a few validation images is logged, and
    after the last epoch; null: never. checkpoint: whether best.ckpt is uploaded as an artifact.
    Online if a key is configured (WANDB_API_KEY or `wandb login`) unless WANDB_MODE says otherwise; offline, under
    `folder`, without a key or if W&B cannot be reached; it never prompts. Only rank 0 logs.
    """

    def __init__(
        self,
        project: str,
        evidence_every_n_epochs: int | None,
        checkpoint: bool,
        folder: Path,
        config: dict,
        requested: dict,
    ):
        super().__init__()
        self.folder, self.checkpoint, self.id_file = folder, checkpoint, folder / "wandb_id"
        self.settings = {
            "project": project,
            "name": folder.name,
            "group": config["sweep"],
            "job_type": "train",
            "tags": tags(requested),
            "id": self.id_file.read_text() if self.id_file.exists() else token_hex(8),
            "resume": "allow",
            "config": {**config, "choices": choices(requested)},
            "dir": folder,
            "mode": wandb_mode(),
            "settings": wandb.Settings(quiet=True),  # the sweep has its own lines and table
        }
        self.run: wandb.Run | None = None
        if evidence_every_n_epochs:
            self.callbacks = (WandbEvidence(self.log, evidence_every_n_epochs),)

    @property
    def name(self) -> str:
        return self.settings["project"]

    @property
    def version(self) -> str:
        return self.settings["id"]

    def log_hyperparams(self, *args, **kwargs) -> None:
        """Does nothing: the whole configuration is logged from the start."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Logs Lightning's values. Those of its callbacks have no epoch, and are drawn at the latest one by W&B."""
        epoch = {"epoch": metrics["epoch"] + 1} if "epoch" in metrics else {}  # counted as in metrics.csv
        self.log({**metrics, **epoch, "step": step})

    @rank_zero_only
    def log_graph(self, *args, **kwargs) -> None:
        """Starts the W&B run: Lightning calls this first, when training starts."""
        write_text(self.id_file, self.settings["id"])
        try:
            with _started_again_on_error():
                self.run = wandb.init(**self.settings)
        except (wandb.errors.Error, OSError) as error:
            print(f"W&B cannot be reached: the run is kept offline ({error})", file=sys.stderr)
            self.run = wandb.init(**{**self.settings, "mode": "offline"})
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")

    @rank_zero_only
    def log(self, values: dict[str, Any]) -> None:
        """Logs values by name; one of them is "epoch", the x axis of all. Training goes on without W&B if it fails."""
        if self.run is None:
            return
        try:
            with _started_again_on_error():
                self.run.log(values)
        except Exception as error:  # whatever W&B raises
            log.warning("W&B has failed, and the run goes on without it: %s", in_one_line(error))
            self.run = None

    @rank_zero_only
    def close(self, result: dict) -> None:
        if self.run is None:  # the run failed before its training started, or W&B did
            return
        run, self.run = self.run, None
        try:
            run.summary.update(result)
            best = self.folder / "best.ckpt"
            if self.checkpoint and best.exists() and result["status"] == "finished":
                artifact = wandb.Artifact(f"{result['model']}-{result['config_digest']}", "model", metadata=result)
                artifact.add_file(str(best), policy="immutable")
                run.log_artifact(artifact, aliases=["best", self.settings["group"]])
            if predictions := read_predictions(self.folder):
                run.log(confusions(predictions))
        finally:  # otherwise the next run of a sweep would log to this one
            with _started_again_on_error():
                run.finish(exit_code=0 if result["status"] == "finished" else 1)


class WandbEvidence(Callback):
    """Logs a BagNet's evidence for the same few validation images every `every` epochs and after the last."""

    def __init__(self, write: Callable[[dict], None], every: int):
        self.write, self.every = write, every

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        network, data = module.network, trainer.datamodule
        if not isinstance(network, BagNet) or not isinstance(network.fc, nn.Linear):  # a pretraining has no such layer
            return
        if not trainer.is_global_zero or (epoch % self.every and epoch != trainer.max_epochs):
            return
        count = min(SHOWN, len(data.val_images))
        indices = torch.arange(count) * len(data.val_images) // count
        pixels, labels, _ = data.val_images[indices]
        images = normalize(pixels.to(module.device), data.mean, data.std).to(module.dtype)
        pictures = []
        for number, label in enumerate(labels.tolist()):
            image = images[number : number + 1]
            first, second = network(image)[0].topk(2).indices.tolist()
            classes = [first, second if first == label else label]
            end = scale_end([patch_evidence(network, image, classes).cpu()])  # as in drawing.exact_limit
            strip = _strip(pixels[number].numpy(), dense_evidence(network, image, classes)[0].cpu(), end)
            names = [data.class_names[index] for index in classes]
            caption = f"predicted: {names[0]} | {'next' if first == label else 'true'}: {names[1]}"
            pictures.append(wandb.Image(strip, caption=caption))
        self.write({"evidence": pictures, "epoch": epoch})


@contextmanager
def _started_again_on_error() -> Iterator[None]:
    """Has W&B start its process again after an error, for the next run: all runs of a sweep share it."""
    try:
        yield
    except Exception:  # a dead process is a ConnectionResetError, a HandleAbandonedError, ...
        with suppress(Exception):
            wandb.teardown()
        raise


def choices(requested: dict) -> dict[str, str]:
    """Returns the values that runs are grouped by on a dashboard."""
    return {
        "model": requested["model"],
        "optimizer": requested["optimizer"],
        "cell": f"{requested['model']} {requested['optimizer']}",
    }


def tags(requested: dict) -> list[str]:
    """Returns the row of Table 1, model, optimizer, and "pretrained" for a pretrained network."""
    row = [f"row {requested['row']}"] if requested["row"] else []
    return [*row, requested["model"], requested["optimizer"], *(["pretrained"] if requested["pretrained"] else [])]


def confusions(predictions: Predictions) -> dict[str, Any]:
    """Returns the confusion matrix as a picture, the most confused pairs and per-class accuracies as tables."""
    matrix, names = predictions.confusion(), predictions.class_names
    pairs = [
        [names[true], names[predicted], int(matrix[true, predicted])]
        for true, predicted in most_confused(matrix, CONFUSIONS)
    ]
    per_class = [
        [name, int(row.sum()), int(row[index]), row[index] / row.sum()]
        for index, (name, row) in enumerate(zip(names, matrix, strict=True))
        if row.sum()
    ]
    return {
        "confusion_matrix": wandb.Image(_matrix_picture(matrix)),
        "confused": wandb.Table(["true class", "taken for", "images"], pairs),
        "per_class": wandb.Table(["class", "images", "correct", "accuracy"], per_class),
    }


def _strip(pixels: np.ndarray, maps: torch.Tensor, end: float) -> np.ndarray:
    """Joins an image (H, W, 3) and its overlays with each of its maps (H, W, n), on one scale, and enlarges them."""
    parts = [pixels, *(overlay(pixels, evidence.numpy(), end) for evidence in maps.unbind(-1))]
    return np.concatenate(parts, 1).repeat(ZOOM, 0).repeat(ZOOM, 1)


def _matrix_picture(matrix: np.ndarray) -> Figure:
    figure = Figure(figsize=(6, 5), dpi=130, layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the true class's images")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure
