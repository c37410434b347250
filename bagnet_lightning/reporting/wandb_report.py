"""The results of a sweep as one Weights & Biases run of type "report"."""

import base64
import csv
from io import BytesIO, StringIO
from pathlib import Path

import wandb
from PIL import Image

from bagnet_lightning.machine.wandb_account import wandb_mode


def log_report(project: str, sweep: str, place: Path, files: dict[str, bytes], gallery: dict | None) -> None:
    """Logs what `report` wrote: the tables, both pictures, the page, and the evidence that the page shows.

    place: folder for W&B's files, as for a run. gallery: from page_data. Another report of the same sweep is logged to
    the same W&B run. Online or offline, as for a run.
    """
    content = {"page": wandb.Html(files["index.html"].decode(), inject=False)}
    for name, file in (("table1", "table.csv"), ("related", "related.csv")):
        if file in files:
            header, *rows = csv.reader(StringIO(files[file].decode()))
            cells = [[_number(cell) for cell in row] for row in rows]
            content[name] = wandb.Table(header, cells, allow_mixed_types=True)  # seeds are "0; 1" of some lines
    for name in ("figure2", "curves"):
        if f"{name}.png" in files:
            content[name] = wandb.Image(Image.open(BytesIO(files[f"{name}.png"])))
    if gallery:
        content["gallery"] = [
            wandb.Image(_picture(evidence["png"]), caption=f"for {evidence['class']} | true: {item['label']}")
            for item in gallery["items"]
            for evidence in item["maps"]
        ]
    run = wandb.init(
        project=project,
        name=f"report of {sweep}",
        group=sweep,
        job_type="report",
        id=f"report-{sweep}",
        resume="allow",
        dir=place,
        mode=wandb_mode(),
        settings=wandb.Settings(quiet=True, console="off"),
    )
    run.log(content)
    run.finish()


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _picture(data_uri: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data_uri.partition(",")[2])))
