"""What the runs of one line of a table say together: numbers over seeds, or why there are none."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SeedsLine:
    """Of a table: one finished run, the seeds of one configuration, or one run that did not finish.

    Accuracies are shares; numbers are means over `runs`, std is their standard deviation (ddof=1) from two runs on.
    """

    runs: list[dict]
    settings: dict[str, object]  # config keys that tell it from other lines
    status: str
    error: str | None
    accuracy: float | None
    std: float | None
    top5: float | None
    parameters: float | None
    train_seconds: float | None


def over_seeds(runs: list[dict]) -> dict:
    """The fields of a SeedsLine but its settings."""
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
    """What is known of a field of result.json."""
    return [run[name] for run in runs if run.get(name) is not None]


def told(run: dict, name: str) -> object:
    """A field of result.json, or of its versions; None if it is not known."""
    return run.get(name, (run.get("versions") or {}).get(name))


def mean(numbers: list[float]) -> float | None:
    return statistics.mean(numbers) if numbers else None


def deviation(numbers: list[float]) -> float | None:
    """The standard deviation of a sample (ddof=1), from two numbers on."""
    return statistics.stdev(numbers) if len(numbers) > 1 else None


def problem(run: dict) -> str | None:
    """One line for a run that did not finish."""
    if run["status"] == "finished":
        return None
    told = [" ".join(str(run["error"]).split())] if run.get("error") else []
    if run["status"] not in ("failed", "unreadable") and run.get("kind") != "related":  # which has no epochs
        told.append(f"{run['epochs_done']} of {run.get('epochs') or '?'} epochs done")
        if run.get("best_val_accuracy") is not None:
            told.append(f"best so far {run['best_val_accuracy']:.4f}")
    return ", ".join(told) or ("no result yet" if run["status"] == "unfinished" else "no reason given")
