"""All data that the page shows, from the tables of one sweep or several."""

import shlex
from collections import Counter
from datetime import datetime

from bagnet_lightning.config import leaves
from bagnet_lightning.errors import UserError
from bagnet_lightning.names import clipped, model_name, model_order, monitor_name
from bagnet_lightning.predictions import Predictions, read_predictions
from bagnet_lightning.reporting.figures import optimizer_colour
from bagnet_lightning.reporting.notes import notes
from bagnet_lightning.reporting.page.neighbours import distinguished, neighbours
from bagnet_lightning.reporting.page.rows import pretraining_rows, related_rows, rows_of, run_name
from bagnet_lightning.reporting.page.runs import common_config, describe
from bagnet_lightning.reporting.seeds import values
from bagnet_lightning.reporting.settings import differing_settings, of_networks, short
from bagnet_lightning.reporting.table import Table
from bagnet_lightning.results import finite, merit, read_jobs


def page_data(tables: list[Table], pictures: dict[str, str], with_gallery: bool, live: bool) -> dict:
    """Returns everything that the page shows, as JSON-compatible data.

    pictures: name -> data URI of what `report` draws. live: whether the page asks its server for newer data.
    """
    names = _sweep_names(tables)
    prefixes = [f"{name}/" if len(tables) > 1 else "" for name in names]
    runs, classes = {}, []
    for prefix, table in zip(prefixes, tables, strict=True):
        runs |= _runs_of(table, prefix, classes)
    settings = list(dict.fromkeys(setting for table in tables for setting in table.settings))
    rows = rows_of(tables, prefixes)
    told = of_networks(settings, ((row["model"], row["settings"]) for row in rows))
    with_gallery = with_gallery and any(table.lines for table in tables)
    gallery, reason = _gallery(tables, prefixes) if with_gallery else (None, None)
    models = sorted({row["model"] for row in rows}, key=model_order)
    data = {
        "title": " and ".join(names),
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
        "live": live,
        "sweeps": [
            {
                "name": name,
                "folder": str(table.folder),
                "notes": _notes(table),
                "monitors": [monitor_name(monitor) for monitor in table.monitors],
            }
            for name, table in zip(names, tables, strict=True)
        ],
        "between": _between(tables),
        "states": Counter(run["state"] for run in runs.values()),
        "settings": [
            {"key": setting, "name": name, "of_networks": setting in told} for setting, name in short(settings).items()
        ],
        "models": [[model, model_name(model)] for model in models],
        "colours": {row["optimizer"]: optimizer_colour(row["optimizer"]) for row in rows},
        "rows": rows,
        "related": related_rows(tables, names, prefixes),
        "pretrainings": pretraining_rows(tables, names, prefixes),
        "common": common_config([run for run in runs.values() if "config" in run]),
        "classes": classes,
        "runs": runs,
        "gallery": gallery,
        "without_gallery": reason,
        "pictures": pictures,
    }
    return finite(data)


def _sweep_names(tables: list[Table]) -> list[str]:
    """Returns the names of the tables' folders, or whole paths if two are the same."""
    names = [table.folder.resolve().name for table in tables]
    return names if len({*names}) == len(names) else [str(table.folder) for table in tables]


def _runs_of(table: Table, prefix: str, classes: list[list[str]]) -> dict[str, dict]:
    """Returns the runs by name on the page. Adds lists of class names to `classes`; runs hold the index of theirs."""
    jobs = read_jobs(table.folder)
    runs = {}
    for part in distinguished(table):
        cells = {prefix + run_name(run, table): cell for run, _, cell in part}
        accuracies = {prefix + run_name(run, table): run.get("best_val_accuracy") for run, *_ in part}
        predictions = {name: _predictions(run) for name, (run, *_) in zip(cells, part, strict=True)}
        for name, (run, title, _) in zip(cells, part, strict=True):
            described = describe(run, jobs.get(name.removeprefix(prefix)), predictions[name])
            if confusion := described["confusion"]:
                if confusion["classes"] not in classes:
                    classes.append(confusion["classes"])
                confusion["classes"] = classes.index(confusion["classes"])
            runs[name] = described | {
                "title": f"{title} ({prefix.removesuffix('/')})" if prefix else title,
                "neighbours": neighbours(name, cells, accuracies, predictions),
                "optimizer": run["optimizer"] or "?",
                "model": run["model"] or "?",
            }
    waiting = {prefix + name: {"state": "waiting"} for name in jobs}
    return runs | {name: run for name, run in waiting.items() if name not in runs}


def _predictions(run: dict) -> Predictions | ValueError | None:
    try:
        return read_predictions(run["folder"])
    except ValueError as error:
        return error


def _notes(table: Table) -> list[str]:
    """Returns the table's notes except those on single runs, and a warning if the runs' versions differ."""
    finished = [run for run in table.runs if run["status"] == "finished"]
    versions = {
        name: sorted({str((run.get("versions") or {}).get(name, "unknown")) for run in finished})
        for name in ("bagnet_lightning", "torch")
    }
    mixed = [f"{name} {', '.join(values)}" for name, values in versions.items() if len(values) > 1]
    differing = [f"Runs were made by different versions: {'; '.join(mixed)}."] if mixed else []
    return notes(table, single_runs=False) + differing


def _between(tables: list[Table]) -> list[list[str]]:
    """Returns [key, value in each sweep] of the settings that are constant in each sweep and differ between them."""
    if len(tables) < 2:
        return []
    sides = [[run for line in table.lines for run in line.runs if run["config"]] for table in tables]
    between = []
    for key in differing_settings([run for side in sides for run in side]):
        values = [{clipped(leaves(run["config"]).get(key, "none")) for run in side} for side in sides]
        if all(len(distinct) == 1 for distinct in values) and key != "sweep":
            between.append([key, *(next(iter(distinct)) for distinct in values)])
    return between


def _gallery(tables: list[Table], prefixes: list[str]) -> tuple[dict | None, str | None]:
    """Returns (evidence of the best BagNet, None), or (None, why there is none)."""
    finished = [
        (run, prefix, table)
        for prefix, table in zip(prefixes, tables, strict=True)
        for line in table.lines
        for run in line.runs
        if run["status"] == "finished" and run.get("receptive_field") and run.get("best_val_accuracy") is not None
    ]
    if not finished:
        return None, "There is no finished BagNet."
    monitors = {run["config"].get("monitor") for run, *_ in finished}
    monitor = monitors.pop() if len(monitors) == 1 else None  # else only accuracy compares them

    def order(found: tuple[dict, str, Table]) -> float:
        known = values(found[:1], monitor)
        return merit(monitor, known[0]) if known else found[0]["best_val_accuracy"]

    run, prefix, table = max(finished, key=order)
    name, checkpoint = prefix + run_name(run, table), run["folder"] / "best.ckpt"
    try:
        predictions = read_predictions(run["folder"])
        if not checkpoint.exists() or predictions is None:
            missing = "predictions.npz" if checkpoint.exists() else "best.ckpt"
            return None, f"{missing} of the best BagNet, {name}, is missing."
        from bagnet_lightning.reporting.page.gallery import gallery

        items = gallery(checkpoint, predictions)
    except (UserError, ValueError, RuntimeError) as error:  # the last when others use the GPU, too
        return None, f"The best BagNet, {name}: {str(error).partition(chr(10))[0]}."
    command = ["python", "-m", "bagnet_lightning.explain", f"checkpoint={checkpoint.as_posix()}", "split=val"]
    return {"run": name, "items": items, "command": shlex.join(command)}, None
