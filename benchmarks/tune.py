"""Tunes the settings of recipe=modern and ablates its parts, on held-out train images, never on val.

    python benchmarks/tune.py choose RESULTS [key=value ...]    # -> RESULTS/tuned.txt, RESULTS/tune.csv
    python benchmarks/tune.py ablate RESULTS [key=value ...]    # -> RESULTS/ablation.csv
    python benchmarks/tune.py show RESULTS                      # a line per network, tuned or not yet

All runs hold out a tenth of every class's train images and are compared by their accuracy on these. They are the sweeps
`tune` and `ablation` in the working directory, so that the same command again continues where it was interrupted.
key=value arguments apply to every run; a setting given there is not tuned.

choose: short runs (--epochs). Starting from the recipe's own settings, the settings of GRID are tuned one after the
other, each to the best of its values. Networks after the first start from its settings, and only their learning rate is
tuned. tuned.txt has a line per network, written once all of its settings are chosen: its overrides of recipe=modern.
ablate: one network (--network) with its settings in tuned.txt, for the recipe's 15 epochs, and with one part changed.
"""

import argparse
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from omegaconf import OmegaConf

from bagnet_lightning.config import composed, digest
from bagnet_lightning.files import csv_of_records, write_text
from bagnet_lightning.results import read_runs

HELD_OUT = "data.holdout=0.1"
NETWORKS = {
    "bagnet17": ["model=bagnet17"],
    "bagnet33": ["model=bagnet33"],
    "bagnet9": ["model=bagnet9"],
    "resnet18": ["model=resnet18"],
    "resnet18_small": ["model=resnet18", "model.stem=small"],
}
GRID: dict[str, Callable] = {  # from the current value to the candidates; of equals, the first is kept
    "optim.lr": lambda rate: [rate, rate / 2, rate * 2],
    "data.batch_size": lambda size: [size, size // 2, size * 2],
    "optim.weight_decay": lambda decay: [decay, decay / 4, decay * 4],
    "weight_average": lambda decay: [decay, *({None, 0.999} - {decay})],
    "data.flip": lambda flip: [flip, *({True, "alternating"} - {flip})],
}
TUNED_AGAIN = ("optim.lr",)  # for the networks after the first
WHOLE = "recipe=modern"
PARTS = {  # difference from the whole recipe -> its overrides; those that change nothing are left out
    WHOLE: [],
    "Nesterov SGD at 0.1 instead of Muon": [
        "optim=sgd",
        "optim.lr=0.1",
        "optim.nesterov=true",
        "optim.weight_decay=5e-4",
    ],
    "a tenth every 7 epochs instead of one cycle": ["scheduler=step"],
    "without blocks that start as their shortcuts": ["model.zero_init=false"],
    "without label smoothing": ["label_smoothing=0"],
    "without weight decay": ["optim.weight_decay=0"],
    "without crops": ["data.crop_padding=0"],
    "crops by 2 px instead of 4": ["data.crop_padding=2"],
    "without normalised pixels": ["data.normalize=false"],
    "without the padded pixel": ["model.pad=0"],
    "stem momentum 0.001 instead of 0.1": ["model.stem_momentum=0.001"],
    "without a moving average": ["weight_average=null"],
    "with a moving average": ["weight_average=0.999"],
    "flips at random": ["data.flip=true"],
    "alternating flips": ["data.flip=alternating"],
    "without the patches' own loss": ["patch_loss=0.0"],
    "with 0.3 of the loss the patches' own": ["patch_loss=0.3"],
}
PAPER = "recipe=paper optim=adam"
CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}
stopped = threading.Event()  # once set, no further run is started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("choose", "ablate", "show"))
    parser.add_argument("results", type=Path, help="folder of what is written")
    parser.add_argument("--epochs", type=int, default=5, help="of a run of choose")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="that are tuned, in this order")
    parser.add_argument("--network", default="bagnet17", choices=("bagnet9", "bagnet17", "bagnet33"), help="of ablate")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # the runs get it too: they save, and end this
    if options.action == "choose":
        choose(options.networks.split(","), options.epochs, options.overrides, options.jobs, options.results)
    elif options.action == "ablate":
        ablate(options.network, options.overrides, options.jobs, options.results)
    else:
        for network in options.networks.split(","):
            print(*tuned_line(options.results / "tuned.txt", network))


