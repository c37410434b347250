"""A sweep as a table beside the paper's: groups its runs into lines and finds which may be compared.

python -m bagnet_lightning.report runs=multirun_outputs/SWEEP prints and writes it.
"""

from dataclasses import dataclass
from pathlib import Path

from bagnet_lightning.config import leaves
from bagnet_lightning.errors import UserError
from bagnet_lightning.names import OPTIMIZERS, epochs_text, model_name, model_order, optimizer_name
from bagnet_lightning.reporting.related import RelatedLine, related_lines
from bagnet_lightning.reporting.seeds import SeedsLine, mean, over_seeds, repetitions, values
from bagnet_lightning.reporting.settings import differing_settings, format_settings, weights_name
from bagnet_lightning.results import own_measures, read_runs
from bagnet_lightning.table1 import PaperRow, departures, paper_row, paper_rows

TINY_IMAGENET = {"train_images": 100_000, "val_images": 10_000, "classes": 200}  # the data of the paper's values
# Settings covered by TINY_IMAGENET's counts.
_COUNTED = ("data.classes=", "data.images_per_class=", "data.holdout=", "data.fold=")


@dataclass(frozen=True, kw_only=True)
class Line(SeedsLine):
    """A line of the networks' table; settings: the leaves of Table.settings.

    paper: the row to show beside it; not_comparable: why its value cannot be compared, empty if it can.
    """

    model: str
    optimizer: str
    pretrained: str  # "no", "ImageNet", the name of a file, or of the run that left it
    epochs: int | None
    paper: PaperRow | None
    not_comparable: list[str]
    images_per_second: float | None

    @property
    def name(self) -> str:
        """The line's description: "BagNet-9, Adam, 15 epochs, width 0.25"."""
        parts = [model_name(self.model), optimizer_name(self.optimizer)]
        parts += [] if self.pretrained == "no" else [f"pretrained ({self.pretrained})"]
        parts += [epochs_text(self.epochs)] if self.epochs else []
        return ", ".join([*parts, format_settings(self.settings)] if self.settings else parts)

    @property
    def row(self) -> int | None:
        """Table 1's row for this model, optimizer, pretraining and epochs on Tiny ImageNet, whatever else differs."""
        same = self.paper and self.paper.epochs == self.epochs and self.pretrained in ("no", "ImageNet")
        return self.paper.row if same else None

    @property
    def difference(self) -> float | None:
        """Our accuracy minus the paper's, as a fraction; None if they cannot be compared."""
        known = self.accuracy is not None and self.paper and not self.not_comparable
        return self.accuracy - self.paper.accuracy if known else None


@dataclass(frozen=True)
class Table:
    """The runs of a sweep, grouped into lines.

    lines: those of networks, sorted as in Table 1. settings: config keys in which these differ beyond its columns.
    related: the systems that have a table of their own. pretrainings: the runs that train a backbone.
    """

    folder: Path
    lines: list[Line]
    settings: list[str]
    related: list[RelatedLine]
    pretrainings: list[dict]

    @property
    def monitors(self) -> list[str]:
        """What chose the best epochs of networks, besides the accuracies that every table has."""
        used = {str(run["config"].get("monitor")): None for line in self.lines for run in line.runs}
        return [name for name in used if name not in ("None", "val_accuracy", "val_top5_accuracy")]

    @property
    def measures(self) -> list[str]:
        """The monitors, and what else callbacks of networks have logged in validations."""
        logged = dict.fromkeys(name for line in self.lines for run in line.runs for name in own_measures(run))
        return [*dict.fromkeys([*self.monitors, *logged])]

    @property
    def runs(self) -> list[dict]:
        """All runs, in the order of their lines."""
        return [run for line in [*self.lines, *self.related] for run in line.runs] + self.pretrainings


