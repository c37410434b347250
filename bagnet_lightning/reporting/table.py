"""A sweep as a table beside the paper's: which runs belong in one line, and which may be compared.

python -m bagnet_lightning.report runs=multirun_outputs/SWEEP prints and writes it.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bagnet_lightning.config import leaves
from bagnet_lightning.errors import UserError
from bagnet_lightning.names import OPTIMIZERS, model_name, model_order, optimizer_name
from bagnet_lightning.reporting.related import RelatedLine, related_lines
from bagnet_lightning.reporting.seeds import SeedsLine, mean, over_seeds, values
from bagnet_lightning.reporting.settings import differing_settings, in_words
from bagnet_lightning.results import read_runs
from bagnet_lightning.table1 import PaperRow, departures, paper_row, paper_rows

TINY_IMAGENET = {"train_images": 100_000, "val_images": 10_000, "classes": 200}  # what the paper's values are of
_COUNTED = ("data.classes=", "data.images_per_class=", "data.holdout=")  # settings that TINY_IMAGENET finds out
FILES_OF_RUNS = ("backbone.safetensors", "best.ckpt", "best.safetensors", "last.ckpt", "model.safetensors")


@dataclass(frozen=True, kw_only=True)
class Line(SeedsLine):
    """Of a network; settings: the leaves of Table.settings.

    paper: the row to look at; not_comparable: why its value holds for something else, empty where it may be compared.
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
        """What it is of, in words: "BagNet-9, Adam, 15 epochs, width 0.25"."""
        words = [model_name(self.model), optimizer_name(self.optimizer)]
        words += [] if self.pretrained == "no" else [f"pretrained ({self.pretrained})"]
        words += [f"{self.epochs} epochs"] if self.epochs else []
        return ", ".join([*words, in_words(self.settings)] if self.settings else words)

    @property
    def row(self) -> int | None:
        """The row of Table 1 for this model, optimizer, start and epochs on Tiny ImageNet, whatever else differs."""
        asks = self.paper and self.paper.epochs == self.epochs
        return self.paper.row if asks else None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in shares."""
        known = self.accuracy is not None and self.paper and not self.not_comparable
        return self.accuracy - self.paper.accuracy if known else None


@dataclass(frozen=True)
class Table:
    """lines: of networks, sorted as in Table 1. settings: config keys in which these differ beyond its columns.

    related: the systems that have a table of their own. pretrainings: runs that left a backbone.
    """

    folder: Path
    lines: list[Line]
    settings: list[str]
    related: list[RelatedLine]
    pretrainings: list[dict]

    @property
    def runs(self) -> list[dict]:
        """All that there are, in the order of their lines."""
        return [run for line in [*self.lines, *self.related] for run in line.runs] + self.pretrainings


def read_table(folder: Path) -> Table:
    """The table of every run below `folder`, without lines if there is none. Raises UserError if there is no folder."""
    if not folder.is_dir():
        raise UserError(f"runs={folder}: there is no such folder; give the folder of a sweep, multirun_outputs/NAME")
    runs = read_runs(folder)
    related = related_lines([run for run in runs if run.get("kind") == "related"])
    pretrainings = sorted((run for run in runs if run.get("kind") == "pretraining"), key=_pretraining_order)
    networks = [run for run in runs if run.get("kind") not in ("related", "pretraining")]
    settings = differing_settings(networks)
    groups: dict[tuple, list[dict]] = {}
    copies = Counter()
    for run in networks:
        found = leaves(run["config"])
        # A run that did not finish is never hidden among those that did.
        weights = _pretrained(run), found.get("pretrained_sha256")
        key = (run["status"] == "finished" or run["folder"], _cell(run), weights)
        key += tuple(repr(found.get(name)) for name in settings)
        training = run.get("config_digest") or run["folder"]
        key += (copies[training],)  # the same training again, in a folder of another name, is no other seed
        copies[training] += 1
        groups.setdefault(key, []).append(run)
    lines = sorted((_line(group, settings) for group in groups.values()), key=_order)
    return Table(folder, lines, settings, related, pretrainings)


def pretraining_name(run: dict) -> str:
    """ "tile2vec, BagNet-17"."""
    return f"{run.get('method') or '?'}, {model_name(run['model'])}"


def start(run: dict) -> str:
    """What a run's weights started from, in the words of the column: "no", "ImageNet", or the name of a file.

    Of a file that every run leaves, like best.ckpt, the name of its run.
    """
    if isinstance(pretrained := _pretrained(run), str):
        path = Path(pretrained)
        return path.parent.name if path.name in FILES_OF_RUNS and path.parent.name else path.name
    return "ImageNet" if run.get("pretrained") else "no"


def _pretrained(run: dict) -> bool | str | None:
    return (run["config"].get("model") or {}).get("pretrained") if run["config"] else None


def _cell(run: dict) -> tuple:
    return run["model"], run["optimizer"], start(run), run.get("epochs")


def _line(runs: list[dict], settings: list[str]) -> Line:
    first = runs[0]
    config = leaves(first["config"])
    paper = nearest_paper_row(first)
    model, optimizer, pretrained, epochs = _cell(first)
    reasons = [reason for run in runs for reason in _not_comparable(run, paper)] if paper else []
    return Line(
        **over_seeds(runs),
        settings={name: config.get(name) for name in settings},
        model=model or "?",
        optimizer=optimizer or "?",
        pretrained=pretrained,
        epochs=epochs,
        paper=paper,
        not_comparable=list(dict.fromkeys(reasons)),
        images_per_second=mean(values(runs, "images_per_second")),
    )


def _data(run: dict) -> str | None:
    return run.get("data") or (run["config"].get("data") or {}).get("name")


def nearest_paper_row(run: dict) -> PaperRow | None:
    """The row of Table 1 for a run's cell: of its epochs, else of 15, else the only one; None on other data."""
    if _data(run) != "tiny_imagenet":
        return None
    cell = run["model"], run["optimizer"], bool(run.get("pretrained"))
    exact = paper_row(*cell, run.get("epochs")) or paper_row(*cell, 15)
    return exact or next((r for r in paper_rows() if (r.model, r.optimizer, r.pretrained) == cell), None)


