"""The composed configuration: what values may be, what identifies a run, its folder's name. Imports no torch."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bagnet_lightning.errors import UserError
from bagnet_lightning.paths import CONF

Rule = tuple[Callable[[Any], bool], str]


def _number(low: float, high: float = float("inf"), *, above: bool = False) -> Rule:
    words = f"a number {'above' if above else 'from'} {low:g}" + (f" to {high:g}" if high < float("inf") else "")

    def test(value: Any) -> bool:
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and (low < value if above else low <= value)
            and value <= high
        )

    return test, words


def _whole(low: int) -> Rule:
    return (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low,
        f"a whole number from {low}",
    )


def _or_null(rule: Rule) -> Rule:
    return lambda value: value is None or rule[0](value), f"{rule[1]}, or null"


_BOOL: Rule = (lambda value: isinstance(value, bool), "true or false")
_AUTO: Rule = (lambda value: isinstance(value, bool) or value == "auto", "auto, true or false")
_CLASSES: Rule = (
    lambda value: _whole(1)[0](value) or (isinstance(value, list) and len(value) > 0),
    "a whole number from 1, or a list of classes",
)
_PRETRAINED: Rule = (
    lambda value: isinstance(value, bool) or (isinstance(value, str) and Path(value).is_file()),
    "true, false or the path of an existing file",
)
_KERNELS = ("chi2", "intersection", "jensen_shannon", None)
_SHARE: Rule = (lambda value: _number(0, 1)[0](value) and value < 1, "a share from 0 to below 1")
_SIZES: Rule = (
    lambda value: isinstance(value, list) and len(value) > 0 and all(map(_number(1)[0], value)),
    "a list of numbers from 1",
)
_PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed", "64-true")

RULES: dict[str, Rule] = {
    "seed": _whole(0),
    "fresh": _BOOL,
    "dry_run": _BOOL,
    "sweep": (lambda value: isinstance(value, str) and re.fullmatch(r"[\w.+-]+", value), "a folder's name"),
    "label_smoothing": _number(0, 1),
    "patch_loss": _number(0, 1),
    "weight_average": _or_null(_SHARE),
    "checkpoint.every_n_steps": _or_null(_whole(1)),
    "checkpoint.every_n_minutes": _or_null(_number(0, above=True)),
    "data.batch_size": _whole(1),
    "data.eval_batch_size": _whole(1),
    "data.classes": _or_null(_CLASSES),
    "data.images_per_class": _or_null(_whole(1)),
    "data.holdout": _SHARE,
    "data.crop_padding": _whole(0),
    "data.flip": (
        lambda value: isinstance(value, bool) or value == "alternating",
        "true, false or alternating",
    ),
    "data.normalize": _BOOL,
    "data.device_resident": _AUTO,
    "data.image_size": _whole(9),
    "data.train_images": _whole(1),
    "data.val_images": _whole(1),
    "model.pretrained": _PRETRAINED,
    "model.width": _number(0.25),
    "model.pad": _whole(0),
    "model.stem_momentum": _number(0, 1, above=True),
    "model.zero_init": _BOOL,
    "model.stem": (lambda value: value in ("imagenet", "small"), "imagenet or small"),
    "optim.lr": _number(0, above=True),
    "optim.momentum": _number(0, 1),
    "optim.nesterov": _BOOL,
    "optim.weight_decay": _number(0),
    "scheduler.interval": (lambda value: value in ("epoch", "step"), "epoch or step"),
    "scheduler.step_size": _whole(1),
    "scheduler.gamma": _number(0, 1, above=True),
    "scheduler.eta_min": _number(0),
    "scheduler.pct_start": _number(0, 1),
    "images": (lambda value: value in ("train", "train+test"), "train or train+test"),
    "tiles.size": _whole(9),
    "tiles.radius": _whole(1),
    "tiles.colour": _number(0, 1),
    "method.margin": _number(0, above=True),
    "method.l2": _number(0),
    "method.temperature": _number(0, above=True),
    "method.projection": _whole(1),
    "workers": _or_null(_whole(1)),
    "features.upsample": _number(0.25),
    "features.contrast_threshold": _number(0),
    "features.edge_threshold": _number(0, above=True),
    "features.sigma": _number(0.5, above=True),
    "features.step": _whole(1),
    "features.bin_sizes": _SIZES,
    "features.keypoints": _whole(1),
    "features.fast_threshold": _whole(1),
    "features.output": (lambda value: value in ("features", "logits"), "features or logits"),
    "fit_on": (lambda value: value in ("train", "holdout"), "train or holdout"),
    "em.rounds": _whole(1),
    "em.image_percentile": _number(0, 100),
    "em.class_percentile": _number(0, 100),
    "em.sigma": _number(0),
    "em.optim.lr": _number(0, above=True),
    "encoding.codebook.size": _whole(2),
    "encoding.codebook.sample": _whole(2),
    "encoding.gaussians": _whole(1),
    "encoding.dimensions": _whole(1),
    "encoding.sample": _whole(2),
    "encoding.power": _number(0, 1, above=True),
    "encoding.norm": (lambda value: value in ("l1", "l2", None), "l1, l2 or null"),
    "classifier.loss": (lambda value: value in ("squared_hinge", "logistic"), "squared_hinge or logistic"),
    "classifier.C": _number(0, above=True),
    "classifier.kernel": (lambda value: value in _KERNELS, f"{', '.join(map(str, _KERNELS[:-1]))} or null"),
    "classifier.order": _whole(1),
    "trainer.devices": _whole(1),
    "trainer.num_nodes": _whole(1),
    "trainer.sync_batchnorm": _BOOL,
    "trainer.max_epochs": _whole(1),
    "trainer.accumulate_grad_batches": _whole(1),
    "trainer.gradient_clip_val": _or_null(_number(0, above=True)),
    "trainer.precision": (lambda value: value in _PRECISIONS, f"one of {', '.join(_PRECISIONS)}"),
    "trainer.deterministic": _BOOL,
    "trainer.compile": (
        lambda value: _AUTO[0](value) or value == "max-autotune",
        f"{_AUTO[1].replace(' or', ',')} or max-autotune",
    ),
    "trainer.cuda_graph": _AUTO,
}

# What changes where things are or how they are shown, but not what is trained.
NOT_IN_DIGEST = (
    "sweep",
    "fresh",
    "dry_run",
    "logger",
    "checkpoint",
    "backbones",
    "paper",
    "data.root",
    "data.cache",
    "data.url",
)
# Nor do these: left out of the digest, where those above are null.
HOW_FAST = (
    "data.device_resident",
    "trainer.compile",
    "trainer.cuda_graph",
    "trainer.devices",
    "trainer.num_nodes",
    "cache",
    "workers",
)
# Likewise: names, of systems and of files. What the files hold is in the digest, by its sha256.
NAMES = ("features.label", "encoding.label", "classifier.label", "features.checkpoint")
NOT_IN_FOLDER = ("trainer", *NOT_IN_DIGEST, *HOW_FAST)  # of the trainer the choice only: trainer.max_epochs is in it
CHOICES_FIRST = (
    *("related", "features", "encoding", "classifier", "head", "method"),
    *("recipe", "table1", "model", "optim", "scheduler", "data"),
)

_MISSING = object()


def check(config: DictConfig) -> None:
    """Raises UserError, naming the key and what it may be, for the first value of a wrong type or range."""
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{key} is needed: add {key}=...")
    for key, (test, words) in RULES.items():
        value = OmegaConf.select(config, key, default=_MISSING)
        if value is _MISSING:
            continue
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
        if not test(value):
            raise UserError(f"{key}={value}: {key} must be {words}")


def plain(config: DictConfig) -> dict:
    """The configuration as plain Python types, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True)


