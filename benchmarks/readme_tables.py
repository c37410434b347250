"""Rewrites the tables of README.md from the files in results/: `make readme-tables`.

python benchmarks/readme_tables.py

A table stands between <!-- NAME --> and <!-- /NAME -->. Cells of runs that were not made are empty.
"""

import csv
import json
import re
from collections import defaultdict
from pathlib import Path

from bagnet_lightning.analysis.figures import FILL_NAMES, METHODS
from bagnet_lightning.files import write_text
from bagnet_lightning.names import model_name, optimizer_name
from bagnet_lightning.table1 import paper_rows

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "results"
MODELS = {  # (model, stem) as in the tables of report -> name
    ("bagnet9", ""): "BagNet-9",
    ("bagnet17", ""): "BagNet-17",
    ("bagnet33", ""): "BagNet-33",
    ("resnet18", "imagenet"): "ResNet-18, ordinary stem",
    ("resnet18", "small"): "ResNet-18, small stem",
}
CURVES = [(kind, fill) for kind in ("insertion", "deletion") for fill in FILL_NAMES]
BETTER = {"insertion": "↑", "deletion": "↓"}


def table1() -> str:
    """Returns the 17 rows of the paper beside ours, from results/table1_paper.csv, the table.csv of such a sweep."""
    runs = finished("table1_paper.csv")
    ours = defaultdict(list)
    for run in runs:
        if run["paper_row"] and not run["not_comparable"]:
            ours[int(run["paper_row"])].append(accuracy(run))
    rows = [
        [
            str(row.row),
            model_name(row.model),
            optimizer_name(row.optimizer),
            "ImageNet" if row.pretrained else "",
            str(row.epochs),
            f"{row.accuracy:.4f}",
            *map(" / ".join, zip(*ours.get(row.row, [["", ""]]), strict=True)),  # one seed on two machines is not n=2
        ]
        for row in paper_rows()
    ]
    return markdown(["row", "model", "optimizer", "pretrained", "epochs", "paper", "ours", "n"], rows) + origin(runs)


def modern() -> str:
    """Returns each model's best row from scratch beside recipe=modern, from results/table1_modern.csv.

    For 15 epochs, and for 5 where that was run.
    """
    runs = finished("table1_modern.csv")
    ours = {}
    for run in runs:  # the stem has a column only where runs differ in it
        stem = run.get("model.stem") or ("imagenet" if run["model"] == "resnet18" else "")
        ours[run["model"], stem, int(run["epochs"])] = run
    rows = []
    for (model, stem), name in MODELS.items():
        for epochs in (5, 15):
            run = ours.get((model, stem, epochs))
            accuracies = [
                row.accuracy
                for row in paper_rows()
                if (row.model, row.epochs, row.pretrained) == (model, epochs, False) and stem != "small"
            ]
            if run or epochs == 15:
                rows.append([name, str(epochs), f"{max(accuracies):.4f}" if accuracies else "", *accuracy(run)])
    return markdown(["model", "epochs", "paper's best from scratch", "`recipe=modern`", "n"], rows) + origin(runs)


def evidence() -> str:
    """Returns the results of `analyze` for the maps and for the networks, from two files of results/evidence."""
    files = [RESULTS / "evidence" / name for name in ("analysis_bagnet33.json", "analysis.json")]
    networks = [network for file in files for network in json.loads(file.read_text(encoding="utf-8"))["networks"]]
    rows_of_maps = [
        [
            network["name"],
            name,
            *(cell(network["masked"][fill][method][kind]["area"]) for kind, fill in CURVES),
            cell(network["pointing"].get(method, {}).get("hits")),
        ]
        for network in networks
        for method, (name, _) in METHODS.items()
        if method in network["masked"]["zero"]
    ]
    curves = [f"{kind} area {BETTER[kind]}, {FILL_NAMES[fill]}" for kind, fill in CURVES]
    sizes = [f"unchanged, {size} px tiles shuffled" for size in networks[0]["shuffled"]["tile"] if size]
    rows_of_networks = [
        [
            network["name"],
            cell(network["shuffled"]["accuracy"][-1]),
            cell(network.get("additivity_error")),
            *map(cell, network["shuffled"]["unchanged"][: len(sizes)]),
        ]
        for network in networks
    ]
    return "\n".join(
        [
            markdown(["", "map", *curves, "strongest pixel in the object's box ↑"], rows_of_maps),
            markdown(["", "accuracy", "additivity error of the logits", *sizes], rows_of_networks),
        ]
    )


def related() -> str:
    """Returns the systems that the paper builds on: results/related/related.csv (ten classes) and all_classes.csv."""
    all_classes = {run["system"]: run for run in finished("related/all_classes.csv")}
    rows = [
        [
            run["system"],
            *accuracy(run)[:1],
            *accuracy(all_classes.get(run["system"]))[:1],
            *(f"{float(run[name]):.0f} s" for name in ("feature_seconds", "train_seconds")),
            f"{float(run['model_bytes']) / 2**20:.1f} MiB",
            run["explains"] or "nothing",
        ]
        for run in finished("related/related.csv")
    ]
    return markdown(["system", "ten classes", "all 200", "feature time", "training time", "size", "explains"], rows)


def cell(number: dict | float | None) -> str:
    """Formats a number of an analysis, with its standard error if it has one; empty where a network has none."""
    if number is None:
        return ""
    return f"{number['mean']:.3f} ± {number['se']:.3f}" if isinstance(number, dict) else f"{number:.1e}"


TABLES = {"table1": table1, "modern": modern, "evidence": evidence, "related": related}


def finished(name: str) -> list[dict[str, str]]:
    """Returns the finished runs in results/`name`, a table of `report`; none if there is no such file."""
    path = RESULTS / name
    return [run for run in csv.DictReader(path.open()) if run["status"] == "finished"] if path.exists() else []


def accuracy(run: dict[str, str] | None) -> list[str]:
    """Returns the cells of mean and standard deviation over n seeds, and of n."""
    if run is None:
        return ["", ""]
    spread = f" ± {float(run['accuracy_std']):.4f}" if run["accuracy_std"] else ""
    return [f"{float(run['accuracy']):.4f}{spread}", run["n"]]


def origin(runs: list[dict[str, str]]) -> str:
    """Returns the line below a table: device, precision, torch and commit of its runs."""
    if not runs:
        return "\nEmpty cells: not run yet.\n"
    columns = ("device", "precision", "torch", "commit")
    used = [" / ".join(dict.fromkeys(part for run in runs for part in run[name].split("; "))) for name in columns]
    return "\n{}, {}, torch {}, commit {}. Empty cells: not run yet.\n".format(*used)


def markdown(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(cell.strip() for cell in line)} |\n" for line in lines)


def with_tables(text: str) -> str:
    """Returns `text` with the table between each pair of markers replaced."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text, count = re.subn(f"{start}\n.*?{end}", lambda _: f"{start}\n{table()}{end}", text, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise SystemExit(f"README.md: {start} and {end} are needed once each")
    return text


if __name__ == "__main__":
    write_text(README, with_tables(README.read_text(encoding="utf-8")))
