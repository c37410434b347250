"""A sweep as a table beside the paper's: which runs belong in one line, and which may be compared.

python -m bagnet_lightning.report runs=multirun_outputs/SWEEP prints and writes it.
"""

import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bagnet_lightning.config import NOT_IN_DIGEST
from bagnet_lightning.errors import UserError
from bagnet_lightning.reporting.settings import differing_settings, in_words, leaves
from bagnet_lightning.results import PaperRow, paper_row, paper_rows, read_runs

TINY_IMAGENET = {"train_images": 100_000, "val_images": 10_000, "classes": 200}  # what the paper's values are of
_IN_COLUMNS = ("table1", "model", "optim", "model.pretrained", "trainer.max_epochs", "seed")  # overrides
OPTIMIZERS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adadelta": "Adadelta",
    "adamw": "AdamW",
    "muon": "Muon",
}  # in the paper's order


@dataclass(frozen=True)
class Line:
    """One finished run, the seeds of one configuration, or one run that did not finish.

    Accuracies are shares; numbers are means over `runs`, std is their standard deviation (ddof=1) from two runs on.
    paper: the row to look at; not_comparable: why its value holds for something else, empty where it may be compared.
    """

    runs: list[dict]
    settings: dict[str, object]  # the leaves of Table.settings
    model: str
    optimizer: str
    pretrained: str  # "no", "ImageNet" or a file's name
    epochs: int | None
    status: str
    error: str | None
    paper: PaperRow | None
    not_comparable: list[str]
    accuracy: float | None
    std: float | None
    top5: float | None
    parameters: float | None
    images_per_second: float | None
    train_seconds: float | None

    @property
    def row(self) -> int | None:
        """The row of Table 1 that asks for just this, whatever the data."""
        return self.paper.row if self.paper and self.paper.epochs == self.epochs else None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in shares."""
        known = self.accuracy is not None and self.paper and not self.not_comparable
        return self.accuracy - self.paper.accuracy if known else None


@dataclass(frozen=True)
class Table:
    """lines: sorted as in Table 1. settings: config keys in which runs differ beyond the columns of every table."""

    folder: Path
    lines: list[Line]
    settings: list[str]
    notes: list[str]


def read_table(folder: Path) -> Table:
    """The table of every run below `folder`, without lines if there is none. Raises UserError if there is no folder."""
    if not folder.is_dir():
        raise UserError(f"runs={folder}: there is no such folder; give the folder of a sweep, multirun_outputs/NAME")
    runs = read_runs(folder)
    settings = differing_settings(runs)
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        values = leaves(run["config"])
        # A run that did not finish is never hidden among those that did.
        key = (run["status"] == "finished" or run["folder"], _cell(run), *(repr(values.get(name)) for name in settings))
        groups.setdefault(key, []).append(run)
    lines = sorted((_line(group, settings) for group in groups.values()), key=_order)
    return Table(folder, lines, settings, _notes(folder, runs, lines))


def model_name(model: str | None) -> str:
    """ "bagnet17" -> "BagNet-17"."""
    match = re.fullmatch(r"(bag|res)net(\d+)", model or "?")
    return f"{match[1].capitalize()}Net-{match[2]}" if match else model or "?"


def optimizer_name(optimizer: str | None) -> str:
    """ "adam" -> "Adam"."""
    return OPTIMIZERS.get(optimizer, optimizer or "?")


def model_order(model: str) -> tuple:
    """Sorts by patch size, then the networks that see the whole image."""
    match = re.fullmatch(r"(bagnet|resnet)(\d+)", model)
    return (match[1], int(match[2])) if match else ("~", model)


def one_line(line: Line) -> str:
    """What a line is of, in words: "BagNet-9, Adam, 15 epochs, width 0.25"."""
    words = [model_name(line.model), optimizer_name(line.optimizer)]
    words += [] if line.pretrained == "no" else [f"pretrained ({line.pretrained})"]
    words += [f"{line.epochs} epochs"] if line.epochs else []
    return ", ".join([*words, in_words(line.settings)] if line.settings else words)


def problems(folder: Path, lines: list[Line]) -> list[str]:
    """One note for every run that did not finish."""
    return [
        f"{line.status}: {one_line(line)} ({line.runs[0]['folder'].relative_to(folder)}): {line.error}"
        for line in lines
        if line.status != "finished"
    ]


def pretraining(run: dict) -> str:
    """What config.yaml says, and result.json where there is none."""
    pretrained = (run["config"].get("model") or {}).get("pretrained") if run["config"] else None
    if isinstance(pretrained, str):
        return Path(pretrained).name
    return "ImageNet" if run.get("pretrained") else "no"


def _cell(run: dict) -> tuple:
    return run["model"], run["optimizer"], pretraining(run), run.get("epochs")


def _line(runs: list[dict], settings: list[str]) -> Line:
    first = runs[0]
    finished = first["status"] == "finished"
    values = leaves(first["config"])
    paper = nearest_paper_row(first)
    accuracies = _known(runs, "best_val_accuracy") if finished else []
    model, optimizer, pretrained, epochs = _cell(first)
    reasons = [reason for run in runs for reason in _not_comparable(run, paper)] if paper else []
    return Line(
        runs=runs,
        settings={name: values.get(name) for name in settings},
        model=model or "?",
        optimizer=optimizer or "?",
        pretrained=pretrained,
        epochs=epochs,
        status=first["status"],
        error=_problem(first),
        paper=paper,
        not_comparable=list(dict.fromkeys(reasons)),
        accuracy=statistics.mean(accuracies) if accuracies else None,
        std=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        top5=_mean(_known(runs, "val_top5_accuracy")) if finished else None,
        parameters=_mean(_known(runs, "parameters")),
        images_per_second=_mean(_known(runs, "images_per_second")),
        train_seconds=_mean(_known(runs, "train_seconds")),
    )


def nearest_paper_row(run: dict) -> PaperRow | None:
    """The row of Table 1 for a run's cell: of its epochs, else of 15, else the only one there is."""
    cell = run["model"], run["optimizer"], bool(run.get("pretrained"))
    exact = paper_row(*cell, run.get("epochs")) or paper_row(*cell, 15)
    return exact or next((r for r in paper_rows() if (r.model, r.optimizer, r.pretrained) == cell), None)


