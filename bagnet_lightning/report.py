"""The results of a sweep beside the paper's: a table, Figure 2, learning curves and a page, from files alone.

    python -m bagnet_lightning.report runs=multirun_outputs/SWEEP
    python -m bagnet_lightning.report runs=multirun_outputs/SWEEP watch=true
    python -m bagnet_lightning.report runs=SWEEP,OTHER_SWEEP

Works while the sweep goes on, after a crash, and on another machine that has the runs' folders.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from omegaconf import DictConfig, ListConfig
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from bagnet_lightning.cli import command
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import write_bytes
from bagnet_lightning.reporting.settings import clipped, short
from bagnet_lightning.reporting.table import Line, Table, model_name, optimizer_name, read_table
from bagnet_lightning.standalone import data_uri

PLAIN_WIDTH = 120  # columns, where the output is not a terminal
# What a narrow terminal can do without, first to last. table.md and table.csv have it all.
EXPENDABLE = ("img/s", "params", "time", "top-5", "row", "n", "status", "diff.")
WORDS = ("model", "optimizer", "optim.", "pretrained", "status")  # columns of words; the others are of numbers


@command("report", lists=("runs",))
def main(config: DictConfig) -> None:
    if config.runs is None:
        raise UserError("whose results? add runs=multirun_outputs/SWEEP, the folder of a sweep")
    folders = [Path(folder) for folder in (config.runs if isinstance(config.runs, ListConfig) else [config.runs])]
    if type(config.port) is not int or not 0 <= config.port < 2**16:
        raise UserError(f"port={config.port}: port must be a whole number from 0 to 65535")
    if config.watch:
        watch(folders, config.port, Console())
    else:
        project = config.logger.get("project")
        if config.logger and (not project or len(folders) > 1):
            raise UserError("the report of one sweep can be logged, to logger=wandb; leave logger out, or ask for that")
        write_report(folders, Console(), config.out and Path(config.out), config.gallery, project)


def write_report(
    folders: Sequence[Path],
    console: Console,
    out: Path | None = None,
    gallery: bool = True,
    project: str | None = None,
) -> None:
    """Print the tables of the runs below `folders`; write index.html and, of a single sweep, its table and pictures.

    out: where to, by default beside the runs, and of several sweeps into A_and_B beside the first. gallery: whether
    the page shows evidence of the best BagNet, for which it must be loaded and run. project: of W&B, where the report
    of a single sweep is logged; None: nowhere.
    Raises UserError if there are no runs, and, after the table is printed, if nothing can be written.
    """
    from bagnet_lightning.reporting.page.data import page_data
    from bagnet_lightning.reporting.page.page import page

    tables = [read_table(folder) for folder in folders]
    for table in tables:
        if len(tables) > 1:
            console.print(f"{table.folder}\n", markup=False, highlight=False)
        if table.lines:
            print_table(table, console)
    files = {}
    if len(tables) == 1 and tables[0].lines:
        files = {
            "table.csv": csv_text(tables[0]).encode(),
            "table.md": markdown(tables[0]).encode(),
            **_pictures(*tables),
        }
    pictures = {Path(name).stem: data_uri(png, "image/png") for name, png in files.items() if name.endswith(".png")}
    data = page_data(tables, pictures, gallery, live=False)
    files["index.html"] = page(data).encode()

    place = out or _writable(folders, console)
    for name, content in files.items():
        try:
            place.mkdir(parents=True, exist_ok=True)
            write_bytes(place / name, content)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{place / name} cannot be written ({reason}); choose another folder with out=FOLDER"
            ) from error
        if tables[0].lines:
            console.print(str(place / name), markup=False, highlight=False, soft_wrap=True)
    if not any(table.lines for table in tables):
        raise UserError(
            f"runs={','.join(map(str, folders))}: no runs in it, as {place / 'index.html'} says too; train some there, "
            "or give the folder of another sweep"
        )
    if project:
        from bagnet_lightning.reporting.wandb_report import log_report

        log_report(project, tables[0].folder.resolve().name, place, files, data["gallery"])


def watch(folders: Sequence[Path], port: int, console: Console) -> None:
    """Serve the page of `folders` on this machine, read anew while runs go on, until Ctrl-C. Writes nothing."""
    from bagnet_lightning.reporting.page.data import page_data
    from bagnet_lightning.reporting.page.server import Server

    def read() -> dict:
        return page_data([read_table(folder) for folder in folders], {}, with_gallery=False, live=True)

    with Server(port, read) as server:
        server.data()  # a folder that is not there should be said now
        console.print(f"{server.url}  (Ctrl-C ends)", highlight=False)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print()


def _pictures(table: Table) -> dict[str, bytes]:
    from bagnet_lightning.reporting.figures import draw_curves, draw_figure2

    pictures = {}
    for name, draw in (("figure2.png", draw_figure2), ("curves.png", draw_curves)):
        stream = io.BytesIO()
        draw(table).savefig(stream, format="png")
        pictures[name] = stream.getvalue()
    return pictures


def _writable(folders: Sequence[Path], console: Console) -> Path:
    """Where a report belongs, or, with a line that says so, the current folder's report_NAME."""
    names = "_and_".join(folder.resolve().name for folder in folders)
    place = folders[0] if len(folders) == 1 else folders[0].parent / names
    try:
        TemporaryFile(dir=place if place.exists() else place.parent).close()
    except OSError as error:
        elsewhere = Path(f"report_{names}")
        reason = f"{place} cannot be written ({error.strerror or error}), so the report is in {elsewhere}"
        console.print(reason, markup=False, highlight=False)
        return elsewhere
    return place


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


if __name__ == "__main__":
    main()
