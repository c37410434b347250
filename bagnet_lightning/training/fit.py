"""One run: configuration in, trained checkpoints and measurements out."""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.memory import is_oom_error
from torch import nn

from bagnet_lightning.checkpoint import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from bagnet_lightning.config import plain
from bagnet_lightning.data.module import ImageData
from bagnet_lightning.errors import UserError
from bagnet_lightning.machine import check_device, chosen_precision, commit, device_name, peak_memory_mib, versions
from bagnet_lightning.training.acceleration import NoProfiler, accelerate, compile_seconds
from bagnet_lightning.training.batch_norm import SyncBatchNorm
from bagnet_lightning.training.best_predictions import BestPredictions
from bagnet_lightning.training.classifier import Classifier
from bagnet_lightning.training.divergence import StopOnDivergence
from bagnet_lightning.training.history import History
from bagnet_lightning.training.interrupts import StopOnSignal, ValidateOnContinuing
from bagnet_lightning.training.loggers import RunLogger
from bagnet_lightning.training.progress import Progress

EXPECTED_WARNINGS = (
    "The `srun` command is available on your system but is not used",  # one process needs none
    "Checkpoint directory .* exists and is not empty",  # it is the run's folder
    "You're resuming from a checkpoint that ended before the epoch ended",  # ShuffledBatches goes on where it was
    "The '.*_dataloader' does not have many workers",  # gathering from the store needs none
    "Grad strides do not match bucket view strides",  # those of 1x1 kernels mean nothing
    "It is recommended to use `self.log.*sync_dist=True",  # what is logged is of all ranks already
    ".*treespec, LeafSpec.* is deprecated",
    "You have overridden `.*transfer_batch_to_device` .* but have passed in a `LightningDataModule`",
)


def fit(
    config: DictConfig, folder: Path, logger: RunLogger | None = None, added_callbacks: Sequence[Callback] = ()
) -> dict:
    """Trains what `config` asks for in `folder`, from last.ckpt if it is there, and returns what was measured.

    added_callbacks: Lightning's, which may set the classifier's `objective`; their state travels in last.ckpt.
    Raises UserError for what the user can mend.
    """
    check_device(config.trainer.accelerator)
    for harmless in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", harmless)
    code = {"versions": versions(), "commit": commit()}  # before the checkout can change under a long run
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(config.seed)
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
        label_smoothing=config.label_smoothing,
        about=about,
    )
    last = folder / "last.ckpt"
    history = History(folder / "metrics.csv")
    callbacks = [
        StopOnDivergence(last),  # first, since it waits for the device: the others then see the time of what is done
        history,
        Progress(folder / "progress.json"),
        BestPredictions(folder / "predictions.npz"),
        StopOnSignal(last),
        ValidateOnContinuing(),
        BestCheckpoint(folder),
        LastCheckpoint(last, **config.checkpoint),
        *added_callbacks,
    ]
    if sys.stdout.isatty():
        callbacks.append(RichProgressBar())
    if logger:
        callbacks.extend(logger.callbacks)
    options = {"benchmark": not config.trainer.deterministic, "profiler": NoProfiler(), **config.trainer}
    options["precision"] = chosen_precision(config.trainer.precision, config.trainer.accelerator)
    compile, graph = options.pop("compile"), options.pop("cuda_graph")
    plugins = [AtomicCheckpointIO(), *([SyncBatchNorm()] if config.trainer.sync_batchnorm else [])]
    if config.trainer.devices == config.trainer.num_nodes == 1:
        plugins.append(LightningEnvironment())  # whatever SLURM has allocated; and requeueing is the launcher's
    trainer = Trainer(
        **options,
        logger=logger or False,
        callbacks=callbacks,
        enable_progress_bar=sys.stdout.isatty(),
        plugins=plugins,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        use_distributed_sampler=False,
    )
    accelerate(classifier, data, trainer, compile, graph)
    if trainer.precision == "64-true":
        classifier.double()  # Lightning does so, but only after it has loaded a checkpoint
    trainer.strategy.setup_environment()  # from here on several ranks know and hear each other
    begun = trainer.strategy.broadcast(last.exists())  # rank 0 has the say
    if trainer.is_global_zero:
        print(f"{os.path.relpath(folder)}: {summary(network, data, trainer)}", flush=True)
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        trainer.fit(classifier, data, ckpt_path=last if begun else None)
    except RuntimeError as error:
        if not is_oom_error(error):
            raise
        if not classifier.training:
            half = max(1, data.eval_batch_size // 2)
            raise UserError(
                f"out of memory in validation at data.eval_batch_size={data.eval_batch_size}; ask for "
                f"data.eval_batch_size={half}, which gives the same numbers"
            ) from error
        half = max(1, data.batch_size // 2)
        raise UserError(
            f"out of memory at data.batch_size={data.batch_size}; ask for data.batch_size={half}, which trains "
            f"differently, or for that with trainer.accumulate_grad_batches=2, which differs only in its batch "
            f"statistics (of {half} images)"
        ) from error
    return {
        **history.summary(len(data.train_images), compile_seconds(classifier, data)),
        "train_images": len(data.train_images),
        "val_images": len(data.val_images),
        "validated_on": "holdout" if data.holdout else "val",
        "classes": len(data.class_ids),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "receptive_field": getattr(network, "receptive_field", None),
        "peak_memory_mib": peak_memory_mib(trainer.strategy.root_device),
        "device": device_name(trainer.strategy.root_device),
        "devices": trainer.num_devices,
        "num_nodes": trainer.num_nodes,
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
