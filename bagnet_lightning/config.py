"""The composed configuration: the digest of a run, its folder's name, the texts of --help. Imports no torch."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bagnet_lightning.files import sha256_of, walk
from bagnet_lightning.paths import CONF, weights_file

# Keys that change where files are, how fast a run is or how it is shown, but not what is trained.
NOT_IN_DIGEST = (
    *("sweep", "fresh", "dry_run", "logger", "checkpoint", "backbones", "paper", "cache", "workers"),
    *("data.root", "data.cache", "data.url", "data.eval_batch_size", "data.device_resident"),
    *("trainer.compile", "trainer.fused_norm", "trainer.cuda_graph", "trainer.devices", "trainer.num_nodes"),
)
# Keys that others make redundant: labels of systems, the path of a file whose sha256 is a key, and settings that data.*
# and model.* repeat.
_REDUNDANT = ("features.label", "encoding.label", "classifier.label", "features.checkpoint", "batches", "bagnet")
PARTS = ("features", "encoding", "classifier")  # of a system of local features
NAMING = ("model", "optim", "method", "related", "head", *PARTS)  # groups whose choice a run's line and columns show
CHOICES_FIRST = ("related", *PARTS, "head", "method", "recipe", "table1", "model", "optim", "scheduler", "data")


def plain(config: DictConfig) -> dict:
    """Converts a configuration to plain Python types, with interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True)


def without_hydra(config: DictConfig) -> DictConfig:
    """Returns the composed configuration without Hydra's own settings."""
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def composed(*overrides: str) -> DictConfig:
    """Returns the configuration of `train`; works within commands of Hydra too, where hydra.compose does not."""
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    config = without_hydra(loader.load_configuration("config", list(overrides), RunMode.RUN))
    OmegaConf.set_struct(config, True)
    return config


def leaves(config: dict, path: str = "", modules: bool = False) -> dict[str, object]:
    """Flattens to {"model.width": 0.25, ...} as texts show it; `modules`: to be compared, with the whole `_target_`."""
    found = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{path}{key}.", modules)
        elif isinstance(value, list):
            found[f"{path}{key}"] = repr(value) if modules else ", ".join(map(str, value))
        else:
            found[f"{path}{key}"] = str(value).rpartition(".")[2] if key == "_target_" and not modules else value
    return found


