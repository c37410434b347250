"""A sweep's table as text: for a terminal, as Markdown and as CSV."""

import csv
import io

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from bagnet_lightning.reporting.settings import clipped, short
from bagnet_lightning.reporting.table import Line, Table, model_name, optimizer_name

PLAIN_WIDTH = 120  # columns, where the output is not a terminal
# What a narrow terminal can do without, first to last. table.md and table.csv have it all.
EXPENDABLE = ("img/s", "params", "time", "top-5", "row", "n", "status", "diff.")
WORDS = ("model", "optimizer", "optim.", "pretrained", "status")  # columns of words; the others are of numbers


def print_table(table: Table, console: Console) -> None:
    """As many columns as fit, then the notes. Plain text of 120 columns where the console is not a terminal."""
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    width = console.width
    columns = _short_columns(table)
    gone = []
    if all(cell == "no" for cell in columns["pretrained"]):
        del columns["pretrained"]
    for name in EXPENDABLE:
        if _width(columns) > width and columns.pop(name, None):
            gone.append(name)
    view = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in columns:
        view.add_column(
            name, justify="left" if name in WORDS else "right", overflow="fold", no_wrap=_width(columns) <= width
        )
    for line, cells in zip(table.lines, zip(*columns.values(), strict=True), strict=True):
        style = None if line.status == "finished" else "yellow" if line.status == "unfinished" else "red"
        view.add_row(*map(escape, cells), style=style)
    console.print(view, soft_wrap=False)
    notes = [*table.notes, f"No room here for {', '.join(gone)}: see table.md."] if gone else table.notes
    console.print()
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=False)
    console.print()


def markdown(table: Table) -> str:
    """The whole table as GitHub shows it."""
    columns = _long_columns(table)
    width = {name: max(len(name), 4, *map(len, cells)) for name, cells in columns.items()}
    padded = {name: [_pad(name, cell, width[name]) for cell in cells] for name, cells in columns.items()}
    rule = {name: "-" * width[name] if name in WORDS else "-" * (width[name] - 1) + ":" for name in columns}
    rows = [[_pad(name, name, width[name]) for name in columns], rule.values(), *zip(*padded.values(), strict=True)]
    lines = [f"# {table.folder.resolve().name}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join([*lines, *(f"- {_one_cell(note)}" for note in table.notes)]) + "\n"


def csv_text(table: Table) -> str:
    """One record a line of the table, every number as it was measured (shares, s, img/s); empty where unknown."""
    stream = io.StringIO()
    records = [_record(line, table) for line in table.lines]
    writer = csv.DictWriter(stream, fieldnames=records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def _record(line: Line, table: Table) -> dict:
    def all_values(name: str) -> str:
        values = (run.get(name, (run.get("versions") or {}).get(name)) for run in line.runs)
        return "; ".join(dict.fromkeys(str(value) for value in values if value is not None))

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
        "parameters": line.parameters,
        "images_per_second": line.images_per_second,
        "train_seconds": line.train_seconds,
        "status": line.status,
        "error": line.error,
        **{name: all_values(name) for name in ("seed", "device", "precision", "torch", "bagnet_lightning", "commit")},
        "folders": "; ".join(run["folder"].relative_to(table.folder).as_posix() for run in line.runs),
    }


def _long_columns(table: Table) -> dict[str, list[str]]:
    """Heading -> the cell of every line, as text."""
    lines = table.lines
    return {
        "row": [_text(line.row) for line in lines],
        "model": [model_name(line.model) for line in lines],
        "optimizer": [optimizer_name(line.optimizer) for line in lines],
        "pretrained": [_one_cell(line.pretrained) for line in lines],
        "epochs": [_text(line.epochs) for line in lines],
        **{name: [_one_cell(_text(line.settings[name])) for line in lines] for name in table.settings},
        "accuracy": [_accuracy(line) + (f" (n={len(line.runs)})" if line.std is not None else "") for line in lines],
        "paper": [_paper(line) for line in lines],
        "difference": [_text(line.difference, "+.4f") for line in lines],
        "top-5": [_text(line.top5, ".4f") for line in lines],
        "parameters": [_text(line.parameters, ",.0f") for line in lines],
        "img/s": [_text(line.images_per_second, ",.0f") for line in lines],
        "train time": [_duration(line.train_seconds) for line in lines],
        "status": [line.status for line in lines],
    }


def _short_columns(table: Table) -> dict[str, list[str]]:
    """The same for a terminal."""
    names = {name: short(name) for name in table.settings}
    names = {name: word if [*names.values()].count(word) == 1 else name for name, word in names.items()}
    names |= {"optimizer": "optim.", "parameters": "params", "difference": "diff.", "train time": "time"}
    columns = {}
    for name, cells in _long_columns(table).items():
        if name == "accuracy":
            columns[name] = [_accuracy(line) for line in table.lines]
            if any(line.std is not None for line in table.lines):
                columns["n"] = [str(len(line.runs)) if line.accuracy is not None else "" for line in table.lines]
        elif name == "parameters":
            columns["params"] = [_text(line.parameters and line.parameters / 1e6, ".2f", "M") for line in table.lines]
        else:
            columns[names.get(name, name)] = [*map(clipped, cells)]
    return columns


def _width(columns: dict[str, list[str]]) -> int:
    """Characters that a line of print_table takes: two between columns."""
    return sum(max(len(name), *map(len, cells)) + 2 for name, cells in columns.items()) - 2


def _accuracy(line: Line) -> str:
    return _text(line.accuracy, ".4f") + (f" ± {line.std:.4f}" if line.std is not None else "")


def _paper(line: Line) -> str:
    accuracy = _text(line.paper and line.paper.accuracy, ".4f")
    return f"({accuracy})" if line.not_comparable else accuracy


def _text(value, form: str = "", unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def _pad(column: str, text: str, width: int) -> str:
    return text.ljust(width) if column in WORDS else text.rjust(width)


def _one_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
