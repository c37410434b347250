"""Lightning's Trainer with the settings and callbacks that make a run repeatable, interruptible and measured."""

import inspect
import itertools
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.memory import is_oom_error

from bagnet_lightning.config import plain
from bagnet_lightning.data.image_data import ImageData
from bagnet_lightning.errors import Interrupted, UserError
from bagnet_lightning.machine.device import check_device, chosen_precision, device_name, peak_memory_mib
from bagnet_lightning.machine.versions import commit, versions
from bagnet_lightning.models.of_config import check_network
from bagnet_lightning.training.acceleration import SWITCHES, NoProfiler, accelerate, acceleration_used, compile_seconds
from bagnet_lightning.training.batch_norm import SyncBatchNorm
from bagnet_lightning.training.checkpoints import CheckpointWriter, LastCheckpoint
from bagnet_lightning.training.divergence import StopOnDivergence
from bagnet_lightning.training.history import History
from bagnet_lightning.training.interrupts import StopOnSignal, ValidateOnContinuing
from bagnet_lightning.training.learner import Learner
from bagnet_lightning.training.progress import Progress
from bagnet_lightning.training.provenance import Provenance

log = logging.getLogger(__name__)
EXPECTED_WARNINGS = (
    "The `srun` command is available on your system but is not used",  # one process does not need it
    "Checkpoint directory .* exists and is not empty",  # it is the run's folder
    "You're resuming from a checkpoint that ended before the epoch ended",  # ShuffledBatches continues where it stopped
    "The '.*_dataloader' does not have many workers",  # gathering from the store does not need them
    "Grad strides do not match bucket view strides",  # strides of 1x1 kernels have no meaning
    "It is recommended to use `self.log.*sync_dist=True",  # what we log is of all ranks; of callbacks docs tell
    "The number of training batches .* is smaller than the logging interval",  # of steps, which are not logged
    ".*treespec, LeafSpec.* is deprecated",
    "You have overridden `.*transfer_batch_to_device` .* but have passed in a `LightningDataModule`",
)


def prepare(config: DictConfig, folder: Path) -> dict:
    """Prepares a run before anything of it is created. Returns the versions and the commit of its start.

    Raises UserError if the device, or the network, is not available.
    """
    check_device(config.trainer.accelerator)
    check_network(config.model)
    if "PYTHONFAULTHANDLER" in os.environ and hasattr(torch._C, "_set_print_stack_traces_on_fatal_signal"):
        torch._C._set_print_stack_traces_on_fatal_signal(True)  # which library crashed, beside Python's own frames
    for harmless in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", harmless)
    folder.mkdir(parents=True, exist_ok=True)
    for library in ("pytorch_lightning", "lightning_fabric"):  # their messages are in a run's line and result
        logging.getLogger(library).setLevel(logging.WARNING)
    seed_everything(config.seed)
    return {"versions": versions(), "commit": commit()}


def schedule(config: DictConfig) -> dict:
    """Returns Learner's arguments from the configuration groups optim and scheduler."""
    return {
        # _convert_: lists would be OmegaConf's, which a checkpoint may not hold
        "optimizer": instantiate(config.optim, _convert_="all"),
        "scheduler": instantiate({k: v for k, v in config.scheduler.items() if k != "interval"}, _convert_="all"),
        "interval": config.scheduler.get("interval", "epoch"),
    }


def train(
    config: DictConfig,
    folder: Path,
    module: Learner,
    data: ImageData,
    callbacks: Sequence[Callback],
    logger: Logger | None,
    description: str,
    code: dict,
) -> tuple[list[dict], dict]:
    """Fits `module` to `data` in `folder`, from last.ckpt if it exists; returns rows of metrics.csv and measurements.

    callbacks: added to those that every training has. description: one line on what is trained. code: from `prepare`.
    Raises UserError for what the user can fix.
    """
    last = folder / "last.ckpt"
    history = History(folder / "metrics.csv", module.logged, partial(compile_seconds, module, data))
    stopping = StopOnSignal(last)
    callbacks = [
        StopOnDivergence(last),  # first, since it waits for the device: the others then time finished work
        Progress(folder),
        *callbacks,
        history,  # after those that work at the end of a validation, whose time is not training's
        stopping,
        ValidateOnContinuing(),
        LastCheckpoint(last, **config.checkpoint),
        *getattr(logger, "callbacks", ()),
    ]
    trainer = make_trainer(config, callbacks, logger)
    rank_zero_only.rank = trainer.global_rank  # not what RANK says, which may be another program's
    device = trainer.strategy.root_device
    provenance = Provenance(**code, device=device_name(device), precision=trainer.precision)
    trainer.callbacks.append(provenance)
    accelerate(module, data, trainer, **{key: config.trainer[key] for key in SWITCHES})
    if trainer.precision == "64-true":
        module.double()  # Lightning does so, but only after it has loaded a checkpoint
    trainer.strategy.setup_environment()  # from here on ranks can communicate
    resumed = trainer.strategy.broadcast(last.exists())  # rank 0 decides
    if trainer.is_global_zero:
        print(f"{os.path.relpath(folder)}: {description}; {device_name(device)}, {trainer.precision}", flush=True)
        if resumed:
            log.info("continues from %s", last)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _fit(trainer, module, data, last if resumed else None, stopping)
    validated = itertools.islice(data.val_dataloader().order, *(trainer.num_val_batches or [None]))
    limited = trainer.num_training_batches < len(data.train_dataloader())
    images_per_epoch = trainer.num_training_batches * data.batch_size if limited else len(data.train_images)
    return history.rows, {
        **history.timing(images_per_epoch),
        **acceleration_used(module, data),
        "checkpoint_seconds": trainer.strategy.checkpoint_io.seconds,  # that this process has waited
        "train_images": images_per_epoch,
        "val_images": sum(map(len, validated)),
        "validated_on": "holdout" if data.holdout else "val",
        "classes": len(data.class_ids),
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        "receptive_field": getattr(module.network, "receptive_field", None),
        "peak_memory_mib": peak_memory_mib(device),
        "devices": trainer.num_devices,
        "num_nodes": trainer.num_nodes,
        **provenance.result(),
    }


