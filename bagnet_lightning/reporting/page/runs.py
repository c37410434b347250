"""The data of one run's section of the page, read from the run's folder alone."""

import shlex
from collections import Counter
from pathlib import Path

import numpy as np

from bagnet_lightning.config import leaves
from bagnet_lightning.predictions import IMAGES_PER_PAIR, PAIRS, SIDE, Predictions, most_confused
from bagnet_lightning.presentation.standalone import data_uri
from bagnet_lightning.reporting.columns import cell, duration, size, without_keypoints
from bagnet_lightning.results import read_metrics

LOG_BYTES, LOG_LINES = 8000, 40  # shown of train.log's end for a run that did not finish
COMMANDS = {"related": "classical", "pretraining": "pretrain"}  # by a run's kind
EXPLAINS = {
    "keypoints": "which keypoint spoke for which class",
    "patches": "which patch spoke for which class",
}
# Files that a finished run of each kind leaves beside its result, and what is lost without them.
LEFT = {
    None: {
        "best.ckpt": "this network cannot be evaluated or explained any more",
        "predictions.npz": "no confusions and no accuracy by class",
    },
    "related": {"model.safetensors": "this system cannot be explained any more"},
    "pretraining": {"backbone.safetensors": "nothing can be fine-tuned from this run any more"},
}
CURVES = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")


def state(run: dict) -> str:
    """Returns "finished", "running", "stopped", "failed", "diverged" or "unreadable"."""
    if run["status"] != "unfinished":
        return run["status"]
    return "running" if run["progress"] else "stopped"


def describe(run: dict, overrides: list[str] | None, predictions: Predictions | ValueError | None) -> dict:
    """Returns all of a run's data except its neighbours.

    overrides: those of the run in sweep.json. predictions: None if there are none, or why they cannot be read.
    """
    metrics = read_metrics(run["folder"])
    run_state = state(run)
    requested = run.get("overrides") or overrides
    options = ["--config-dir", run["config_dir"]] if run.get("config_dir") else []
    kind, folder = run.get("kind"), run["folder"]
    described = {
        "kind": kind,
        "state": run_state,
        "error": run.get("error"),
        "epochs": run.get("epochs"),
        "done": metrics[-1]["epoch"] if metrics else 0,
        "best": run.get("best_val_accuracy"),
        "progress": run.get("progress"),
        "command": requested
        and shlex.join(["python", "-m", f"bagnet_lightning.{COMMANDS.get(kind, 'train')}", *options, *requested]),
        "explain": None,
        "config": leaves(run["config"]),
        "curves": {"epoch": [row["epoch"] for row in metrics]}
        | {name: [_rounded(row.get(name)) for row in metrics] for name in CURVES},
        "facts": _facts(run),
        "log": None if run_state in ("finished", "running") else _log_tail(run["folder"]),
        "missing": _missing(folder, kind, run_state),
    }
    if run.get("explains") and (folder / "model.safetensors").exists():
        path = (folder / "model.safetensors").as_posix()
        described["explain"] = {
            "words": EXPLAINS.get(run["explains"], run["explains"]),
            "command": shlex.join(["python", "-m", "bagnet_lightning.explain", f"checkpoint={path}", "split=val"]),
        }
    described["confusion"] = _confusion(predictions) if isinstance(predictions, Predictions) else None
    if isinstance(predictions, ValueError):
        described["missing"].append(str(predictions))
    return described


def _missing(folder: Path, kind: str | None, state: str) -> list[str]:
    always = ["config.yaml"] if kind == "related" else ["config.yaml", "metrics.csv"]
    missing = [f"{name} is missing" for name in always if not (folder / name).exists()]
    if state == "finished":
        left = LEFT.get(kind, {})
        missing += [f"{name} is missing: {lost}" for name, lost in left.items() if not (folder / name).exists()]
    return missing


