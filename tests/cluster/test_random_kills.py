"""A run that is killed at random moments, again and again, ends as the unbroken one: to the last bit."""

import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.cluster

KILLS = 50
SEED = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(10**6)))
STEPS = 3  # an epoch
ARGUMENTS = [
    "data=textures",
    "data.image_size=33",
    "data.train_images=36",
    "data.val_images=24",
    "data.batch_size=12",
    "data.eval_batch_size=4",
    "model=bagnet9",
    "model.width=0.25",
    "optim=adam",
    "scheduler.step_size=2",
    "trainer=cpu",
    "trainer.max_epochs=6",
    "checkpoint.every_n_steps=1",
    "hydra.run.dir=run",
]
NOT_COMPARED = {"seconds"}

processes = multiprocessing.get_context("forkserver")  # a process that has imported everything, so that kills meet work
processes.set_forkserver_preload(["bagnet_lightning.train", "bagnet_lightning.training.fit", "bagnet_lightning.report"])


def train(folder: Path) -> None:
    """The command, in a process that has imported its modules."""
    from bagnet_lightning.train import main

    os.chdir(folder)
    with open("printed", "ab") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    sys.argv = ["train", *ARGUMENTS]
    main()


def start(folder: Path) -> multiprocessing.Process:
    folder.mkdir(exist_ok=True)
    process = processes.Process(target=train, args=(folder,))
    process.start()
    return process


def assert_equal_runs(unbroken: Path, broken: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        expected, weights = (torch.load(run / name, weights_only=True)["state_dict"] for run in (unbroken, broken))
        assert all(torch.equal(expected[key], weights[key]) for key in expected)
    a, b = (list(csv.DictReader((run / "metrics.csv").open())) for run in (unbroken, broken))
    assert [{key: row[key] for key in row if key not in NOT_COMPARED} for row in a] == [
        {key: row[key] for key in row if key not in NOT_COMPARED} for row in b
    ]
    a, b = (json.loads((run / "result.json").read_text()) for run in (unbroken, broken))
    assert a["status"] == b["status"] == "finished"
    for key in ("best_val_accuracy", "best_epoch", "final_val_accuracy", "val_top5_accuracy"):
        assert a[key] == b[key]
    a, b = (np.load(run / "predictions.npz") for run in (unbroken, broken))
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert not list(broken.glob(".*")), "left over from a killed process"


def wait_for_a_moment(process: multiprocessing.Process, last: Path, moments: random.Random) -> None:
    """Returns at a random moment between the next few checkpoints, or when the process has ended.

    Counted in checkpoints, which are written after every step and epoch, so that a slow machine is killed as often.
    """
    saves, pause, before = moments.randrange(4), 0.1, time.monotonic()
    written = last.stat().st_mtime_ns if last.exists() else None
    while saves and process.is_alive():
        time.sleep(0.002)
        if last.exists() and last.stat().st_mtime_ns != written:
            written, pause, before = last.stat().st_mtime_ns, time.monotonic() - before, time.monotonic()
            saves -= 1
    process.join(timeout=moments.uniform(0, pause))


def where(run: Path, killed: dict[str, int]) -> None:
    """Counts what the kill has met, by what it has left."""
    if list(run.glob(".*.ckpt.*")):
        killed["while a checkpoint was written"] += 1
    elif not (run / "last.ckpt").exists():
        killed["before the first step was saved"] += 1
    else:
        loops = torch.load(run / "last.ckpt", weights_only=True)["loops"]["fit_loop"]
        epochs = loops["epoch_progress"]["total"]
        trained = loops["epoch_loop.batch_progress"]["is_last_batch"] and epochs["processed"] < epochs["started"]
        killed["during validation" if trained else "elsewhere"] += 1


def test_a_run_killed_at_random_moments_ends_as_the_unbroken_one(tmp_path):
    print(f"\nKILL_SEED={SEED}")
    moments = random.Random(SEED)
    began = time.monotonic()
    start(tmp_path / "unbroken").join()
    assert (tmp_path / "unbroken/run/result.json").exists(), (tmp_path / "unbroken/printed").read_text()
    places = ("while a checkpoint was written", "during validation", "before the first step was saved", "elsewhere")
    killed, runs = dict.fromkeys(places, 0), 0
    while sum(killed.values()) < KILLS:
        folder = tmp_path / f"broken{runs}"
        while True:
            process = start(folder)
            wait_for_a_moment(process, folder / "run/last.ckpt", moments)
            process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:  # it had ended
                break
            where(folder / "run", killed)
        assert process.exitcode == 0, (folder / "printed").read_text()
        assert_equal_runs(tmp_path / "unbroken/run", folder / "run")
        runs += 1
    print(f"{sum(killed.values())} kills of {runs} runs, {time.monotonic() - began:.0f} s: {killed}")