def read_table(folder: Path) -> Table:
    """Returns the table of all runs below `folder`, empty if there are none. Raises UserError if there is no folder."""
    if not folder.is_dir():
        raise UserError(f"runs={folder}: there is no such folder; give the folder of a sweep, multirun_outputs/NAME")
    runs = read_runs(folder)
    related = related_lines([run for run in runs if run.get("kind") == "related"])
    pretrainings = sorted((run for run in runs if run.get("kind") == "pretraining"), key=_pretraining_order)
    networks = [run for run in runs if run.get("kind") not in ("related", "pretraining")]
    settings = differing_settings(networks)

    groups = repetitions(networks, lambda run: (_pretrained(run), run["config"].get("sweep")))
    lines = sorted((_line(group, settings) for group in groups), key=_order)
    return Table(folder, lines, settings, related, pretrainings)


def pretraining_name(run: dict) -> str:
    """Returns a pretraining run's name: "tile2vec, BagNet-17"."""
    return f"{run.get('method') or '?'}, {model_name(run['model'])}"


def start(run: dict) -> str:
    """Returns what a run's weights started from, as its column shows it: "no", "ImageNet", or a weights_name."""
    if isinstance(pretrained := _pretrained(run), str):
        return weights_name(pretrained)
    return "ImageNet" if run.get("pretrained") else "no"


def _pretrained(run: dict) -> bool | str | None:
    return run["config"].get("model", {}).get("pretrained")


def _line(runs: list[dict], settings: list[str]) -> Line:
    first = runs[0]
    config = leaves(first["config"])
    paper = nearest_paper_row(first)
    reasons = [reason for run in runs for reason in _not_comparable(run, paper)] if paper else []
    return Line(
        **over_seeds(runs),
        settings={name: config.get(name) for name in settings},
        model=first["model"] or "?",
        optimizer=first["optimizer"] or "?",
        pretrained=start(first),
        epochs=first.get("epochs"),
        paper=paper,
        not_comparable=list(dict.fromkeys(reasons)),
        images_per_second=mean(values(runs, "images_per_second")),
    )


def _data(run: dict) -> str | None:
    return run.get("data") or run["config"].get("data", {}).get("name")


def nearest_paper_row(run: dict) -> PaperRow | None:
    """Returns the row of Table 1 for a run: with its epochs, else with 15, else the only one; None on other data."""
    if _data(run) != "tiny_imagenet":
        return None
    cell = run["model"], run["optimizer"], bool(run.get("pretrained"))
    exact = paper_row(*cell, run.get("epochs")) or paper_row(*cell, 15)
    return exact or next((r for r in paper_rows() if (r.model, r.optimizer, r.pretrained) == cell), None)


def _not_comparable(run: dict, paper: PaperRow) -> list[str]:
    """Returns the reasons why the paper's value cannot be compared with this run's."""
    config = run["config"]
    reasons = []
    for field, expected in TINY_IMAGENET.items():
        count = run.get(field)
        if count != expected and run["status"] == "finished":
            count = "an unknown number" if count is None else f"{count:,}"
            reasons.append(f"{count} of {expected:,} {field.replace('_', ' ')}")
    if run.get("validated_on", "val") != "val":
        reasons.append(f"validated on {run['validated_on']}")
    if not config:
        reasons.append("config.yaml missing or unreadable")
    reasons += [setting for setting in departures(config, paper) if not setting.startswith(_COUNTED)]
    if run.get("epochs") != paper.epochs:
        reasons.append(f"{run.get('epochs')} epochs instead of {paper.epochs}")
    return reasons


def _order(line: Line) -> tuple:
    optimizers = [*OPTIMIZERS, line.optimizer]
    row = line.paper.row if line.paper else len(paper_rows()) + 1
    settings = [sortable(value) for value in line.settings.values()]
    optimizer = optimizers.index(line.optimizer), line.optimizer
    return row, model_order(line.model), optimizer, line.epochs or 0, settings, str(line.runs[0]["folder"])


def _pretraining_order(run: dict) -> tuple:
    return run.get("method") or "?", model_order(run["model"] or "?"), str(run["folder"])


def sortable(value: object) -> tuple:
    """Returns a sort key of a setting: None, then numbers, then others by their text."""
    number = isinstance(value, (int, float))
    return (value is not None, not number, value if number else 0, str(value))
