"""result.json, written once by a run and read by everything else.

Light on purpose: reading a sweep needs neither torch nor a GPU, and never fails because of one broken file.
"""

import contextlib
import csv
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from bagnet_lightning.config import PARTS, digest, kind, plain
from bagnet_lightning.files import locked, write_text
from bagnet_lightning.names import network_name
from bagnet_lightning.table1 import departures, paper_row

#: Incremented when a field of result.json changes its meaning; files of a newer format are not interpreted.
FORMAT = 1

_NUMBERS = (
    *("epochs", "best_val_accuracy", "val_top5_accuracy", "val_balanced_accuracy", "final_val_accuracy", "loss"),
    *("val_triplet_accuracy", "colour_triplet_accuracy", "parameters", "model_bytes"),
    *("images_per_second", "train_seconds", "feature_seconds", "peak_memory_mib", "train_images", "val_images"),
    *("devices", "num_nodes", "best_epoch", "receptive_field"),
)
#: Types of the fields that readers compute with. A file with other types is not a result of this program.
_FIELD_TYPES = {
    **dict.fromkeys(("model", "optimizer", "status"), str),
    **dict.fromkeys(("kind", "method", "system", "config_dir", "config_digest"), (str, type(None))),
    **dict.fromkeys(("versions", "without_keypoints"), (dict, type(None))),
    **dict.fromkeys(_NUMBERS, (int, float, type(None))),
    "pretrained": (bool, type(None)),
    "overrides": (list, type(None)),
}
_SILENCE = 300  # s without an update after which a run on another machine counts as dead
_DEEPEST = 4  # levels below a sweep's folder that are searched for runs


def describe(config: DictConfig, overrides: list[str]) -> dict:
    """Returns the part of a result that is known before the run."""
    fields = _fields(plain(config))
    shared = {"data": config.data.name, "config_digest": digest(config), "overrides": overrides}
    if kind(config) == "related":
        return fields | shared
    row = None
    if kind(config) is None and config.data.name == "tiny_imagenet":
        row = paper_row(*(fields[name] for name in ("model", "optimizer", "pretrained", "epochs")))
        row = None if row and departures(plain(config), row) else row
    paper = row and {"row": row.row, "accuracy": row.accuracy}
    return {"row": row and row.row, **fields, "scheduler": _class(config.scheduler), **shared, "paper": paper}


def system_name(config: Mapping) -> str:
    """Returns a related system's name, "SIFT, 1000 words, linear SVM". Empty labels are left out."""
    labels = (config.get(part, {}).get("label") for part in PARTS)
    return ", ".join(str(label) for label in labels if label)


def _fields(config: Mapping) -> dict:
    """Returns the fields of a result that follow from its configuration, as far as a damaged one has them."""
    if kind(config) == "related":
        parts = {part: config.get(part, {}).get("name") for part in PARTS}
        names = {"model": parts["features"], "optimizer": parts["classifier"]}
        return {"kind": "related", "system": system_name(config), **parts, **names, "seed": config.get("seed")}
    model, epochs = config.get("model", {}), config.get("trainer", {}).get("max_epochs")
    optimizer = _class(config.get("optim", {}))
    return {
        **({"kind": "pretraining", "method": config["method"].get("name")} if kind(config) else {}),
        "model": network_name(model),
        "optimizer": optimizer and optimizer.lower(),
        "pretrained": model.get("pretrained", False) is not False,
        "epochs": epochs if isinstance(epochs, int) else None,
        "seed": config.get("seed"),
    }


def _class(group: Mapping) -> str | None:
    """Returns "Adam" for {_target_: torch.optim.Adam}."""
    return str(group.get("_target_") or "").rpartition(".")[2] or None


