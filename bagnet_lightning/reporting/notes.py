"""What a reader of a sweep's table has to know: what did not finish, what cannot be compared, where it ran."""

from bagnet_lightning.config import NAMING, NOT_IN_DIGEST, within
from bagnet_lightning.reporting.seeds import problem, told
from bagnet_lightning.reporting.table import Table, pretraining_name
from bagnet_lightning.results import read_jobs

# Overrides that a column tells of, or the words of a related system.
_IN_COLUMNS = (*NAMING, "table1", "model.pretrained", "trainer.max_epochs", "seed")


def notes(table: Table) -> list[str]:
    """Most important first."""
    runs = table.runs
    finished = [run for run in runs if run["status"] == "finished"]
    if not runs:
        return [f"There are no runs in {table.folder}."]
    waiting = len(read_jobs(table.folder).keys() - {run["folder"].name for run in runs})
    said = [f"{len(finished)} of {len(runs) + waiting} runs finished.", *problems(table)]
    early = [run for run in finished if 0 < run["epochs_done"] < (run.get("epochs") or 0)]
    if early:
        told = ", ".join(f"{run['folder'].name} {run['epochs_done']} of {run['epochs']}" for run in early)
        said.append(f"Stopped before their last epoch: {told}.")
    if waiting:
        said.append(f"Not begun: {waiting}; the same command again goes on.")
    reasons = list(dict.fromkeys(reason for line in table.lines for reason in line.not_comparable))
    if reasons:
        said.append(
            "(In parentheses) The paper's value, for orientation only: it is of the full Tiny ImageNet and its own "
            f"settings and cannot be compared. Here: {'; '.join(reasons)}."
        )
    if any(line.std is not None for line in [*table.lines, *table.related]):
        said.append("± is the standard deviation over n runs that differ only in their seed.")
    if any(any(line.without_keypoints.values()) for line in table.related):
        said.append("Images without keypoints are classified all the same, and count in the accuracy.")
    asked = [run["overrides"] for run in runs if isinstance(run.get("overrides"), list)]
    shared = [override for override in asked[0] if all(override in other for other in asked)] if asked else []
    shared = [override for override in shared if _tells(override.partition("=")[0])]
    if shared:
        said.append(f"All runs were asked for: {' '.join(shared)}.")
    return said + _provenance(table)


def _tells(key: str) -> bool:
    """Whether an override of `key` says of a run what no column does."""
    return not within(key, NOT_IN_DIGEST) and key not in _IN_COLUMNS


def problems(table: Table) -> list[str]:
    """One note for every run that did not finish."""
    stopped = [(line.status, line.name, line.runs[0], line.error) for line in [*table.lines, *table.related]]
    stopped += [(run["status"], pretraining_name(run), run, problem(run)) for run in table.pretrainings]
    return [
        f"{status}: {name} ({run['folder'].relative_to(table.folder)}): {error}"
        for status, name, run, error in stopped
        if status != "finished"
    ]


def _provenance(table: Table) -> list[str]:
    """On what and by what it was measured: one note, or one for each part of the table where they are not the same."""
    parts = {
        "Table 1": [run for line in table.lines for run in line.runs],
        "Related systems": [run for line in table.related for run in line.runs],
        "Pretraining": table.pretrainings,
    }
    done = {name: [run for run in runs if run["status"] == "finished"] for name, runs in parts.items()}
    done = {name: runs for name, runs in done.items() if runs}
    if len({_of([{**run, "precision": None} for run in runs]) for runs in done.values()}) == 1:
        return [_of([run for runs in done.values() for run in runs])]
    return [f"{name}: {_of(runs)}" for name, runs in done.items()]


def _of(finished: list[dict]) -> str:
    def all_values(name: str) -> str:
        found = [told(run, name) for run in finished]
        return " / ".join(dict.fromkeys(f"{v:,}" if isinstance(v, int) else str(v or "unknown") for v in found))

    precisions = dict.fromkeys(run["precision"] for run in finished if run.get("precision"))  # of networks
    precision = f", {' / '.join(precisions)}" if precisions else ""
    return (
        f"Data: {all_values('data')}, {all_values('classes')} classes, {all_values('train_images')} train and "
        f"{all_values('val_images')} validation images. Device: {all_values('device')}{precision}. "
        f"torch {all_values('torch')}, bagnet_lightning {all_values('bagnet_lightning')}, "
        f"commit {all_values('commit')}."
    )