def choose(networks: list[str], epochs: int, fixed: list[str], jobs: int, results: Path) -> None:
    free = [key for key in GRID if key not in {override.partition("=")[0] for override in fixed}]
    start: dict | None = None
    tuned, tried = [], []
    for network in networks:
        settings = dict(start or _recipe(network, free))
        for key in free if start is None else [key for key in free if key in TUNED_AGAIN]:
            candidates = [{**settings, key: value} for value in GRID[key](settings[key])]
            runs = [
                [WHOLE, *NETWORKS[network], HELD_OUT, f"trainer.max_epochs={epochs}", *_overrides(candidate), *fixed]
                for candidate in candidates
            ]
            found = accuracies("tune", runs, jobs)
            if all(math.isnan(accuracy) for accuracy in found):
                sys.exit(f"no run of {network} that varies {key} has finished; see multirun_outputs/tune")
            tried += [
                {"network": network, "varied": key, **candidate, "epochs": epochs, "holdout_accuracy": accuracy}
                for candidate, accuracy in zip(candidates, found, strict=True)
            ]
            settings = candidates[best(found)]
            write_text(results / "tune.csv", csv_of_records(tried))
        start = start or settings
        tuned.append(" ".join([*NETWORKS[network], *_overrides(settings)]))
        write_text(results / "tuned.txt", "\n".join(tuned) + "\n")
        print(tuned[-1], flush=True)


def ablate(network: str, fixed: list[str], jobs: int, results: Path) -> None:
    base = tuned_line(results / "tuned.txt", network)
    runs = {part: [WHOLE, *base, HELD_OUT, *overrides, *fixed] for part, overrides in PARTS.items()}
    whole = digest(composed(*runs[WHOLE]))
    runs = {part: run for part, run in runs.items() if part == WHOLE or digest(composed(*run)) != whole}
    runs[PAPER] = [*PAPER.split(), *NETWORKS[network], HELD_OUT, *fixed]
    found = dict(zip(runs, accuracies("ablation", list(runs.values()), jobs), strict=True))
    rows = [
        {
            "network": network,
            "what": part,
            "holdout_accuracy": accuracy,
            "difference": accuracy - found[WHOLE],
            "n": 1,
            "overrides": " ".join(runs[part]),
        }
        for part, accuracy in found.items()
    ]
    write_text(results / "ablation.csv", csv_of_records(rows))
    for row in rows:
        print(f"{row['holdout_accuracy']:.4f} {row['difference']:+.4f} {row['what']}", flush=True)
    if math.isnan(sum(found.values())):
        sys.exit("not all runs have finished; see multirun_outputs/ablation")


def accuracies(sweep: str, runs: list[list[str]], jobs: int) -> list[float]:
    """Returns the best epoch's accuracy on held-out images of every run, given by its overrides; NaN if it failed."""
    requested = [[f"sweep={sweep}", *run] for run in runs]
    done = ended(sweep)
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(train, [run for run in requested if frozenset(run) not in done]))
    if stopped.is_set():
        sys.exit(next((abs(code) for code in codes if code not in (0, 1)), 143))  # what is done is kept
    done = ended(sweep)
    return [done.get(frozenset(run), math.nan) for run in requested]


def ended(sweep: str) -> dict[frozenset[str], float]:
    """Returns the best accuracy of every run that need not be run again, by its overrides; NaN if it diverged."""
    found = {}
    for run in read_runs(Path("multirun_outputs") / sweep):
        if run["status"] in ("finished", "diverged"):
            diverged = run["status"] == "diverged"
            assert diverged or run["validated_on"] == "holdout", run["folder"]
            found[frozenset(run["overrides"])] = math.nan if diverged else run["best_val_accuracy"]
    return found


def train(overrides: list[str]) -> int:
    """Trains, unless `stopped`, and returns the exit code or 143 (SIGTERM); any other than 0 and 1 stops all runs."""
    if stopped.is_set():
        return 143
    for _ in range(2):  # once more where a library crashed
        code = subprocess.run([sys.executable, "-m", "bagnet_lightning.train", *overrides], check=False).returncode
        if code not in CRASHES or stopped.is_set():
            break
    if code not in (0, 1):
        stopped.set()
    return code


def best(accuracies: list[float]) -> int:
    """Returns the index of the highest; of equals, the first. NaN is the lowest."""
    return max(range(len(accuracies)), key=lambda index: (not math.isnan(accuracies[index]), accuracies[index], -index))


def tuned_line(file: Path, network: str) -> list[str]:
    """Returns the overrides of `network` in a tuned.txt; where it has none, the recipe's own settings."""
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    names = len(NETWORKS[network])
    stem = any(setting.startswith("model.stem=") for setting in NETWORKS[network])
    for line in lines:
        if line[:names] == NETWORKS[network] and any(key.startswith("model.stem=") for key in line) == stem:
            return line
    return NETWORKS[network]


def _recipe(network: str, keys: list[str]) -> dict:
    """Returns the values of `keys` in recipe=modern."""
    config = composed(WHOLE, *NETWORKS[network])
    return {key: OmegaConf.select(config, key) for key in keys}


def _overrides(settings: dict) -> list[str]:
    literals = {None: "null", True: "true", False: "false"}
    return [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={literals.get(value, value)}"
        for key, value in settings.items()
    ]


if __name__ == "__main__":
    main()
