"""The composed configuration: what identifies a run, its folder's name, what --help says. Imports no torch."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from bagnet_lightning.files import sha256_of
from bagnet_lightning.paths import CONF, weights_file

# What changes where things are, how fast they go or how they are shown, but not what is trained.
NOT_IN_DIGEST = (
    *("sweep", "fresh", "dry_run", "logger", "checkpoint", "backbones", "paper", "cache", "workers"),
    *("data.root", "data.cache", "data.url", "data.eval_batch_size", "data.device_resident"),
    *("trainer.compile", "trainer.fused_norm", "trainer.cuda_graph", "trainer.devices", "trainer.num_nodes"),
)
# Likewise names, of systems and of files (what the files hold is asked for, by its sha256), and what data.* and model.*
# repeat.
_SAID_ELSEWHERE = ("features.label", "encoding.label", "classifier.label", "features.checkpoint", "batches", "bagnet")
PARTS = ("features", "encoding", "classifier")  # of a system of local features
NAMING = ("model", "optim", "method", "related", "head", *PARTS)  # groups whose choice a run's line and columns name
CHOICES_FIRST = ("related", *PARTS, "head", "method", "recipe", "table1", "model", "optim", "scheduler", "data")


def plain(config: DictConfig) -> dict:
    """The configuration as plain Python types, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True)


def without_hydra(config: DictConfig) -> DictConfig:
    """What a command itself is given of what Hydra composed."""
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def leaves(config: dict, path: str = "", modules: bool = False) -> dict[str, object]:
    """{"model.width": 0.25, ...}; lists are leaves, as text, and classes go without their `modules`."""
    found = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{path}{key}.", modules)
        elif isinstance(value, list):
            found[f"{path}{key}"] = ", ".join(map(str, value))
        else:
            found[f"{path}{key}"] = str(value).rpartition(".")[2] if key == "_target_" and not modules else value
    return found


def within(key: str, groups: Iterable[str]) -> bool:
    """Whether a leaf is one of `groups`, or lies in one of them."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def kind(config: Mapping) -> str | None:
    """Of the run that is asked for: "related", local features and a classifier; "pretraining"; None, a training."""
    if "features" in config:
        return "related"
    return "pretraining" if "method" in config else None


def asked_for(config: DictConfig) -> dict[str, object]:
    """The leaves of a configuration that say what is trained: not where, how fast, or by which name."""
    no_matter = (*NOT_IN_DIGEST, *_SAID_ELSEWHERE)
    every = leaves(plain(config), modules=True)
    asked = {key: value for key, value in every.items() if not within(key.removeprefix("em."), no_matter)}
    if isinstance(asked.get("model.pretrained"), str):
        del asked["model.pretrained"]  # pretrained_sha256 says which file
    trainer = config.get("trainer", {})
    if not trainer.get("sync_batchnorm", True):  # then the statistics are of a device's part of the batch
        asked["trainer.devices"] = trainer.get("devices", 1) * trainer.get("num_nodes", 1)
    if kind(config) == "pretraining":  # what distant tiles of the validation are drawn from
        asked["data.eval_batch_size"] = config.data.eval_batch_size
    return asked


def image_size(config: Mapping) -> int:
    """Side of the images that the network of a trained configuration knows, px: what its run tells, or its data."""
    return config.get("image_size") or config["data"].get("image_size", 64)


def digest(config: DictConfig) -> str:
    """Twelve hex digits that are equal for two configurations exactly if they ask for the same training."""
    return hashlib.sha256(json.dumps(asked_for(config), sort_keys=True).encode()).hexdigest()[:12]


def sha256(path: object) -> str | None:
    """SHA-256 of a file of weights, as hex digits; None if there is none.

    What a configuration says of weights besides their path: others at the same path are another system.
    """
    if not isinstance(path, str):
        return None
    try:
        return sha256_of(weights_file(path))
    except OSError:
        return None


def image_files(target: str, root: str | None) -> str | None:
    """SHA-256 of the names and sizes of the train and val images in the user's folder `root`; None if that holds none.

    What a configuration says of the user's own images besides their place: others there are other data.
    """
    if target.endswith(".TinyImageNet") or root is None or not (Path(root) / "train").is_dir():
        return None
    from bagnet_lightning.data.images import image_suffixes  # Pillow, which other data do not need here

    digest, suffixes = hashlib.sha256(), image_suffixes()
    for pattern in ("train/*/*", "val/*/*"):  # through links, too, unlike rglob
        for path in sorted(Path(root).glob(pattern)):
            name = path.relative_to(root).as_posix()
            if name.lower().endswith(suffixes) and "/." not in name and path.is_file():
                digest.update(f"{name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def folder(overrides: Sequence[str]) -> str:
    """A run folder's name from the overrides that ask for it, in whatever order: "bagnet17_adam_max_epochs-5".

    Safe in shells and in Hydra's own grammar, and at most 120 characters long.
    """
    asked = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    kept = [key for key in sorted(asked) if key != "trainer" and not within(key.removeprefix("em."), NOT_IN_DIGEST)]
    asked = {key: asked[key] for key in kept}
    parts = [asked.pop(group) for group in CHOICES_FIRST if group in asked]
    parts += [f"{key.rpartition('.')[2]}-{value}" for key, value in asked.items()]
    name = re.sub(r"[^\w.+-]+", "-", "_".join(parts)).strip("-") or "defaults"
    if len(name) > 120:
        name = f"{name[:107]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def keys(name: str) -> str:
    """What --help says of the keys of a command or a choice: the lines of conf/NAME.yaml that hold and explain them."""
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    head, gap, body = text.partition("\n\n")  # a command's title and defaults, and its keys; a choice has no gap
    lines = (body.partition("\nhydra:")[0] if gap else head).strip().splitlines()
    lines = [line for line in lines if not line.startswith(("# ", "defaults:", "_target_:"))]
    return "\n".join(lines).replace("$", "$$")  # Hydra fills in a string.Template


def groups(command: str) -> str:
    """What --help says of the groups of a command: a line for each that conf/COMMAND.yaml names, its default first."""
    lines = []
    for entry in OmegaConf.load(CONF / f"{command}.yaml").defaults:
        for name, default in entry.items() if OmegaConf.is_dict(entry) else ():
            choices = {path.stem for path in (CONF / name).glob("*.yaml")}
            first = [f"{default} (default)"] if default in choices else []
            lines.append(f"{name}: {', '.join([*first, *sorted(choices - {default})])}")
    return "\n".join(lines)


for resolver in (folder, groups, image_files, keys, sha256):
    once = resolver is image_files  # for each configuration: there can be many files
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True, use_cache=once)