def _fit(trainer: Trainer, module: Learner, data: ImageData, last: Path | None, stopping: StopOnSignal) -> None:
    """Trains, from the checkpoint `last` if there is one. Raises Interrupted after a signal, else UserError."""
    try:
        trainer.fit(module, data, ckpt_path=last)
    except RuntimeError as error:
        if not is_oom_error(error):
            raise
        raise _out_of_memory(module, data) from error
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"data.batch_size={data.batch_size}: batch norm has one value of each channel, and no variance; ask for 2 "
            "or more images a batch, or larger images"
        ) from error
    except UserError as error:
        if stopping.received is None:
            raise
        log.error("%s", error)  # such as an unwritable checkpoint: the signal ends a sweep all the same
        raise Interrupted(stopping.received) from error
    except SystemExit as end:  # newer Lightning raises this after Ctrl-C before the first step
        raise Interrupted(signal.SIGINT) from end
    if trainer.interrupted:  # older Lightning sets this instead
        raise Interrupted(signal.SIGINT)


def make_trainer(config: DictConfig, callbacks: Sequence[Callback] = (), logger: Logger | None = None) -> Trainer:
    """Returns the Trainer of a run, on its device. Raises UserError for an argument that Lightning does not know."""
    options = {"benchmark": not config.trainer.deterministic, "profiler": NoProfiler(), **plain(config.trainer)}
    options["precision"] = chosen_precision(config.trainer.precision, config.trainer.accelerator)
    check_arguments(config.trainer)
    options = {key: value for key, value in options.items() if key not in SWITCHES}
    plugins = [CheckpointWriter(), *([SyncBatchNorm()] if config.trainer.sync_batchnorm else [])]
    if config.trainer.devices == config.trainer.num_nodes == 1:
        plugins.append(LightningEnvironment())  # whatever SLURM has allocated; the launcher requeues jobs
    on_terminal = sys.stdout.isatty()
    return Trainer(
        **options,
        logger=logger or False,
        callbacks=[*callbacks, *([RichProgressBar()] if on_terminal else [])],
        enable_progress_bar=on_terminal,
        plugins=plugins,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        use_distributed_sampler=False,
    )


def check_arguments(trainer: DictConfig) -> None:
    """Raises UserError for a key of the configuration group trainer that Lightning's Trainer does not know."""
    if unknown := trainer.keys() - inspect.signature(Trainer.__init__).parameters.keys() - {*SWITCHES}:
        raise UserError(f"Lightning's Trainer takes no {min(unknown)}: leave trainer.{min(unknown)} out")


def _out_of_memory(module: Learner, data: ImageData) -> UserError:
    if not module.training:
        half = max(1, data.eval_batch_size // 2)
        return UserError(
            f"out of memory in validation at data.eval_batch_size={data.eval_batch_size}; ask for "
            f"data.eval_batch_size={half}, which gives the same numbers"
        )
    half, odd = divmod(data.batch_size, 2)
    twice = 2 * module.trainer.accumulate_grad_batches
    advice = f"ask for data.batch_size={max(1, half)}, which trains differently"
    if not odd:
        advice += (
            f", or for that with trainer.accumulate_grad_batches={twice}, which differs only in its batch statistics "
            f"(of {half} images) and in an epoch's last step"
        )
    return UserError(f"out of memory at data.batch_size={data.batch_size}; {advice}")
