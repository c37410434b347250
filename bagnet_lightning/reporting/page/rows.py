"""The lines of one table, or of several side by side, as rows of the page's tables."""

from itertools import zip_longest
from math import isfinite

from bagnet_lightning.config import leaves
from bagnet_lightning.names import clipped, model_name, monitor_name, optimizer_name
from bagnet_lightning.reporting.columns import backbone, explains, without_keypoints
from bagnet_lightning.reporting.seeds import mean, values
from bagnet_lightning.reporting.table import Line, Table


def run_name(run: dict, table: Table) -> str:
    """Returns the path of a run's folder below the table's, or the folder's name if it is the table's."""
    name = run["folder"].relative_to(table.folder).as_posix()
    return table.folder.resolve().name if name == "." else name


def rows_of(tables: list[Table], prefixes: list[str]) -> list[dict]:
    """Returns the lines of all tables, side by side if of the same cell: "entries" has one per sweep, or None.

    prefixes: for each table, the prefix of its runs' names on the page.
    """
    settings = list(dict.fromkeys(setting for table in tables for setting in table.settings))
    cells: dict[tuple, list[list[Line]]] = {}
    for side, table in enumerate(tables):
        for line in table.lines:
            key = (line.model, line.optimizer, line.pretrained, line.epochs)
            cells.setdefault(key, [[] for _ in tables])[side].append(line)
    paired = [lines for sides in cells.values() for lines in _side_by_side(sides, settings)]
    order = {id(line): number for table in tables for number, line in enumerate(table.lines)}
    paired.sort(key=lambda lines: [order[id(line)] for line in lines if line])
    if len(tables) > 1:
        paired.sort(key=lambda lines: min(line.row or 99 for line in lines if line))
    return [_row(lines, tables, prefixes, settings) for lines in paired]


def related_rows(tables: list[Table], names: list[str], prefixes: list[str]) -> list[dict]:
    """Returns the related systems of all sweeps, sweep by sweep. names: the sweeps' names."""
    return [
        {
            "sweep": name,
            "system": line.name,
            "accuracy": line.accuracy,
            "std": line.std,
            "n": len(line.runs) if line.accuracy is not None else None,
            "top5": line.top5,
            "feature_seconds": line.feature_seconds,
            "seconds": line.train_seconds,
            "bytes": line.model_bytes,
            "without_keypoints": without_keypoints(line.without_keypoints) or None,
            "explains": explains(line),
            "error": line.error,
            "runs": [prefix + run_name(run, table) for run in line.runs],
        }
        for table, name, prefix in zip(tables, names, prefixes, strict=True)
        for line in table.related
    ]


def pretraining_rows(tables: list[Table], names: list[str], prefixes: list[str]) -> list[dict]:
    """Returns the pretraining runs of all sweeps, sweep by sweep."""
    return [
        {
            "sweep": name,
            "method": run.get("method") or "?",
            "model": model_name(run["model"]),
            "epochs": run.get("epochs"),
            "loss": run.get("loss"),
            "nearer": run.get("val_triplet_accuracy"),
            "byColour": run.get("colour_triplet_accuracy"),
            "seconds": run.get("train_seconds"),
            "backbone": (path := backbone(run)) and path.as_posix(),
            "runs": [prefix + run_name(run, table)],
        }
        for table, name, prefix in zip(tables, names, prefixes, strict=True)
        for run in table.pretrainings
    ]


def _side_by_side(sides: list[list[Line]], settings: list[str]) -> list[list[Line | None]]:
    """Pairs the lines of one cell of the grid by their settings; the rest is a pair if there is at most one a side."""
    indices = range(len(sides))
    groups: dict[tuple, list[list[Line]]] = {}
    for side, lines in enumerate(sides):
        for line in lines:
            groups.setdefault(_values(line, settings), [[] for _ in sides])[side].append(line)
    pairs = [list(lines) for group in groups.values() if all(group) for lines in zip_longest(*group)]
    left = [[line for group in groups.values() if not all(group) for line in group[side]] for side in indices]
    if all(len(lines) <= 1 for lines in left):
        return pairs + ([[lines[0] if lines else None for lines in left]] if any(left) else [])
    return pairs + [[line if side == own else None for side in indices] for own in indices for line in left[own]]


def _values(line: Line, settings: list[str]) -> tuple[str | None, ...]:
    values = leaves(line.runs[0]["config"])
    return tuple(clipped(values[name]) if values.get(name) is not None else None for name in settings)


def _row(lines: list[Line | None], tables: list[Table], prefixes: list[str], settings: list[str]) -> dict:
    first = next(line for line in lines if line)
    values = [_values(line, settings) for line in lines if line]
    distinct = {name: [*dict.fromkeys(v[i] for v in values if v[i] is not None)] for i, name in enumerate(settings)}
    return {
        "row": first.row,
        "model": first.model,
        "model_name": model_name(first.model),
        "optimizer": first.optimizer,
        "optimizer_name": optimizer_name(first.optimizer),
        "pretrained": first.pretrained,
        "epochs": first.epochs,
        "settings": {name: _number(" / ".join(texts)) for name, texts in distinct.items() if texts},
        "paper": first.paper and first.paper.accuracy,
        "comparable": any(line and line.paper and not line.not_comparable for line in lines),
        "entries": [
            line and _entry(line, table, prefix) for line, table, prefix in zip(lines, tables, prefixes, strict=True)
        ],
    }


def _number(text: str) -> float | str:
    """Converts the text of a finite number, so that it is sorted as one."""
    try:
        return float(text) if isfinite(float(text)) else text
    except ValueError:
        return text


def _entry(line: Line, table: Table, prefix: str) -> dict:
    return {
        "accuracy": line.accuracy,
        "std": line.std,
        "n": len(line.runs) if line.accuracy is not None else None,
        "difference": line.difference,
        "measures": {monitor_name(name): mean(values(line.runs, name)) for name in table.measures},
        "top5": line.top5,
        "parameters": line.parameters,
        "speed": line.images_per_second,
        "seconds": line.train_seconds,
        "error": line.error,
        "runs": [prefix + run_name(run, table) for run in line.runs],
    }