def write_result(run_folder: Path | str, result: dict) -> None:
    """Writes result.json whole or not at all; numbers that are not finite become null."""
    text = json.dumps({"format": FORMAT, **finite(result)}, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(Path(run_folder) / "result.json", text + "\n")


def read_run(folder: Path | str) -> dict:
    """Returns the contents of a run's folder: result.json's fields, folder (Path), config (dict) and epochs_done.

    kind: see config.kind.
    Never raises for what the folder holds. Without result.json the status is "unfinished"; with one that is cut, or of
    a newer format, "unreadable" and the reason in error. Both then have what config.yaml and metrics.csv contain.
    An unfinished run has progress (dict, see training/progress.py); None if it was stopped.
    """
    folder = Path(folder)
    config = _read_config(folder)
    metrics = read_metrics(folder)
    run = {
        "folder": folder,
        "config": config,
        "epochs_done": metrics[-1]["epoch"] if metrics else 0,
        "best_val_accuracy": _best_so_far(metrics, config.get("monitor")),
        **_fields(config),
    }
    try:
        text = (folder / "result.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {**run, "status": "unfinished", "error": None, "progress": _read_progress(folder)}
    except (OSError, UnicodeDecodeError) as error:
        return {**run, "status": "unreadable", "error": f"result.json cannot be read: {error}"}
    problem, result = _parse_result(text)
    if problem:
        return {**run, "status": "unreadable", "error": problem}
    return {**run, **result, "folder": folder, "config": config}


def own_measures(run: dict) -> list[str]:
    """Returns the fields of a result that are of the user's callbacks, which log them as val_..."""
    numbers = [name for name, value in run.items() if isinstance(value, (int, float))]
    return [name for name in numbers if name.startswith("val_") and name not in _NUMBERS]


def read_runs(folder: Path | str) -> list[dict]:
    """Returns every run in or below a sweep's folder, in the order of their paths; an empty list if there is none."""
    return [read_run(run_folder) for run_folder in _run_folders(Path(folder), _DEEPEST)]


def note_jobs(folder: Path, jobs: dict[str, list[str]]) -> None:
    """Adds the runs that a command is about to make to sweep.json: folder name -> overrides.

    Never raises: without the file, only reports of the sweep lack something.
    """
    with contextlib.suppress(OSError), locked(folder, wait=True):
        write_text(folder / "sweep.json", json.dumps({"jobs": {**read_jobs(folder), **jobs}}, indent=1) + "\n")


def read_jobs(folder: Path) -> dict[str, list[str]]:
    """Returns the overrides of every run ever requested in a sweep's folder, by the name of the run's folder."""
    try:
        jobs = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["jobs"]
        return {str(name): [str(override) for override in overrides] for name, overrides in jobs.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def read_metrics(folder: Path | str) -> list[dict]:
    """Returns the rows of metrics.csv, one per finished epoch, in order: floats, epoch and step as int, gaps as None.

    A truncated last line is left out. If an epoch was run again after an interruption, its last row counts.
    """
    try:
        text = (Path(folder) / "metrics.csv").read_text(encoding="utf-8", errors="replace").replace("\0", "")
    except OSError:
        return []
    rows, (header, *lines) = {}, text.splitlines() or [""]
    for line in lines:
        try:
            (cells,) = csv.DictReader([header, line])
            row = {name: _number(value) for name, value in cells.items()}
            row["epoch"], row["step"] = int(row["epoch"]), None if row.get("step") is None else int(row["step"])
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, csv.Error):
            continue  # truncated, or not a line of numbers
        rows[row["epoch"]] = row
    return [rows[epoch] for epoch in sorted(rows)]


def finite(value):
    """Returns `value` with None for every number in it that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(text: str) -> float | None:
    return number if math.isfinite(number := float(text)) else None


def _number(text: str) -> float | None:
    return float(text) if text.strip() else None


def _parse_result(text: str) -> tuple[str | None, dict]:
    """Returns (what is wrong, or None; the fields, none if something is wrong)."""
    try:
        result = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)  # NaN is not a result
    except (ValueError, RecursionError):
        return "result.json is cut or damaged; remove it and run again", {}
    if not isinstance(result, dict):
        return "result.json is not a result of this program", {}
    if (found := result.get("format", FORMAT)) != FORMAT:
        return f"result.json has format {found}, this version reads format {FORMAT}; update bagnet_lightning", {}
    wrong = [name for name, types in _FIELD_TYPES.items() if name in result and not isinstance(result[name], types)]
    wrong += [name for name, value in result.items() if isinstance(value, int) and abs(value) > 2**63]
    if not wrong and not all(isinstance(override, str) for override in result.get("overrides") or ()):
        wrong = ["overrides"]
    missing = [name for name in ("model", "optimizer", "status") if name not in result]
    if wrong or missing:
        return f"result.json is not a result of this program (see {', '.join(wrong + missing)})", {}
    return None, result


def _best_so_far(metrics: list[dict], monitor: str | None) -> float | None:
    """Returns the accuracy of the epoch that is best by `monitor`."""
    known = [row for row in metrics if row.get("val_accuracy") is not None]
    name = monitor if known and monitor in known[0] else "val_accuracy"
    best = max(known, key=lambda row: merit(name, row.get(name)), default=None)
    return best and best["val_accuracy"]


def lower_is_better(monitor: str) -> bool:
    """Whether a measure is a loss: its name ends in "loss"."""
    return monitor.endswith("loss")


def merit(monitor: str, value: float | None) -> float:
    """Returns what is higher for a better epoch, of which the first of equal ones counts.

    value: of the measure `monitor`; nan and None are less than all others, as nan is for Lightning.
    """
    if value is None or math.isnan(value):
        return -math.inf
    return -value if lower_is_better(monitor) else value


def progress_file(folder: Path) -> Path:
    """Returns the path of the file with a run's progress, which is deleted when the run ends."""
    return folder / "progress.json"


def write_progress(folder: Path, **values: float | None) -> None:
    """Writes `values` and the process, which distinguishes a run that goes on from one that was killed.

    A file that cannot be written does not stop the run.
    """
    with contextlib.suppress(OSError):
        state = values | {"pid": os.getpid(), "host": socket.gethostname()}
        write_text(progress_file(folder), json.dumps(state) + "\n")


def _read_progress(folder: Path) -> dict | None:
    """Returns progress.json if its process is alive, as far as this machine can know, else None."""
    path = progress_file(folder)
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
        silent = time.time() - path.stat().st_mtime > _SILENCE
        here = progress["host"] == socket.gethostname() and Path("/proc").exists()  # not on macOS
        gone = here and not Path(f"/proc/{progress['pid']}").exists()
        return None if silent or gone else progress
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_config(folder: Path) -> dict:
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except Exception:  # whatever a damaged file makes YAML or OmegaConf raise
        return {}
    groups = ("model", "optim", "scheduler", "data", "trainer", "method", *PARTS)
    is_ours = isinstance(config, dict) and all(isinstance(config.get(name, {}), dict) for name in groups)
    return config if is_ours else {}


def _run_folders(folder: Path, levels: int) -> list[Path]:
    """Returns folders with a config or a result, which are not searched further; W&B's and hidden ones never are."""
    try:
        if (folder / "config.yaml").is_file() or (folder / "result.json").is_file():
            return [folder]
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:  # removed, or not readable
        return []
    inner = [path for path in inner if not path.name.startswith(".") and path.name != "wandb"] if levels else []
    return [run for path in inner for run in _run_folders(path, levels - 1)]
