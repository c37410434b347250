"""Rules for the values of configuration keys. Imports no torch."""

import re
from collections.abc import Callable
from math import isfinite
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bagnet_lightning.errors import UserError
from bagnet_lightning.paths import weights_file

Rule = tuple[Callable[[Any], bool], str]


def number(low: float, high: float = float("inf"), *, above: bool = False) -> Rule:
    def test(value: Any) -> bool:
        return (
            type(value) in (int, float)
            and (low < value if above else low <= value)
            and value <= high
            and isfinite(value)
        )

    return test, f"a number {'above' if above else 'from'} {low:g}" + (f" to {high:g}" if high < float("inf") else "")


def whole(low: int, high: float = float("inf")) -> Rule:
    description = f"a whole number from {low}" + (f" to {high}" if high < float("inf") else "")
    return lambda value: type(value) is int and low <= value <= high, description


def one_of(*choices: str | None) -> Rule:
    *others, last = ("null" if choice is None else choice for choice in choices)
    return lambda value: value in choices, f"{', '.join(others)} or {last}"


def or_null(rule: Rule) -> Rule:
    return lambda value: value is None or rule[0](value), f"{rule[1]}, or null"


def or_own(rule: Rule) -> Rule:
    """Adds "own" (each image's own size) and null (the size of the training images) to the rule of a size."""
    return lambda value: value in (None, "own") or rule[0](value), f"{rule[1]} px, null or own"


def _keys(example: str) -> Rule:
    """Returns the rule of a key that has others below it, and no value itself."""
    return lambda value: isinstance(value, dict), f"set by keys below it, such as {example}"


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


PATH: Rule = (lambda value: isinstance(value, str) and value != "", "a path")
IMAGE_SIZE: Rule = whole(1, 4096)  # px
BOOL: Rule = (lambda value: isinstance(value, bool), "true or false")
_AUTO: Rule = (lambda value: isinstance(value, bool) or value == "auto", "auto, true or false")
_CLASSES: Rule = (
    lambda value: whole(1)[0](value) or (isinstance(value, list) and len(value) > 0),
    "a whole number from 1, or a list of classes",
)
_PRETRAINED: Rule = (
    lambda value: isinstance(value, bool) or (isinstance(value, str) and weights_file(value).is_file()),
    "true, false or the path of an existing file, or of an exported hub's folder",
)
_SHARE: Rule = (lambda value: number(0, 1)[0](value) and value < 1, "a share from 0 to below 1")
_SIZES: Rule = (
    lambda value: isinstance(value, list) and len(value) > 0 and all(map(number(1)[0], value)),
    "a list of numbers from 1",
)

