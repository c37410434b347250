"""The parts of a table as columns of text: heading -> cells, one for each line."""

from pathlib import Path

from bagnet_lightning.names import clipped, model_name, monitor_name, optimizer_name
from bagnet_lightning.reporting.related import RelatedLine
from bagnet_lightning.reporting.seeds import deviation, mean, values
from bagnet_lightning.reporting.settings import short
from bagnet_lightning.reporting.table import Line, Table

#: Text columns; the others hold numbers.
TEXT_COLUMNS = ("model", "optimizer", "optim.", "pretrained", "status", "system", "explains", "method", "backbone")


def table1(table: Table) -> dict[str, list[str]]:
    """Returns all columns of the networks."""
    lines = table.lines
    paper = [_paper(line) for line in lines]
    measures = {
        monitor_name(name): [_mean_and_deviation(mean(v := values(line.runs, name)), deviation(v)) for line in lines]
        for name in table.measures
    }
    comparison = {"paper": paper, "difference": [cell(line.difference, "+.4f") for line in lines]}
    return {
        "row": [cell(line.row) for line in lines],
        "model": [model_name(line.model) for line in lines],
        "optimizer": [optimizer_name(line.optimizer) for line in lines],
        "pretrained": [one_cell(line.pretrained) for line in lines],
        "epochs": [cell(line.epochs) for line in lines],
        **{name: [one_cell(cell(line.settings[name])) for line in lines] for name in table.settings},
        "accuracy": [_accuracy_and_n(line) for line in lines],
        **measures,
        **(comparison if any(line.paper for line in lines) else {}),
        "top-5": [cell(line.top5, ".4f") for line in lines],
        "parameters": [cell(line.parameters, ",.0f") for line in lines],
        "img/s": [cell(line.images_per_second, ",.0f") for line in lines],
        "train time": [duration(line.train_seconds) for line in lines],
        "status": [line.status for line in lines],
    }


def table1_short(table: Table) -> dict[str, list[str]]:
    """Returns the columns of `table1`, shortened for a terminal."""
    names = short(table.settings)
    names |= {"optimizer": "optim.", "parameters": "params", "difference": "diff.", "train time": "time"}
    left_out = {monitor_name(name) for name in table.measures if name not in table.monitors}
    columns = {}
    for name, cells in table1(table).items():
        if name in left_out:
            continue
        if name == "accuracy":
            columns |= _accuracies(table.lines)
        elif name == "parameters":
            columns["params"] = [cell(line.parameters and line.parameters / 1e6, ".2f", "M") for line in table.lines]
        elif name not in ("row", "pretrained") or {*cells} - {"", "no"}:
            columns[names.get(name, name)] = [*map(clipped, cells)]
    return columns


def related(table: Table) -> dict[str, list[str]]:
    """Returns all columns of the related systems; their names include the settings in which they differ."""
    lines = table.related
    columns = {
        "system": [one_cell(line.name) for line in lines],
        "accuracy": [_accuracy_and_n(line) for line in lines],
        "top-5": [cell(line.top5, ".4f") for line in lines],
        "feature time": [duration(line.feature_seconds) for line in lines],
        "train time": [duration(line.train_seconds) for line in lines],
        "parameters": [cell(line.parameters, ",.0f") for line in lines],
        "size": [size(line.model_bytes) for line in lines],
        "without keypoints": [without_keypoints(line.without_keypoints) for line in lines],
        "explains": [explains(line) or "" for line in lines],
        "status": [line.status for line in lines],
    }
    if not any(columns["without keypoints"]):
        del columns["without keypoints"]
    return columns


def related_short(table: Table) -> dict[str, list[str]]:
    """Returns the columns of `related`, shortened for a terminal."""
    names = {"feature time": "features", "train time": "training"}
    columns = {}
    for name, cells in related(table).items():
        if name != "parameters":  # adds little to the model size
            columns |= _accuracies(table.related) if name == "accuracy" else {names.get(name, name): cells}
    return columns


def pretrainings(table: Table) -> dict[str, list[str]]:
    """Returns the columns of the pretraining runs."""
    runs = table.pretrainings
    return {
        "method": [run.get("method") or "?" for run in runs],
        "model": [model_name(run["model"]) for run in runs],
        "epochs": [cell(run.get("epochs")) for run in runs],
        "loss": [cell(run.get("loss"), ".4f") for run in runs],
        "neighbour nearer": [cell(run.get("val_triplet_accuracy"), ".4f") for run in runs],
        "by colour": [cell(run.get("colour_triplet_accuracy"), ".4f") for run in runs],
        "train time": [duration(run.get("train_seconds")) for run in runs],
        "backbone": [one_cell(str(backbone(run) or "")) for run in runs],
        "status": [run["status"] for run in runs],
    }


def backbone(run: dict) -> Path | None:
    """Returns a pretraining run's backbone, for model.pretrained= and features.checkpoint=; None if there is none."""
    path = run["folder"] / "backbone.safetensors"
    return path if path.exists() else None


def size(count: float | None) -> str:
    """Formats a number of bytes: "1.6 MiB"."""
    if count is None:
        return ""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 / 10 else f"{count / 2**10:,.1f} KiB"


def without_keypoints(counts: dict[str, float]) -> str:
    """Formats counts of images without keypoints: "12 val, 103 train"; empty if every image has some."""
    return ", ".join(f"{counts[split]:,.0f} {split}" for split in ("val", "train") if counts.get(split))


def explains(line: RelatedLine) -> str | None:
    """Returns what `explain` can show for a system; None if that is not known yet."""
    return line.explains or ("nothing" if line.status == "finished" else None)


def one_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _accuracies(lines: list[Line] | list[RelatedLine]) -> dict[str, list[str]]:
    """Returns the column of accuracies and, if some are means over runs, the column of n."""
    columns = {"accuracy": [_mean_and_deviation(line.accuracy, line.std) for line in lines]}
    if any(line.std is not None for line in lines):
        columns["n"] = [str(len(line.runs)) if line.accuracy is not None else "" for line in lines]
    return columns


def _mean_and_deviation(value: float | None, std: float | None) -> str:
    return cell(value, ".4f") + (f" ± {std:.4f}" if std is not None else "")


def _accuracy_and_n(line: Line | RelatedLine) -> str:
    return _mean_and_deviation(line.accuracy, line.std) + (f" (n={len(line.runs)})" if line.std is not None else "")


def _paper(line: Line) -> str:
    accuracy = cell(line.paper and line.paper.accuracy, ".4f")
    return f"({accuracy})" if line.not_comparable else accuracy


def cell(value: object, form: str = "", unit: str = "") -> str:
    """Formats a value; empty if it is None."""
    return "" if value is None else f"{value:{form}}{unit}"


def duration(seconds: float | None) -> str:
    """Formats a duration in s, min or h, whichever suits its length; empty if it is None."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"
