"""The notes below a sweep's table: runs that did not finish, values that cannot be compared, data and versions."""

from bagnet_lightning.config import NAMING, NOT_IN_DIGEST, within
from bagnet_lightning.reporting.seeds import distinct, problem
from bagnet_lightning.reporting.table import Table, pretraining_name
from bagnet_lightning.results import read_jobs

# Overrides that a column or the name of a related system already shows.
_IN_COLUMNS = (*NAMING, "table1", "model.pretrained", "trainer.max_epochs", "seed", "data.fold")


def notes(table: Table, single_runs: bool = True) -> list[str]:
    """Returns the notes on a table, the most important first; `single_runs`: also those on single runs."""
    runs = table.runs
    finished = [run for run in runs if run["status"] == "finished"]
    if not runs:
        return [f"There are no runs in {table.folder}."]
    waiting = len(read_jobs(table.folder).keys() - {run["folder"].name for run in runs})
    texts = [f"{len(finished)} of {len(runs) + waiting} runs finished.", *(_problems(table) if single_runs else [])]
    early = [run for run in finished if 0 < run["epochs_done"] < (run.get("epochs") or 0)]
    if early:
        stopped = ", ".join(f"{run['folder'].name} {run['epochs_done']} of {run['epochs']}" for run in early)
        texts.append(f"Stopped before their last epoch: {stopped}.")
    if waiting:
        texts.append(f"Not begun: {waiting}; the same command again goes on.")
    reasons = list(dict.fromkeys(reason for line in table.lines for reason in line.not_comparable))
    if reasons:
        texts.append(
            "(In parentheses) The paper's value, for orientation only: it is of the full Tiny ImageNet and its own "
            f"settings and cannot be compared. Here: {'; '.join(reasons)}."
        )
    if any(line.std is not None for line in [*table.lines, *table.related]):
        texts.append("± is the standard deviation over n runs that differ only in their seed or fold.")
    if any(any(line.without_keypoints.values()) for line in table.related):
        texts.append("Images without keypoints are classified all the same, and count in the accuracy.")
    commands = [run["overrides"] for run in runs if isinstance(run.get("overrides"), list)]
    shared = [override for override in commands[0] if all(override in other for other in commands)] if commands else []
    shared = [override for override in shared if _is_noted(override.partition("=")[0])]
    if shared:
        texts.append(f"All runs were asked for: {' '.join(shared)}.")
    return texts + _provenance(table)


def _is_noted(key: str) -> bool:
    """Whether an override of `key` changes what a run computes and is not shown in a column."""
    return not within(key, NOT_IN_DIGEST) and key not in _IN_COLUMNS


def _problems(table: Table) -> list[str]:
    """Returns one note for every run that did not finish."""
    entries = [(line.status, line.name, line.runs[0], line.error) for line in [*table.lines, *table.related]]
    entries += [(run["status"], pretraining_name(run), run, problem(run)) for run in table.pretrainings]
    return [
        f"{status}: {name} ({run['folder'].relative_to(table.folder)}): {error}"
        for status, name, run, error in entries
        if status != "finished"
    ]


def _provenance(table: Table) -> list[str]:
    """Returns a note on data, device and versions, or one for each part of the table if they are not the same."""
    parts = {
        "Table 1": [run for line in table.lines for run in line.runs],
        "Related systems": [run for line in table.related for run in line.runs],
        "Pretraining": table.pretrainings,
    }
    finished = {name: [run for run in runs if run["status"] == "finished"] for name, runs in parts.items()}
    finished = {name: runs for name, runs in finished.items() if runs}
    if len({_describe([{**run, "precision": None} for run in runs]) for runs in finished.values()}) == 1:
        return [_describe([run for runs in finished.values() for run in runs])]
    return [f"{name}: {_describe(runs)}" for name, runs in finished.items()]


def _describe(finished: list[dict]) -> str:
    def all_values(name: str, runs: list[dict] = finished) -> str:
        values = distinct(runs, name)
        return " / ".join(f"{value:,}" if isinstance(value, int) else str(value or "unknown") for value in values)

    networks = [run for run in finished if run.get("precision")]  # systems of local features have none
    precision = f", {all_values('precision', networks)}" if networks else ""
    return (
        f"Data: {all_values('data')}, {all_values('classes')} classes, {all_values('train_images')} train and "
        f"{all_values('val_images')} validation images. Device: {all_values('device')}{precision}. "
        f"torch {all_values('torch')}, bagnet_lightning {all_values('bagnet_lightning')}, "
        f"commit {all_values('commit')}."
    )