RULES: dict[str, Rule] = {
    "batches": _keys("data.batch_size=50"),
    "bagnet": _keys("model.pad=1"),
    "loss": or_null(_keys("+loss._target_=MODULE.NAME")),
    "callbacks": _keys("+callbacks.NAME._target_=MODULE.CLASS"),
    "seed": whole(0, 2**32 - 1),
    "fresh": BOOL,
    "dry_run": BOOL,
    "sweep": (
        lambda value: re.fullmatch(r"[\w.+-]+", str(value)),
        "a folder's name of letters, digits and _.+- (it is data.name unless you say another)",
    ),
    "label_smoothing": number(0, 1),
    "class_weights": one_of("balanced", None),
    "patch_loss": number(0, 1),
    "monitor": (
        lambda value: isinstance(value, str) and re.fullmatch(r"val_\w+", value) is not None,
        "val_accuracy, val_top5_accuracy, val_balanced_accuracy, val_loss, or a val_... that a callback logs",
    ),
    "weight_average": or_null(_SHARE),
    "checkpoint.every_n_steps": or_null(whole(1)),
    "checkpoint.every_n_minutes": or_null(number(0, above=True)),
    "data.batch_size": whole(1),
    "data.eval_batch_size": whole(1),
    "data.classes": or_null(_CLASSES),
    "data.images_per_class": or_null(whole(1)),
    "data.holdout": _SHARE,
    "data.fold": whole(0),
    "data.group": or_null((_is_pattern, "a regular expression")),
    "data.crop_padding": whole(0),
    "data.flip": (
        lambda value: BOOL[0](value) or value in ("alternating", "dihedral"),
        "true, false, alternating or dihedral",
    ),
    "data.normalize": (lambda value: BOOL[0](value) or value == "imagenet", "true, false or imagenet"),
    "data.device_resident": _AUTO,
    "data.seed": whole(0, 2**32 - 1),
    "data.root": PATH,
    "data.cache": or_null(PATH),
    "data.image_size": whole(9),
    "data.train_images": whole(1),
    "data.val_images": whole(1),
    "model.pretrained": _PRETRAINED,
    "model.model_name": (
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"[\w.]+", value)),
        "a name in timm.list_models(); a folder or file of weights is model.pretrained=PATH",
    ),
    "model.width": number(0.25),
    "model.pad": whole(0),
    "model.stem_momentum": number(0, 1, above=True),
    "model.zero_init": BOOL,
    "model.stem": one_of("imagenet", "small"),
    "optim.lr": number(0, above=True),
    "optim.momentum": number(0, 1),
    "optim.nesterov": BOOL,
    "optim.weight_decay": number(0),
    "scheduler.interval": one_of("epoch", "step"),
    "scheduler.step_size": whole(1),
    "scheduler.gamma": number(0, 1, above=True),
    "scheduler.eta_min": number(0),
    "scheduler.max_lr": number(0, above=True),
    "scheduler.pct_start": (
        lambda value: isinstance(value, float) and 0 <= value < 1,
        "a share from 0.0 to below 1",
    ),
    "splits": one_of("train", "train+test"),
    "tiles.size": whole(9),
    "tiles.radius": whole(1),
    "tiles.colour": number(0, 1),
    "method.margin": number(0, above=True),
    "method.l2": number(0),
    "method.temperature": number(0, above=True),
    "method.projection": whole(1),
    "workers": or_null(whole(1)),
    "features.upsample": number(0.25),
    "features.contrast_threshold": number(0),
    "features.edge_threshold": number(0, above=True),
    "features.sigma": number(0.5, above=True),
    "features.step": whole(1),
    "features.bin_sizes": _SIZES,
    "features.keypoints": whole(1, 2**31 - 1),  # OpenCV's integers
    "features.fast_threshold": whole(1, 255),
    "features.output": one_of("features", "logits"),
    "fit_on": one_of("train", "holdout"),
    "em": or_null(_keys("em.rounds=2")),
    "em.rounds": whole(1),
    "em.image_percentile": number(0, 100),
    "em.class_percentile": number(0, 100),
    "em.sigma": number(0),
    "encoding.codebook.size": whole(2),
    "encoding.codebook.sample": whole(2),
    "encoding.gaussians": whole(1),
    "encoding.dimensions": whole(1),
    "encoding.sample": whole(2),
    "encoding.power": number(0, 1, above=True),
    "encoding.norm": one_of("l1", "l2", None),
    "classifier.loss": one_of("squared_hinge", "logistic"),
    "classifier.C": number(0, above=True),
    "classifier.kernel": one_of("chi2", "intersection", "jensen_shannon", None),
    "classifier.order": whole(1),
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": whole(1),
    "trainer.num_nodes": whole(1),
    "trainer.sync_batchnorm": BOOL,
    "trainer.max_epochs": whole(1),
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.gradient_clip_val": or_null(number(0, above=True)),
    "trainer.precision": one_of("auto", "32-true", "16-mixed", "bf16-mixed", "64-true"),
    "trainer.deterministic": BOOL,
    "trainer.compile": (lambda value: _AUTO[0](value) or value == "max-autotune", "auto, true, false or max-autotune"),
    "trainer.fused_norm": _AUTO,
    "trainer.cuda_graph": _AUTO,
}

_MISSING = object()


def _is_own(config: DictConfig, group: str) -> bool:
    """Whether a group's choice is a class of the user's, for whose arguments there are no rules; data have ours too."""
    if group in ("", "data"):
        return False
    target = OmegaConf.select(config, f"{group}._target_")
    return target is not None and str(target).partition(".")[0] not in ("bagnet_lightning", "timm", "torch")


def check(config: DictConfig, rules: dict[str, Rule] = RULES) -> None:
    """Raises UserError, naming the key and its permitted values, for the first value of a wrong type or range.

    The rules hold for the same keys within `em`, too, but not for the arguments of a class of the user's own.
    """
    if missing := OmegaConf.missing_keys(config):
        raise UserError(f"{min(missing)} is needed: add {min(missing)}=...")
    everywhere = {name: rule for key, rule in rules.items() for name in (key, f"em.{key}")}
    for key, (test, description) in everywhere.items():
        value = OmegaConf.select(config, key, default=_MISSING)
        if value is _MISSING or _is_own(config, key.rpartition(".")[0]):
            continue
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
        if not test(value):
            raise UserError(f"{key}={value}: {key} must be {description}")
