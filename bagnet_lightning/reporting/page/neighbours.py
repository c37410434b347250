"""What tells the runs of a sweep apart: a title for each, and the runs that differ from it in the fewest things."""

from bagnet_lightning.config import PARTS, leaves
from bagnet_lightning.names import clipped, model_name, optimizer_name
from bagnet_lightning.reporting.related import RelatedLine
from bagnet_lightning.reporting.settings import short
from bagnet_lightning.reporting.table import Table, start

NEIGHBOURS = 8
Cell = dict[str, str]  # {"model": "BagNet-17", ..., "seed": "0"}


def told_apart(table: Table) -> list[list[tuple[dict, str, Cell]]]:
    """For the networks, the related systems and the pretrainings: (run, title, what tells it from the others)."""
    networks = [(run, _network(run, table.settings)) for line in table.lines for run in line.runs]
    systems = [(run, line.name, _system(run, line)) for line in table.related for run in line.runs]
    pretrainings = [(run, _pretraining(run)) for run in table.pretrainings]
    return [
        [(run, _title(cell), cell) for run, cell in networks],
        [(run, f"{name}, seed {cell['seed']}", cell) for run, name, cell in systems],
        [(run, _title(cell), cell) for run, cell in pretrainings],
    ]


def neighbours(name: str, cells: dict[str, dict[str, str]], accuracies: dict[str, float | None]) -> list[dict]:
    """The runs that differ from `name` in the fewest things, and in which: [{"run", "differs", "accuracy"}]."""
    own = cells[name]
    apart = {
        other: [key for key in own.keys() | cell.keys() if own.get(key) != cell.get(key)]
        for other, cell in cells.items()
        if other != name
    }
    fewest = min(map(len, apart.values()), default=0)
    nearest = [other for other, keys in apart.items() if len(keys) == fewest][:NEIGHBOURS]
    return [
        {
            "run": other,
            "differs": [
                [key, cells[other].get(key, "none"), own.get(key, "none")] for key in own if key in apart[other]
            ],
            "accuracy": accuracies[other],
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
        **{word: _said(values.get(name)) for name, word in short(settings).items()},
        "seed": str(run.get("seed", "?")),
    }


def _said(value: object) -> str:
    return "none" if value is None else clipped(value)


def _system(run: dict, line: RelatedLine) -> Cell:
    values = leaves(run["config"])
    parts = {part: str(values.get(f"{part}.label") or run.get(part)) for part in PARTS}
    return {
        **parts,
        **{word: clipped(line.settings[name]) for name, word in short(line.settings).items()},
        "seed": str(run.get("seed", "?")),
    }


def _pretraining(run: dict) -> Cell:
    return {
        "method": run.get("method") or "?",
        "model": model_name(run["model"]),
        "epochs": str(run.get("epochs") or "?"),
        "seed": str(run.get("seed", "?")),
    }


def _title(cell: Cell) -> str:
    """ "BagNet-17, Adam, 15 epochs, width 0.25, seed 0"."""
    named = ("method", "model", "optimizer")
    others = {key: value for key, value in cell.items() if key not in (*named, "epochs") and value != "none"}
    if others.get("pretrained") == "no":
        del others["pretrained"]
    words = [cell[key] for key in named if key in cell]
    return ", ".join([*words, f"{cell['epochs']} epochs", *(f"{key} {value}" for key, value in others.items())])