def _not_comparable(run: dict, paper: PaperRow) -> list[str]:
    """Why the paper's value is of something else than this run."""
    config = run["config"]
    data, model, trainer = (config.get(group) or {} for group in ("data", "model", "trainer"))
    name = run.get("data") or data.get("name")
    reasons = []
    if name != "tiny_imagenet":
        reasons.append(f"data {name or 'unknown'} instead of Tiny ImageNet")
    else:
        for field, all_of_it in TINY_IMAGENET.items():
            count = run.get(field)
            if count != all_of_it and run["status"] == "finished":
                count = "an unknown number" if count is None else f"{count:,}"
                reasons.append(f"{count} of {all_of_it:,} {field.replace('_', ' ')}")
        if run.get("validated_on", "val") != "val":
            reasons.append(f"validated on {run['validated_on']}")
    if not config:
        reasons.append("config.yaml missing or unreadable")
    if model.get("width", 1) != 1:
        reasons.append(f"width {model['width']}")
    if run.get("epochs") != paper.epochs:
        reasons.append(f"{run.get('epochs')} epochs instead of {paper.epochs}")
    limits = [key for key in trainer if key.startswith(("limit_", "overfit_", "fast_dev"))]
    return reasons + [f"trainer.{key}={trainer[key]}" for key in limits if trainer[key]]


def _problem(run: dict) -> str | None:
    """One line for a run that did not finish."""
    if run["status"] == "finished":
        return None
    told = [" ".join(str(run["error"]).split())] if run.get("error") else []
    if run["status"] != "failed" and run["status"] != "unreadable":
        told.append(f"{run['epochs_done']} of {run.get('epochs') or '?'} epochs done")
        if run.get("best_val_accuracy") is not None:
            told.append(f"best so far {run['best_val_accuracy']:.4f}")
    return ", ".join(told) or "no reason given"


def _order(line: Line) -> tuple:
    optimizers = [*OPTIMIZERS, line.optimizer]
    row = line.paper.row if line.paper else len(paper_rows()) + 1
    settings = [_sortable(value) for value in line.settings.values()]
    optimizer = optimizers.index(line.optimizer), line.optimizer
    return row, model_order(line.model), optimizer, line.epochs or 0, settings, str(line.runs[0]["folder"])


def _sortable(value: object) -> tuple:
    number = isinstance(value, (int, float))
    return (value is not None, not number, value if number else 0, str(value))


def _notes(folder: Path, runs: list[dict], lines: list[Line]) -> list[str]:
    """What a reader of the table has to know, most important first."""
    finished = [run for run in runs if run["status"] == "finished"]
    if not runs:
        return [f"There are no runs in {folder}."]
    notes = [f"{len(finished)} of {len(runs)} runs finished."]
    notes += problems(folder, lines)
    reasons = list(dict.fromkeys(reason for line in lines for reason in line.not_comparable))
    if reasons:
        notes.append(
            "(In parentheses) The paper's value, for orientation only: it is of the full Tiny ImageNet and its own "
            f"settings and cannot be compared. Here: {'; '.join(reasons)}."
        )
    if any(line.std is not None for line in lines):
        notes.append("± is the standard deviation over n runs that differ only in their seed.")
    asked = [run["overrides"] for run in runs if isinstance(run.get("overrides"), list)]
    shared = [override for override in asked[0] if all(override in other for other in asked)] if asked else []
    shared = [override for override in shared if override.partition("=")[0] not in {*NOT_IN_DIGEST, *_IN_COLUMNS}]
    if shared:
        notes.append(f"All runs were asked for: {' '.join(shared)}.")
    if finished:
        notes.append(_provenance(finished))
    return notes


def _provenance(finished: list[dict]) -> str:
    def all_values(name: str) -> str:
        values = [run.get(name, (run.get("versions") or {}).get(name)) for run in finished]
        return " / ".join(dict.fromkeys(f"{v:,}" if isinstance(v, int) else str(v or "unknown") for v in values))

    return (
        f"Data: {all_values('data')}, {all_values('classes')} classes, {all_values('train_images')} train and "
        f"{all_values('val_images')} validation images. Device: {all_values('device')}, {all_values('precision')}. "
        f"torch {all_values('torch')}, bagnet_lightning {all_values('bagnet_lightning')}, "
        f"commit {all_values('commit')}."
    )


def _known(runs: Iterable[dict], name: str) -> list[float]:
    return [run[name] for run in runs if run.get(name) is not None]


def _mean(values: list[float]) -> float | None:
    return statistics.mean(values) if values else None
