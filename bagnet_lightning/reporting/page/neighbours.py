"""How the runs of a sweep differ: a title for each, and the runs that differ from it in the fewest settings."""

from bagnet_lightning.config import PARTS, leaves
from bagnet_lightning.names import clipped, model_name, optimizer_name
from bagnet_lightning.predictions import Predictions, paired_error
from bagnet_lightning.reporting.related import RelatedLine
from bagnet_lightning.reporting.settings import short
from bagnet_lightning.reporting.table import Table, start

NEIGHBOURS = 8
Cell = dict[str, str]  # {"model": "BagNet-17", ..., "seed": "0"}


def distinguished(table: Table) -> list[list[tuple[dict, str, Cell]]]:
    """Returns (run, title, distinguishing settings) of the networks, of the related systems and of the pretrainings."""
    networks = [(run, _network(run, table.settings)) for line in table.lines for run in line.runs]
    systems = [(run, line.name, _system(run, line)) for line in table.related for run in line.runs]
    pretrainings = [(run, _pretraining(run)) for run in table.pretrainings]
    return [
        [(run, _title(cell), cell) for run, cell in networks],
        [(run, _system_title(name, cell), cell) for run, name, cell in systems],
        [(run, _title(cell), cell) for run, cell in pretrainings],
    ]


def neighbours(
    name: str,
    cells: dict[str, Cell],
    accuracies: dict[str, float | None],
    predictions: dict[str, Predictions | ValueError | None],
) -> list[dict]:
    """Returns the runs with the fewest differences from `name`, and these: [{"run", "differs", "accuracy", "error"}].

    error: one standard error of the difference of the accuracies, paired by image; None if that is not known.
    """
    own = cells[name]
    differences = {
        other: [key for key in {**own, **cell} if own.get(key) != cell.get(key)]
        for other, cell in cells.items()
        if other != name
    }
    fewest = min(map(len, differences.values()), default=0)
    nearest = [other for other, keys in differences.items() if len(keys) == fewest][:NEIGHBOURS]
    return [
        {
            "run": other,
            "differs": [[key, cells[other].get(key, "none"), own.get(key, "none")] for key in differences[other]],
            "accuracy": accuracies[other],
            "error": paired_error(predictions[name], predictions[other]),
        }
        for other in nearest
    ]


def _network(run: dict, settings: list[str]) -> Cell:
    values = leaves(run["config"])
    return {
        "model": model_name(run["model"]),
        "optimizer": optimizer_name(run["optimizer"]),
        "pretrained": start(run),
        "epochs": str(run.get("epochs") or "?"),
        **{label: _text(values.get(name)) for name, label in short(settings).items()},
        **_repetition(run, values),
    }


def _repetition(run: dict, values: dict[str, object]) -> Cell:
    """Returns what runs of one line differ in. values: the leaves of the run's configuration."""
    fold = {"fold": _text(values.get("data.fold"))} if values.get("data.holdout") else {}
    return {**fold, "seed": str(run.get("seed", "?"))}


def _text(value: object) -> str:
    return "none" if value is None else clipped(value)


def _system(run: dict, line: RelatedLine) -> Cell:
    values = leaves(run["config"])
    parts = {part: str(values.get(f"{part}.label") or run.get(part)) for part in PARTS}
    return {
        **parts,
        **{label: clipped(line.settings[name]) for name, label in short(line.settings).items()},
        **_repetition(run, values),
    }


def _system_title(name: str, cell: Cell) -> str:
    return ", ".join([name, *(f"{key} {cell[key]}" for key in ("fold", "seed") if key in cell)])


def _pretraining(run: dict) -> Cell:
    return {
        "method": run.get("method") or "?",
        "model": model_name(run["model"]),
        "epochs": str(run.get("epochs") or "?"),
        "seed": str(run.get("seed", "?")),
    }


def _title(cell: Cell) -> str:
    """Returns a title like "BagNet-17, Adam, 15 epochs, width 0.25, seed 0"."""
    named = ("method", "model", "optimizer")
    others = {key: value for key, value in cell.items() if key not in (*named, "epochs") and value != "none"}
    if others.get("pretrained") == "no":
        del others["pretrained"]
    parts = [cell[key] for key in named if key in cell]
    epochs = f"{cell['epochs']} epoch{'' if cell['epochs'] == '1' else 's'}"
    return ", ".join([*parts, epochs, *(f"{key} {value}" for key, value in others.items())])
