"""The runs of one line of a table, merged: numbers over seeds and folds, or why there are none."""

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bagnet_lightning.config import experiment


@dataclass(frozen=True, kw_only=True)
class SeedsLine:
    """A line of a table: one finished run, the seeds and folds of one configuration, or one run that did not finish.

    Accuracies are fractions; numbers are means over `runs`; std is the accuracy's standard deviation (ddof=1) if
    there are two or more.
    """

    runs: list[dict]
    settings: dict[str, object]  # config keys that distinguish it from other lines
    status: str
    error: str | None
    accuracy: float | None
    std: float | None
    top5: float | None
    parameters: float | None
    train_seconds: float | None


def repetitions(runs: list[dict], cell: Callable[[dict], tuple]) -> list[list[dict]]:
    """Returns the runs of each line: finished ones of one `cell` that repeat one experiment with other seeds or folds.

    A run that did not finish has a line of its own, and so has a training that is in another folder too: it is no other
    seed.
    """
    groups: dict[str, list[dict]] = {}
    copies = Counter()
    for run in runs:
        if run["status"] != "finished":
            groups[str(run["folder"])] = [run]
            continue
        training = run.get("config_digest") or run["folder"]
        trained = experiment(run["config"]) if run["config"] else run["folder"]
        groups.setdefault(repr((*cell(run), trained, copies[training])), []).append(run)
        copies[training] += 1
    return list(groups.values())


def over_seeds(runs: list[dict]) -> dict:
    """Returns the fields of a SeedsLine except its settings."""
    finished = [run for run in runs if run["status"] == "finished"]
    accuracies = values(finished, "best_val_accuracy")
    return {
        "runs": runs,
        "status": runs[0]["status"],
        "error": problem(runs[0]),
        "accuracy": mean(accuracies),
        "std": deviation(accuracies),
        "top5": mean(values(finished, "val_top5_accuracy")),
        "parameters": mean(values(runs, "parameters")),
        "train_seconds": mean(values(runs, "train_seconds")),
    }


def values(runs: Iterable[dict], name: str) -> list[float]:
    """Returns the known values of a field of result.json, which is a number."""
    return [run[name] for run in runs if isinstance(run.get(name), (int, float))]


def distinct(runs: Iterable[dict], name: str) -> list:
    """Returns the values of a field of result.json, or of its versions, each once; None where it is not known.

    The field of a continued run may hold several, "A / B".
    """
    found = [run.get(name, (run.get("versions") or {}).get(name)) for run in runs]
    parts = [[value] if value is None or isinstance(value, int) else str(value).split(" / ") for value in found]
    return list(dict.fromkeys(itertools.chain(*parts)))


def mean(numbers: list[float]) -> float | None:
    return statistics.mean(numbers) if numbers else None


def deviation(numbers: list[float]) -> float | None:
    """Returns the standard deviation of a sample (ddof=1); None for fewer than two numbers."""
    return statistics.stdev(numbers) if len(numbers) > 1 else None


def problem(run: dict) -> str | None:
    """Returns one line on a run that did not finish; None for one that did."""
    if run["status"] == "finished":
        return None
    parts = [" ".join(str(run["error"]).split())] if run.get("error") else []
    if run["status"] not in ("failed", "unreadable") and run.get("kind") != "related":  # these have no epochs
        parts.append(f"{run['epochs_done']} of {run.get('epochs') or '?'} epochs done")
        if run.get("best_val_accuracy") is not None:
            parts.append(f"best so far {run['best_val_accuracy']:.4f}")
    return ", ".join(parts) or ("no result yet" if run["status"] == "unfinished" else "no reason given")
