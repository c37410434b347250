"""A run on two processes that is stopped, killed and started in other ways: real processes, on the CPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_ddp import ASKED, only, result, rows, state

pytestmark = pytest.mark.cluster
TWO = ["trainer=ddp", *ASKED, "trainer.max_epochs=6"]


def start(cwd: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [sys.executable, "-m", *launcher, "bagnet_lightning.train", *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen) -> tuple[int, str]:
    """Its exit code and what it printed."""
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


def ranks_of(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def begun(process: subprocess.Popen, sweep: Path, epochs: int) -> list[int]:
    """Waits until so many epochs are done and another one has begun; the process ids of the ranks."""
    while len([line for path in sweep.glob("*/metrics.csv") for line in path.open()]) <= epochs:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    return ranks_of(process)


def are_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("unbroken")
    code, printed = end(start(cwd, *TWO, "sweep=s"))
    assert code == 0, printed
    return only((cwd / "multirun_outputs/s").glob("*/"))


def test_stopped_and_killed_in_a_sweep_it_goes_on_as_if_unbroken(tmp_path, unbroken):
    asked = ["-m", *TWO, "sweep=s"]
    sweep = tmp_path / "multirun_outputs/s"

    process = start(tmp_path, *asked)
    pids = begun(process, sweep, 1)
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGTERM)  # to one of them alone
    code, printed = end(process)
    assert code == 143, printed
    assert are_gone(pids)

    process = start(tmp_path, *asked)
    pids = begun(process, sweep, 2)
    process.send_signal(signal.SIGINT)  # to the process that waits
    code, printed = end(process)
    assert code == 130, printed
    assert are_gone(pids)

    process = start(tmp_path, *asked)
    pids = begun(process, sweep, 3)
    os.kill(pids[1], signal.SIGKILL)
    code, printed = end(process)
    assert code == 1
    assert "bagnet9 adam: failed: rank 1 of 2 was killed by SIGKILL; the same command again goes on" in printed
    assert are_gone(pids)
    run = only(sweep.glob("*/"))
    assert result(run)["status"] == "failed"

    process = start(tmp_path, *asked)
    pids = begun(process, sweep, 4)
    process.kill()
    process.wait()
    assert are_gone(pids)

    code, printed = end(start(tmp_path, *asked))
    assert code == 0, printed
    assert state(run).keys() == state(unbroken).keys()
    assert all(torch.equal(value, state(run)[key]) for key, value in state(unbroken).items())
    columns = [column for column in rows(run)[0] if column != "seconds"]
    assert [[row[c] for c in columns] for row in rows(run)] == [[row[c] for c in columns] for row in rows(unbroken)]


def test_torchrun_starts_the_same_run(tmp_path, unbroken):
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    code, printed = end(start(tmp_path, *TWO, "sweep=s", launcher=torchrun))
    assert code == 0, printed
    assert printed.count("[1/1] bagnet9 adam: 0.") == printed.count("parameters; patches of") == 1
    run = only((tmp_path / "multirun_outputs/s").glob("*/"))
    assert all(torch.equal(value, state(run)[key]) for key, value in state(unbroken).items())
    assert result(run).keys() == result(unbroken).keys()
    code, printed = end(start(tmp_path, *TWO, "sweep=s", launcher=torchrun))
    assert code == 0
    assert printed.count("skipped: finished before") == 1
    code, printed = end(start(tmp_path, "-m", *TWO, "sweep=t", launcher=torchrun))
    assert code != 0
    assert "a sweep starts the processes of each run itself" in printed
