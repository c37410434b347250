"""What the runs of a sweep were asked for differently, beyond what the columns of every table say."""

from collections.abc import Iterable

from bagnet_lightning.config import NOT_IN_DIGEST, PARTS, leaves, within
from bagnet_lightning.names import clipped

# Leaves of the config that are a column anyway, that seeds are merged over, or that do not touch the training.
_NOT_A_SETTING = {"seed", "model._target_", "model.pretrained", "optim._target_", "trainer.max_epochs", "data._target_"}
_NOT_A_SETTING |= {*NOT_IN_DIGEST} - {"sweep"}
_NOT_A_SETTING |= {"batches", "bagnet", "pretrained_sha256"}  # what data.* and model.* say already
#: What every table and title has already.
COLUMNS = (
    *("row", "model", "optimizer", "optim.", "pretrained", "epochs", "seed", "n", "accuracy", "paper", "difference"),
    *("diff.", "top-5", "parameters", "params", "img/s", "time", "status", *PARTS),
)
_CHOICES = ("model", "optim", "scheduler", "data")  # groups in which another choice has other keys and defaults


def differing_settings(runs: list[dict]) -> list[str]:
    """The config keys, like "model.width", in which `runs` differ and that the model or optimizer does not explain."""
    configs = [leaves(run["config"]) for run in runs]
    asked = {override.lstrip("+~").partition("=")[0] for run in runs for override in run.get("overrides") or []}
    known = [[repr(run.get(name)) for run in runs] for name in ("seed", "epochs", "model", "optimizer")]
    names = []
    for name in dict.fromkeys(leaf for config in configs for leaf in config):
        if within(name, _NOT_A_SETTING):
            continue
        if name == "scheduler._target_":
            differs = len({_scheduler(config) for config in configs if config}) > 1
        else:
            differs = _differs(name, configs, name in asked)
        if not differs:
            continue
        values = [repr(config[name]) if name in config else _absent(name, config, configs) for config in configs]
        # data.seed that follows seed, or max_lr that follows lr, says nothing new
        if not any(all(a in (None, b) for a, b in zip(values, other, strict=True)) for other in known):
            names.append(name)
            known.append(values)
    return names


def short(settings: Iterable[str]) -> dict[str, str]:
    """{"model.width": "width", "scheduler._target_": "scheduler"}, or the whole where something else is called so."""
    names = {}
    for setting in settings:
        words = setting.split(".")
        names[setting] = words[-2] if words[-1] in ("_target_", "name") and len(words) > 1 else words[-1]
    taken = [*names.values(), *COLUMNS]
    return {setting: name if taken.count(name) == 1 else setting for setting, name in names.items()}


def in_words(values: dict[str, object]) -> str:
    """{"model.width": 0.25, "optim.lr": 0.1} -> "width 0.25, lr 0.1"."""
    said = {name: clipped(value) for name, value in values.items() if value is not None}
    return ", ".join(f"{word} {said[name]}" for name, word in short(said).items())


def _absent(name: str, config: dict, configs: list[dict]) -> str | None:
    """None where `config` lacks the key since its choice of the group has no such key: no other run of it has."""
    group = name.partition(".")[0]
    choice = f"{group}._target_"
    known = any(name in other for other in configs if other.get(choice) == config.get(choice))
    return "absent" if known or group not in _CHOICES else None


def _differs(name: str, configs: list[dict], asked: bool) -> bool:
    """A key counts where runs of the same choice differ in it, or lack it.

    Across choices, too, where it means the same (model.width), or where somebody asked for it (optim.lr=0.1).
    """
    group = name.partition(".")[0]
    choices: dict[object, set] = {}
    for config in configs:
        if config:
            choice = config.get(f"{group}._target_") if group in _CHOICES else None
            choices.setdefault(choice, set()).add(repr(config.get(name)))
    across = asked or group in ("model", "data")
    return any(len(values) > 1 for values in choices.values()) or (
        across and len({repr(config[name]) for config in configs if name in config}) > 1
    )


def _scheduler(config: dict) -> str | None:
    """A scheduler's class; the paper's choice is the same word for Adadelta (constant) and the others (steps)."""
    scheduler = config.get("scheduler._target_")
    default = "ConstantLR" if config.get("optim._target_") == "Adadelta" else "StepLR"
    return "the paper's" if scheduler == default else scheduler