def within(key: str, groups: Iterable[str]) -> bool:
    """Whether a leaf is one of `groups`, or lies in one of them."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def kind(config: Mapping) -> str | None:
    """Returns the kind of a run: "related" (local features and a classifier), "pretraining", or None for a training."""
    if "features" in config:
        return "related"
    return "pretraining" if "method" in config else None


def training_settings(config: dict) -> dict[str, object]:
    """Returns the leaves of a plain configuration that determine what is trained: not where, how fast, or its name."""
    ignored = (*NOT_IN_DIGEST, *_REDUNDANT)
    all_leaves = leaves(config, modules=True)
    kept = {key: value for key, value in all_leaves.items() if not within(key.removeprefix("em."), ignored)}
    if isinstance(kept.get("model.pretrained"), str):
        del kept["model.pretrained"]  # pretrained_sha256 identifies the file
    trainer = config.get("trainer", {})
    if not trainer.get("sync_batchnorm", True):  # then batch statistics depend on the number of devices
        kept["trainer.devices"] = trainer.get("devices", 1) * trainer.get("num_nodes", 1)
    if kind(config) == "pretraining":  # validation draws distant tiles from its batches
        kept["data.eval_batch_size"] = config.get("data", {}).get("eval_batch_size")
    return kept


def experiment(config: dict) -> str:
    """Returns a text that is equal for plain configurations that repeat one training with other seeds or folds."""
    return repr(sorted((key, value) for key, value in _that_are_set(config).items() if not is_seed(key)))


def _that_are_set(config: dict) -> dict[str, object]:
    """Returns training_settings without those that are null, as new keys are, which runs of earlier versions lack."""
    return {key: value for key, value in training_settings(config).items() if value is not None}


def is_seed(key: str) -> bool:
    """Whether runs that differ in this key alone, a seed or the fold of a holdout, repeat one experiment."""
    return key == "data.fold" or key.rpartition(".")[2].endswith("seed")


def digest(config: DictConfig) -> str:
    """Returns twelve hex digits that are equal for two configurations exactly if they ask for the same training."""
    return hashlib.sha256(json.dumps(_that_are_set(plain(config)), sort_keys=True).encode()).hexdigest()[:12]


def weights_sha256(path: object) -> str | None:
    """Returns the SHA-256 of a file of weights as hex digits, or None if there is no such file.

    A configuration holds it besides the path: other weights at the same path are another system.
    """
    if not isinstance(path, str):
        return None
    try:
        file = weights_file(path)
        state = file.stat()
        return _sha256(file, state.st_mtime_ns, state.st_size)
    except OSError:
        return None


@cache  # a command asks several times
def _sha256(path: Path, changed_ns: int, size: int) -> str:
    return sha256_of(path)


def image_files(target: str, root: object) -> str | None:
    """Returns the SHA-256 of the names and sizes of the user's train and val images in `root`; None if it has none.

    A configuration holds it besides the path of the user's own images: other images at that path are other data.
    """
    if target.endswith(".TinyImageNet") or not isinstance(root, str) or not (Path(root) / "train").is_dir():
        return None
    splits = [path for path in (Path(root, "train"), Path(root, "val")) if path.is_dir()]
    folders = [folder for split in splits for folder in walk(split)]
    return _image_files(Path(root), tuple(os.path.join(folder, name) for folder, names in folders for name in names))


@cache  # a sweep asks many times, and there can be many files
def _image_files(root: Path, files: tuple[str, ...]) -> str:
    """Returns image_files of the folder `root`, which holds `files` in train and val."""
    from bagnet_lightning.data.images import image_suffixes  # imports Pillow, not needed here for other data

    digest, suffixes = hashlib.sha256(), image_suffixes()
    for path in sorted(map(Path, files)):
        name = path.relative_to(root).as_posix()
        if name.count("/") > 1 and name.lower().endswith(suffixes) and path.is_file():
            digest.update(os.fsencode(f"{name} {path.stat().st_size}\n"))
    return digest.hexdigest()


def folder(overrides: Sequence[str]) -> str:
    """Returns the name of a run's folder from its overrides, in any order: "bagnet17_adam_max_epochs-5".

    Safe in shells and in Hydra's own grammar, and at most 120 bytes long.
    """
    settings = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    kept = [key for key in sorted(settings) if key != "trainer" and not within(key.removeprefix("em."), NOT_IN_DIGEST)]
    settings = {key: settings[key] for key in kept}
    parts = [settings.pop(group) for group in CHOICES_FIRST if group in settings]
    parts += [f"{key.rpartition('.')[2]}-{value}" for key, value in settings.items()]
    name = re.sub(r"[^\w.+-]+", "-", "_".join(parts)).strip("-") or "defaults"
    if len(encoded := os.fsencode(name)) > 120:
        name = f"{encoded[:107].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:12]}"
    return name


def keys(name: str) -> str:
    """Returns the --help text of the keys of a command or choice: the lines of conf/NAME.yaml that define them."""
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    head, gap, body = text.partition("\n\n")  # title and defaults, then the keys; a choice has no gap
    lines = (body.partition("\nhydra:")[0] if gap else head).strip().splitlines()
    lines = [line for line in lines if not line.startswith(("# ", "defaults:", "_target_:"))]
    return "\n".join(lines).replace("$", "$$")  # Hydra fills in a string.Template


def groups(command: str) -> str:
    """Returns the --help text of a command's groups: a line for each in conf/COMMAND.yaml, its default choice first."""
    lines = []
    for entry in OmegaConf.load(CONF / f"{command}.yaml").defaults:
        for name, default in entry.items() if OmegaConf.is_dict(entry) else ():
            choices = {path.stem for path in (CONF / name).glob("*.yaml")}
            first = [f"{default} (default)"] if default in choices else []
            lines.append(f"{name}: {', '.join([*first, *sorted(choices - {default})])}")
    return "\n".join(lines)


for resolver in (folder, groups, image_files, keys, weights_sha256):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
