"""A sweep's table as text: for a terminal, as Markdown and as CSV."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from bagnet_lightning.config import leaves
from bagnet_lightning.files import csv_of_records
from bagnet_lightning.reporting import columns
from bagnet_lightning.reporting.columns import TEXT_COLUMNS, one_cell
from bagnet_lightning.reporting.notes import notes
from bagnet_lightning.reporting.related import RelatedLine
from bagnet_lightning.reporting.seeds import deviation, distinct, mean, values
from bagnet_lightning.reporting.table import Line, Table

PLAIN_WIDTH = 120  # characters, if the output is not a terminal
# Columns that a narrow terminal leaves out, in this order. table.md and the CSV files have all columns.
EXPENDABLE = ("img/s", "params", "time", "top-5", "row", "n", "status", "diff.")
RELATED_EXPENDABLE = ("top-5", "status", "n", "without keypoints", "size", "training")
RELATED, PRETRAINING = "Related systems", "Pretraining"  # headings


def print_table(table: Table, console: Console) -> None:
    """Prints as many columns as fit, then the notes. The console is at least 120 wide if it is no terminal."""
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    dropped = []
    if table.lines:
        dropped += _print_part(columns.table1_short(table), EXPENDABLE, [line.status for line in table.lines], console)
    if table.related:
        console.print(RELATED, style="bold")
        states = [line.status for line in table.related]
        dropped += _print_part(columns.related_short(table), RELATED_EXPENDABLE, states, console)
    if table.pretrainings:
        console.print(PRETRAINING, style="bold")
        states = [run["status"] for run in table.pretrainings]
        cells = columns.pretrainings(table)
        backbones = cells.pop("backbone")  # paths are too long for a column, and meant to be copied
        dropped += _print_part(cells, ("by colour", "status"), states, console)
        for path in filter(None, backbones):
            console.print(path, markup=False, highlight=False, soft_wrap=True)
        console.print()
    dropped = list(dict.fromkeys(dropped))
    for note in [*notes(table), *([f"No room here for {', '.join(dropped)}: see table.md."] if dropped else [])]:
        console.print(note, markup=False, highlight=False, soft_wrap=False)
    console.print()


def _print_part(
    cells: dict[str, list[str]], expendable: tuple[str, ...], states: list[str], console: Console
) -> list[str]:
    """Prints one part of the table and an empty line. Returns the columns that had no room."""
    dropped = []
    for name in expendable:
        if _width(cells) > console.width and cells.pop(name, None):
            dropped.append(name)
    view = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    fits = _width(cells) <= console.width
    for name in cells:
        view.add_column(name, justify="left" if name in TEXT_COLUMNS else "right", overflow="fold", no_wrap=fits)
    for state, line in zip(states, zip(*cells.values(), strict=True), strict=True):
        style = None if state == "finished" else "yellow" if state == "unfinished" else "red"
        view.add_row(*map(escape, line), style=style)
    console.print(view, soft_wrap=False)
    console.print()
    return dropped


def markdown(table: Table) -> str:
    """Returns the whole table as GitHub's Markdown."""
    lines = [f"# {table.folder.resolve().name}", ""]
    if table.lines:
        lines += [*_markdown_part(columns.table1(table)), ""]
    if table.related:
        lines += [f"## {RELATED}", "", *_markdown_part(columns.related(table)), ""]
    if table.pretrainings:
        lines += [f"## {PRETRAINING}", "", *_markdown_part(columns.pretrainings(table)), ""]
    return "\n".join([*lines, *(f"- {one_cell(note)}" for note in notes(table))]) + "\n"


def _markdown_part(cells: dict[str, list[str]]) -> list[str]:
    width = {name: max(len(name), 4, *map(len, column)) for name, column in cells.items()}
    padded = {name: [_pad(name, cell, width[name]) for cell in column] for name, column in cells.items()}
    rule = {name: "-" * width[name] if name in TEXT_COLUMNS else "-" * (width[name] - 1) + ":" for name in cells}
    rows = [[_pad(name, name, width[name]) for name in cells], rule.values(), *zip(*padded.values(), strict=True)]
    return [f"| {' | '.join(row)} |" for row in rows]


def csv_text(table: Table) -> str:
    """Returns one record per line of the networks, numbers unrounded (fractions, s, img/s); empty where unknown."""
    return csv_of_records([_record(line, table) for line in table.lines])


def related_csv_text(table: Table) -> str:
    """Returns one record per line of the related systems (fractions, s, bytes)."""
    settings = dict.fromkeys(name for line in table.related for name in line.settings)
    return csv_of_records([_related_record(line, table, [*settings]) for line in table.related])


def _record(line: Line, table: Table) -> dict:
    own = [name for name in table.measures if name != "val_balanced_accuracy"]
    return {
        "row": line.row,
        "model": line.model,
        "optimizer": line.optimizer,
        "pretrained": line.pretrained,
        "epochs": line.epochs,
        **line.settings,
        "accuracy": line.accuracy,
        "accuracy_std": line.std,
        "n": len(line.runs) if line.status == "finished" else 0,
        "paper_accuracy": line.paper and line.paper.accuracy,
        "paper_row": line.paper and line.paper.row,
        "difference": line.difference,
        "not_comparable": "; ".join(line.not_comparable),
        "top5_accuracy": line.top5,
        **_mean_and_std("balanced_accuracy", values(line.runs, "val_balanced_accuracy")),
        **_mean_and_std("final_accuracy", values(line.runs, "final_val_accuracy")),
        **{key: value for name in own for key, value in _mean_and_std(name, values(line.runs, name)).items()},
        "parameters": line.parameters,
        "images_per_second": line.images_per_second,
        "train_seconds": line.train_seconds,
        **_end_of_record(line, table),
    }


def _mean_and_std(name: str, numbers: list[float]) -> dict:
    return {name: mean(numbers), f"{name}_std": deviation(numbers)}


def _related_record(line: RelatedLine, table: Table, settings: list[str]) -> dict:
    config = leaves(line.runs[0]["config"])
    return {
        "system": line.system,
        "features": line.features,
        "encoding": line.encoding,
        "classifier": line.classifier,
        **{name: config.get(name) for name in settings},
        "accuracy": line.accuracy,
        "accuracy_std": line.std,
        "n": len(line.runs) if line.status == "finished" else 0,
        "top5_accuracy": line.top5,
        "feature_seconds": line.feature_seconds,
        "train_seconds": line.train_seconds,
        "model_bytes": line.model_bytes,
        "parameters": line.parameters,
        "train_without_keypoints": line.without_keypoints["train"],
        "val_without_keypoints": line.without_keypoints["val"],
        "explains": line.explains,
        **_end_of_record(line, table),
    }


def _end_of_record(line: Line | RelatedLine, table: Table) -> dict:
    def all_values(name: str) -> str:
        return "; ".join(str(value) for value in distinct(line.runs, name) if value is not None)

    return {
        "status": line.status,
        "error": line.error,
        **{name: all_values(name) for name in ("seed", "device", "precision", "torch", "bagnet_lightning", "commit")},
        "folders": "; ".join(run["folder"].relative_to(table.folder).as_posix() for run in line.runs),
    }


def _width(cells: dict[str, list[str]]) -> int:
    """Returns the characters that a line of _print_part takes, with two between columns."""
    return sum(max(len(name), *map(len, column)) + 2 for name, column in cells.items()) - 2


def _pad(column: str, text: str, width: int) -> str:
    return text.ljust(width) if column in TEXT_COLUMNS else text.rjust(width)
