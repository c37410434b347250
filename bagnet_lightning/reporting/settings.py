"""The settings in which the runs of a sweep differ, beyond the columns that every table has."""

from collections.abc import Iterable
from pathlib import Path

from bagnet_lightning.config import NOT_IN_DIGEST, PARTS, is_seed, leaves, within
from bagnet_lightning.names import clipped

# Leaves of the config that have a column anyway, or that do not affect the training.
_NOT_A_SETTING = {"model._target_", "model.pretrained", "optim._target_", "trainer.max_epochs"}
_NOT_A_SETTING |= {*NOT_IN_DIGEST} - {"sweep"}
_NOT_A_SETTING |= {"batches", "bagnet", "pretrained_sha256"}  # repeat data.* and model.*
#: Names that every table and title already uses.
COLUMNS = (
    *("row", "model", "optimizer", "optim.", "pretrained", "epochs", "seed", "n", "accuracy", "paper", "difference"),
    *("balanced", "diff.", "top-5", "parameters", "params", "img/s", "time", "status", *PARTS),
)
_FILES_OF_RUNS = ("backbone.safetensors", "best.ckpt", "best.safetensors", "last.ckpt", "model.safetensors")
_CHOICES = ("model", "optim", "scheduler", "data")  # config groups whose choices have different keys and defaults


def differing_settings(runs: list[dict]) -> list[str]:
    """Returns the keys, like "model.width", in which `runs` differ beyond seed, fold, epochs, model and optimizer."""
    configs = [leaves(run["config"]) for run in runs]
    overridden = {override.lstrip("+~").partition("=")[0] for run in runs for override in run.get("overrides") or []}
    known = [[repr(run.get(name)) for run in runs] for name in ("epochs", "model", "optimizer")]
    names = []
    for name in dict.fromkeys(leaf for config in configs for leaf in config):
        if within(name, _NOT_A_SETTING) or is_seed(name):
            continue
        if name == "scheduler._target_":
            differs = len({_scheduler(config) for config in configs if config}) > 1
        elif name in ("data._target_", "image_files"):  # other data have another name
            sources = {(config.get("data.name"), config.get(name)) for config in configs if config}
            differs = len(sources) > len({data for data, _ in sources})
        else:
            differs = _differs(name, configs, name in overridden)
        if not differs:
            continue
        values = [repr(config[name]) if name in config else _absent(name, config, configs) for config in configs]
        # max_lr that follows lr adds nothing
        if not any(all(a in (None, b) for a, b in zip(values, other, strict=True)) for other in known):
            names.append(name)
            known.append(values)
    return names


def short(settings: Iterable[str]) -> dict[str, str]:
    """Returns {"model.width": "width", "scheduler._target_": "scheduler"}, or the whole key if that is taken."""
    names = {}
    for setting in settings:
        parts = setting.split(".")
        names[setting] = parts[-2] if parts[-1] in ("_target_", "name") and len(parts) > 1 else parts[-1]
    taken = [*names.values(), *COLUMNS]
    return {setting: name if taken.count(name) == 1 else setting for setting, name in names.items()}


def of_networks(settings: Iterable[str], lines: Iterable[tuple[str, dict]]) -> list[str]:
    """Returns the settings, like "model.stem", that have one value for each network, so that its name tells them.

    lines: of each the network's name and its settings; None, or none, where it lacks one.
    """
    found, lines = [], [*lines]
    for name in (name for name in settings if name.startswith("model.")):
        values = {(network, repr(own[name])) for network, own in lines if own.get(name) is not None}
        if len(values) == len({network for network, _ in values}):
            found.append(name)
    return found


def format_settings(values: dict[str, object]) -> str:
    """Formats {"model.width": 0.25, "optim.lr": 0.1} as "width 0.25, lr 0.1"."""
    texts = {name: clipped(value) for name, value in values.items() if value is not None}
    return ", ".join(f"{label} {texts[name]}" for name, label in short(texts).items())


def weights_name(path: str) -> str:
    """Returns the name of a file of weights; of one that every run leaves, like best.ckpt, that of its run."""
    file = Path(path)
    return file.parent.name if file.name in _FILES_OF_RUNS and file.parent.name else file.name


def _absent(name: str, config: dict, configs: list[dict]) -> str | None:
    """Returns None if no run with the same choice of the key's group has the key either, else "absent"."""
    group = name.partition(".")[0]
    choice = f"{group}._target_"
    known = any(name in other for other in configs if other.get(choice) == config.get(choice))
    return "absent" if known or group not in _CHOICES else None


def _differs(name: str, configs: list[dict], overridden: bool) -> bool:
    """Whether runs with the same choice of the key's group differ in the key, or some of them lack it.

    Runs of different choices are compared too if the key means the same (model.width) or was overridden (optim.lr=0.1).
    """
    group = name.partition(".")[0]
    choices: dict[object, set] = {}
    for config in configs:
        if config:
            choice = config.get(f"{group}._target_") if group in _CHOICES else None
            choices.setdefault(choice, set()).add(repr(config.get(name)))
    across = overridden or group in ("model", "data")
    return any(len(values) > 1 for values in choices.values()) or (
        across and len({repr(config[name]) for config in configs if name in config}) > 1
    )


def _scheduler(config: dict) -> str | None:
    """Returns a scheduler's class, or "the paper's" if it is that: constant for Adadelta, else steps."""
    scheduler = config.get("scheduler._target_")
    default = "ConstantLR" if config.get("optim._target_") == "Adadelta" else "StepLR"
    return "the paper's" if scheduler == default else scheduler
