"""The report of one sweep or several: printed, written beside the runs, or served while they go on."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from rich.console import Console

from bagnet_lightning.errors import UserError
from bagnet_lightning.files import write_bytes, writing
from bagnet_lightning.presentation.plots import png
from bagnet_lightning.presentation.standalone import data_uri
from bagnet_lightning.reporting.table import Table, read_table
from bagnet_lightning.reporting.text import csv_text, markdown, print_table, related_csv_text


def write_report(
    folders: Sequence[Path],
    console: Console,
    out: Path | None = None,
    gallery: bool = True,
    project: str | None = None,
) -> None:
    """Prints the tables of the runs below `folders`; writes index.html and, for one sweep, its tables and pictures.

    out: folder to write to; by default the sweep's, for several sweeps A_and_B beside the first. gallery: whether the
    page shows evidence of the best BagNet, for which it must be loaded and run. project: W&B project that the report of
    a single sweep is logged to; None: it is not logged.
    Raises UserError if there are no runs, and, after the table is printed, if nothing can be written.
    """
    from bagnet_lightning.reporting.page.data import page_data
    from bagnet_lightning.reporting.page.page import results_page

    tables = [read_table(folder) for folder in folders]
    if not any(table.runs for table in tables):
        raise UserError(
            f"runs={','.join(map(str, folders))}: no runs in it; train some there, or give the folder of another sweep"
        )
    for table in tables:
        if len(tables) > 1:
            console.print(f"{table.folder}\n", markup=False, highlight=False)
        if table.runs:
            print_table(table, console)
    place = out or _writable(folders, console)
    files = _files(*tables) if len(tables) == 1 else {}
    _write(files, place)  # before a network is loaded and run for the page
    pictures = {
        Path(name).stem: data_uri(content, "image/png") for name, content in files.items() if name.endswith(".png")
    }
    data = page_data(tables, pictures, gallery, live=False)
    _write(html := {"index.html": results_page(data).encode()}, place)
    files |= html
    for name in files:
        console.print(str(place / name), markup=False, highlight=False, soft_wrap=True)
    if project:
        from bagnet_lightning.reporting.wandb_report import log_report

        log_report(project, tables[0].folder.resolve().name, place, files, data["gallery"])


def _write(files: dict[str, bytes], place: Path) -> None:
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_bytes(place / name, content)


def watch(folders: Sequence[Path], port: int, console: Console) -> None:
    """Serves the page of `folders` on this machine, updated while runs go on, until Ctrl-C. Writes nothing."""
    from bagnet_lightning.reporting.page.data import page_data
    from bagnet_lightning.reporting.page.server import Server

    def read() -> dict:
        return page_data([read_table(folder) for folder in folders], {}, with_gallery=False, live=True)

    with Server(port, read) as server:
        server.data()  # raises UserError now if a folder is missing
        console.print(f"{server.url}  (Ctrl-C ends)", highlight=False)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print()


def _files(table: Table) -> dict[str, bytes]:
    """Returns name -> content of the tables and pictures: of networks, related systems, or both."""
    files = {}
    if table.lines:
        files["table.csv"] = csv_text(table).encode()
    if table.related:
        files["related.csv"] = related_csv_text(table).encode()
    if table.runs:
        files["table.md"] = markdown(table).encode()
    if table.lines:
        from bagnet_lightning.reporting.figures import draw_curves, draw_figure2

        for name, draw in (("figure2.png", draw_figure2), ("curves.png", draw_curves)):
            files[name] = png(draw(table))
    return files


def _writable(folders: Sequence[Path], console: Console) -> Path:
    """Returns the folder that a report belongs in; if it cannot be written, prints a line and returns ./report_NAME."""
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