def _not_comparable(run: dict, paper: PaperRow) -> list[str]:
    """Why the paper's value is of something else than this run."""
    config = run["config"]
    reasons = []
    for field, all_of_it in TINY_IMAGENET.items():
        count = run.get(field)
        if count != all_of_it and run["status"] == "finished":
            count = "an unknown number" if count is None else f"{count:,}"
            reasons.append(f"{count} of {all_of_it:,} {field.replace('_', ' ')}")
    if run.get("validated_on", "val") != "val":
        reasons.append(f"validated on {run['validated_on']}")
    if not config:
        reasons.append("config.yaml missing or unreadable")
    reasons += [words for words in departures(config, paper) if not words.startswith(_COUNTED)]
    if run.get("epochs") != paper.epochs:
        reasons.append(f"{run.get('epochs')} epochs instead of {paper.epochs}")
    return reasons


def _order(line: Line) -> tuple:
    optimizers = [*OPTIMIZERS, line.optimizer]
    row = line.paper.row if line.paper else len(paper_rows()) + 1
    settings = [_sortable(value) for value in line.settings.values()]
    optimizer = optimizers.index(line.optimizer), line.optimizer
    return row, model_order(line.model), optimizer, line.epochs or 0, settings, str(line.runs[0]["folder"])


def _pretraining_order(run: dict) -> tuple:
    return run.get("method") or "?", model_order(run["model"] or "?"), str(run["folder"])


def _sortable(value: object) -> tuple:
    number = isinstance(value, (int, float))
    return (value is not None, not number, value if number else 0, str(value))