def common_config(runs: list[dict]) -> dict:
    """Removes values that most runs share from each run's "config" and returns them; the page merges them again."""
    keys = dict.fromkeys(key for run in runs for key in run["config"])
    common = {}
    for key in keys:
        values = [run["config"][key] for run in runs if key in run["config"]]
        most, count = Counter(map(repr, values)).most_common(1)[0]
        if 2 * count > len(runs):
            common[key] = next(value for value in values if repr(value) == most)
    for run in runs:
        config = run["config"]
        run["config"] = {k: v for k, v in config.items() if k not in common or repr(v) != repr(common[k])}
        run["without"] = [key for key in common if key not in config]
    return common


def _facts(run: dict) -> list[list[str]]:
    """Returns [name, value] of each known fact on a run."""
    seconds, devices = run.get("train_seconds"), (run.get("devices") or 1) * (run.get("num_nodes") or 1)
    versions = run.get("versions") or {}
    related = run.get("kind") == "related"
    facts = {
        "Validation accuracy" + ("" if related else " of the best epoch"): cell(run.get("best_val_accuracy"), ".4f"),
        "Best epoch": cell(run.get("best_epoch")),
        "Final validation accuracy": cell(run.get("final_val_accuracy"), ".4f"),
        "Top-5 accuracy": cell(run.get("val_top5_accuracy"), ".4f"),
        "Balanced accuracy": cell(run.get("val_balanced_accuracy"), ".4f"),
        "Speed": cell(run.get("images_per_second"), ",.0f", " images/s in training"),
        "Loss": cell(run.get("loss"), ".4f"),
        "Held-out triplets whose neighbour is nearer": cell(run.get("val_triplet_accuracy"), ".4f"),
        "Feature time": duration(run.get("feature_seconds")),
        "Training time": duration(seconds),
        "Cost": cell(seconds and seconds * devices / 3600, ".3f", " device hours"),
        "Device": cell(run.get("device")) and f"{devices} × {run['device']}",
        "Precision": cell(run.get("precision")),
        "Peak memory": cell(run.get("peak_memory_mib"), ",.0f", " MiB"),
        "Parameters": cell(run.get("parameters"), ",.0f"),
        "Model size": size(run.get("model_bytes")),
        "Images without keypoints": without_keypoints(run.get("without_keypoints") or {}),
        "Receptive field": cell(run.get("receptive_field"), "", " px"),
        "Data": cell(run.get("data")),
        "Training images": cell(run.get("train_images"), ","),
        "Validation images": cell(run.get("val_images"), ","),
        "Fold": cell(run["config"].get("data", {}).get("fold")) if run.get("validated_on") == "holdout" else "",
        "Seed": cell(run.get("seed")),
        "Versions": ", ".join(f"{name} {versions[name]}" for name in ("bagnet_lightning", "torch") if name in versions),
        "Commit": cell(run.get("commit")),
    }
    if related:  # these use CPU cores most of the time, not a device that is rented by the hour
        facts |= {"Cost": "", "Device": cell(run.get("device"))}
    return [[name, value] for name, value in facts.items() if value]


def _confusion(predictions: Predictions) -> dict:
    matrix = predictions.confusion()
    pairs = most_confused(matrix, PAIRS)
    classes = list(dict.fromkeys(index for pair in pairs for index in pair))
    return {
        "classes": predictions.class_names,
        "right": matrix.diagonal().tolist(),
        "images": matrix.sum(1).tolist(),
        "pairs": [[true, predicted, int(matrix[true, predicted])] for true, predicted in pairs],
        "among": classes,
        "matrix": matrix[np.ix_(classes, classes)].tolist(),
        "sheet": data_uri(predictions.sheet, "image/jpeg"),
        "side": SIDE,
        "each": IMAGES_PER_PAIR,
    }


def _log_tail(folder: Path) -> str | None:
    try:
        with (folder / "train.log").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return "\n".join(lines[-LOG_LINES:])


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.5g}")
