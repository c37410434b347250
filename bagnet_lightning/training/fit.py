"""Training of a classifier: from a configuration to checkpoints and measurements."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.nn import functional as F

from bagnet_lightning.checkpoint import NETWORKS, adapt_head, read_if_ours, trainings
from bagnet_lightning.config import plain
from bagnet_lightning.data.image_data import IMAGENET_MEAN, ImageData
from bagnet_lightning.data.of_config import data_of
from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import check_additive
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.models.of_config import network_of
from bagnet_lightning.results import merit
from bagnet_lightning.training.best_predictions import BestPredictions
from bagnet_lightning.training.checkpoints import BestCheckpoint
from bagnet_lightning.training.classifier import Classifier
from bagnet_lightning.training.trainer import prepare, schedule, train
from bagnet_lightning.training.weight_average import WeightAverage


def fit(
    config: DictConfig, folder: Path, logger: Logger | None = None, added_callbacks: Sequence[Callback] = ()
) -> dict:
    """Trains the network of `config` in `folder`, from last.ckpt if it exists, and returns the measurements.

    added_callbacks: Lightning's, which may replace the classifier's `logits_and_loss`; last.ckpt holds their state.
    Raises UserError for what the user can fix.
    """
    code = prepare(config, folder)
    data = data_of(config.data)
    data.setup()
    data.check_classes()
    if config.monitor not in Classifier.logged and not config.callbacks:
        raise UserError(
            f"monitor={config.monitor}: choose val_accuracy, val_top5_accuracy, val_balanced_accuracy or val_loss, or "
            "add a callback that logs it"
        )
    if config.monitor == "val_top5_accuracy" and len(data.class_ids) <= 5:
        raise UserError(f"monitor=val_top5_accuracy: it is 1 for {len(data.class_ids)} classes; choose another")
    network, pretrained = network_of(config.model, len(data.class_ids)), config.model.get("pretrained")
    if isinstance(network, BagNet):
        network.check_size(data.store.side, data.store.side)
        if config.model._target_ not in NETWORKS:
            check_additive(network, data.store.side)
    start = read_if_ours(pretrained) if isinstance(pretrained, str) else None
    description = "; ".join([summary(network, data), *adapt(network, data, pretrained or False, start)])
    known = {"image_size": data.store.side, "train_digest": data.store.digests["train"]}
    about = {
        "config": plain(config) | known | {"seen": trainings(start[0]) if start else []},
        "classes": data.class_ids,
        "class_names": data.class_names,
        "mean": data.mean,
        "std": data.std,
    }
    loss = loss_settings(config, data.train_images.labels, len(data.class_ids))
    classifier = Classifier(network, **schedule(config), **loss, about=about)
    own_callbacks = instantiate([*config.callbacks.values()], _convert_="all")
    best_epoch = [BestPredictions(folder, config.monitor), BestCheckpoint(folder, config.monitor)]
    callbacks = [*best_epoch, *own_callbacks, *added_callbacks]
    if config.weight_average is not None:
        callbacks.insert(0, WeightAverage(config.weight_average))
    rows, measured = train(config, folder, classifier, data, callbacks, logger, description, code)
    best = max(rows, key=lambda row: merit(config.monitor, row[config.monitor]))
    own = [name for name in best if name.startswith("val_") and name not in Classifier.logged]  # of callbacks
    own += ["val_loss"] if config.monitor == "val_loss" else []
    return {
        **{name: best[name] for name in own},
        "best_val_accuracy": best["val_accuracy"],
        "best_epoch": best["epoch"],
        "final_val_accuracy": rows[-1]["val_accuracy"],
        "val_top5_accuracy": best["val_top5_accuracy"],
        "val_balanced_accuracy": best["val_balanced_accuracy"],
        **measured,
    }


def adapt(
    network: nn.Module, data: ImageData, pretrained: bool | str, start: tuple[dict, dict[str, Tensor]] | None
) -> list[str]:
    """Fits a network with `pretrained` weights to other classes, and returns what to tell of it.

    start: read_if_ours of the weights' file. Raises UserError if they were trained on images that `data` hold out.
    """
    notes, mean = [], IMAGENET_MEAN
    if isinstance(pretrained, str):
        if not start:
            return []
        about, weights = start
        data.check_unseen(about["config"], about["classes"])
        adapted = adapt_head(network, data.class_ids, about["classes"], weights)
        notes, mean = [adapted] if adapted else [], about["mean"]
    if pretrained and any(mean) != any(data.mean):
        normalized = "normalised" if any(mean) else "not normalised"
        notes.append(f"note: its weights were trained on pixels that were {normalized}, unlike data.normalize here")
    return notes


def loss_settings(config: DictConfig, labels: Tensor, classes: int) -> dict:
    """Returns Classifier's arguments from the keys that config.yaml has about the loss.

    labels: (N,), of the train images, of which some of the `classes` may have none.
    """
    if config.loss:
        if config.class_weights:
            raise UserError("class_weights is of cross-entropy, not of a loss of your own: leave one of them out")
        if "_target_" not in config.loss:
            raise UserError("loss: which function or class? add +loss._target_=MODULE.NAME")
        criterion = instantiate(config.loss, _partial_=True)  # a function with its settings, or the class of a module
        criterion = criterion() if isinstance(criterion.func, type) else criterion
    elif config.class_weights == "balanced":
        counts = labels.bincount(minlength=classes)
        weights = len(labels) / (counts.count_nonzero() * counts)  # as scikit-learn's
        weights[counts == 0] = 0
        criterion = nn.CrossEntropyLoss(weights, label_smoothing=config.label_smoothing)
    else:
        criterion = partial(F.cross_entropy, label_smoothing=config.label_smoothing)
    return {"criterion": criterion, "patch_loss": config.patch_loss}


def summary(network: nn.Module, data: ImageData) -> str:
    """Returns a line that describes the network and the data of the training."""
    height, width = data.store.splits["train"].images.shape[1:3]
    parts = [
        f"{sum(p.numel() for p in network.parameters()):,} parameters",
        f"{len(data.train_images):,} train and {len(data.val_images):,} validation images of {width} x {height} px",
        f"{len(data.class_ids)} classes",
    ]
    for kind, images in {"train": data.train_images, "validation": data.val_images}.items():
        if missing := sorted({*range(len(data.class_ids))} - {*images.labels.tolist()}):
            parts[-1] += f", {len(missing)} without a {kind} image ({data.class_names[missing[0]]}"
            parts[-1] += ", ...)" if missing[1:] else ")"
    if isinstance(network, BagNet):
        parts.insert(
            1,
            f"patches of {network.receptive_field} px every {network.stride} px that see "
            f"{network.coverage(height, width):.0%} of an image",
        )
    return "; ".join(parts)