def digest(config: DictConfig) -> str:
    """Twelve hex digits that are equal for two configurations exactly if they ask for the same training."""
    asked = OmegaConf.create(plain(config))
    for key in NOT_IN_DIGEST:
        OmegaConf.update(asked, key, None, force_add=True)
    for key in (*HOW_FAST, *NAMES):
        *groups, name = key.split(".")
        holder = asked
        for group in groups:
            holder = holder.get(group, {})
        holder.pop(name, None)
    if isinstance(config.get("model", {}).get("pretrained"), str):
        asked.model.pretrained = None  # pretrained_sha256 says which file
    trainer = config.get("trainer", {})
    if not trainer.get("sync_batchnorm", True):  # then the statistics are of a device's part of the batch
        asked.trainer.devices = trainer.get("devices", 1) * trainer.get("num_nodes", 1)
    return hashlib.sha256(json.dumps(plain(asked), sort_keys=True).encode()).hexdigest()[:12]


def sha256(path: object) -> str | None:
    """Of a file, as hex digits, or of model.safetensors in a folder (checkpoint.py); None where there is no such file.

    What a configuration says of weights besides their path: others at the same path are another system.
    """
    if not isinstance(path, str):
        return None
    file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def data_of_run(run: dict, asked: DictConfig | None) -> DictConfig:
    """The data of a finished run's config, but for what is `asked`: another source, or some keys of the same one."""
    if asked is not None and "_target_" in asked:
        return asked
    if "_target_" not in run["data"]:  # an exported network says nothing of places
        raise UserError("the checkpoint does not say where its data are; add data=tiny_imagenet, or another source")
    data = OmegaConf.create(run["data"])
    OmegaConf.set_struct(data, True)
    return OmegaConf.merge(data, asked or {})


def folder(overrides: Sequence[str]) -> str:
    """A run folder's name from the overrides that ask for it, in whatever order: "bagnet17_adam_max_epochs-5".

    Safe in shells and in Hydra's own grammar, and at most 120 characters long.
    """
    asked = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    asked = {key: value for key, value in sorted(asked.items()) if not _left_out(key)}
    parts = [asked.pop(group) for group in CHOICES_FIRST if group in asked]
    parts += [f"{key.rpartition('.')[2]}-{value}" for key, value in asked.items()]
    name = re.sub(r"[^\w.+-]+", "-", "_".join(parts)).strip("-") or "defaults"
    if len(name) > 120:
        name = f"{name[:107]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def _left_out(key: str) -> bool:
    group = key.partition(".")[0]
    return key in NOT_IN_FOLDER or (group in NOT_IN_FOLDER and group != "trainer")


def keys(name: str) -> str:
    """What --help says of the keys of a command or a choice: the lines of conf/NAME.yaml that hold and explain them."""
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    head, gap, body = text.partition("\n\n")  # a command's title and defaults, and its keys; a choice has no gap
    lines = (body.partition("\nhydra:")[0] if gap else head).strip().splitlines()
    lines = [line for line in lines if not line.startswith(("# ", "defaults:", "_target_:"))]
    return "\n".join(lines).replace("$", "$$")  # Hydra fills in a string.Template


def groups(command: str) -> str:
    """What --help says of the groups of a command: a line for each that conf/COMMAND.yaml names, with its choices."""
    defaults = OmegaConf.load(CONF / f"{command}.yaml").defaults
    named = [name for entry in defaults if OmegaConf.is_dict(entry) for name in entry if "override " not in name]
    return "\n".join(
        f"{name}: {', '.join(sorted(path.stem for path in (CONF / name).glob('*.yaml')))}" for name in named
    )


for resolver in (folder, groups, keys, sha256):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
