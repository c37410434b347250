"""One run: configuration in, trained checkpoints and measurements out."""

import os
import sys
import warnings
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from torch import nn

from bagnet_lightning.checkpoint import AtomicCheckpointIO
from bagnet_lightning.classifier import Classifier
from bagnet_lightning.config import plain
from bagnet_lightning.data.module import ImageData
from bagnet_lightning.divergence import StopOnDivergence
from bagnet_lightning.errors import UserError
from bagnet_lightning.history import History
from bagnet_lightning.interrupts import StopOnSignal
from bagnet_lightning.machine import chosen_precision, commit, device_name, peak_memory_mib, versions

EXPECTED_WARNINGS = (
    "Checkpoint directory .* exists and is not empty",  # it is the run's folder
    "You're resuming from a checkpoint that ended before the epoch ended",  # ShuffledBatches goes on where it was
    "The '.*_dataloader' does not have many workers",  # gathering from the store needs none
    ".*treespec, LeafSpec.* is deprecated",
    "You have overridden `.*transfer_batch_to_device` .* but have passed in a `LightningDataModule`",
)


def fit(config: DictConfig, folder: Path, run_id: str) -> dict:
    """Trains what `config` asks for in `folder`, from last.ckpt if it is there, and returns what was measured.

    run_id: names the run to a logger that can continue one. Raises UserError for what the user can mend.
    """
    for harmless in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", harmless)
    code = {"versions": versions(), "commit": commit()}  # before the checkout can change under a long run
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(config.seed, verbose=False)
    # Partial, so that a UserError of theirs comes as it is and not wrapped in one of Hydra's.
    data: ImageData = instantiate(config.data, _partial_=True, _convert_="all")()
    data.setup()
    network = instantiate(config.model, _partial_=True)(num_classes=len(data.class_ids))
    about = {
        "config": plain(config),
        "classes": data.class_ids,
        "class_names": data.class_names,
        "mean": data.mean,
        "std": data.std,
    }
    classifier = Classifier(
        network,
        optimizer=instantiate(config.optim),
        scheduler=instantiate({key: value for key, value in config.scheduler.items() if key != "interval"}),
        interval=config.scheduler.interval,
        num_classes=len(data.class_ids),
        label_smoothing=config.label_smoothing,
        about=about,
    )
    last, steps = folder / "last.ckpt", config.checkpoint.every_n_steps
    history = History(folder / "metrics.csv")
    callbacks = [
        history,
        StopOnDivergence(last),
        StopOnSignal(last),
        ModelCheckpoint(folder, "best", monitor="val_accuracy", mode="max", enable_version_counter=False),
        ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True),
    ]
    if steps:
        callbacks.append(ModelCheckpoint(folder, "last", enable_version_counter=False, every_n_train_steps=steps))
    if sys.stdout.isatty():
        callbacks.append(RichProgressBar())
    logger = config.logger and instantiate(config.logger, _partial_=True)(
        folder=folder, composed=plain(config), run_id=run_id
    )
    trainer = Trainer(
        **{**config.trainer, "precision": chosen_precision(config.trainer.precision, config.trainer.accelerator)},
        logger=logger or False,
        callbacks=callbacks,
        enable_progress_bar=sys.stdout.isatty(),
        plugins=[AtomicCheckpointIO()],
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        use_distributed_sampler=False,
    )
    print(f"{os.path.relpath(folder)}: {summary(network, data, trainer)}", flush=True)
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        trainer.fit(classifier, data, ckpt_path=last if last.exists() else None, weights_only=True)
    except torch.OutOfMemoryError as error:
        half = max(1, data.batch_size // 2)
        raise UserError(
            f"out of memory at data.batch_size={data.batch_size}; ask for data.batch_size={half}, which trains "
            f"differently, or for that with trainer.accumulate_grad_batches=2, which differs only in its batch "
            f"statistics (of {half} images)"
        ) from error
    return {
        **history.summary(len(data.train_images)),
        "train_images": len(data.train_images),
        "val_images": len(data.val_images),
        "validated_on": "holdout" if data.holdout else "val",
        "classes": len(data.class_ids),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "receptive_field": getattr(network, "receptive_field", None),
        "peak_memory_mib": peak_memory_mib(trainer.strategy.root_device),
        "device": device_name(trainer.strategy.root_device),
        "precision": trainer.precision,
        **code,
    }


def summary(network: nn.Module, data: ImageData, trainer: Trainer) -> str:
    """What is about to be trained, on what, in one line."""
    height, width = data.store.splits["train"].images.shape[1:3]
    parts = [
        f"{sum(p.numel() for p in network.parameters()):,} parameters",
        f"{len(data.train_images):,} train and {len(data.val_images):,} validation images of {width} x {height} px",
        f"{len(data.class_ids)} classes",
        f"{device_name(trainer.strategy.root_device)}, {trainer.precision}",
    ]
    if hasattr(network, "receptive_field"):
        parts.insert(
            1,
            f"patches of {network.receptive_field} px every {network.stride} px that see "
            f"{network.coverage(height, width):.0%} of an image",
        )
    return "; ".join(parts)
