"""Sweeps through a real SLURM on this machine, with two nodes that have two GPUs each in name."""

import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from slurm_cluster import Slurm, told, wait_for, why_not

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    running = Slurm(tmp_path_factory.mktemp("slurm"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SLURM_CONF", str(running.conf))
        environment.setenv("OMP_NUM_THREADS", "1")
        try:
            running.start()
            yield running
        finally:
            running.stop()


class Sweep:
    """`python -m bagnet_lightning.train -m ARGUMENTS` through SLURM, at work in `cwd`."""

    def __init__(self, cwd: Path, *arguments: str):
        self.folder = cwd / "multirun_outputs/s"
        command = [sys.executable, "-m", "bagnet_lightning.train", "-m", "sweep=s", *SLURM, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=cwd, env={**os.environ, "COLUMNS": "200"}, **pipes)

    def ended(self, seconds: float = 900) -> tuple[int, list[str], str]:
        """Exit code, the lines that tell of the runs, and all that was printed."""
        try:
            printed, _ = self.process.communicate(timeout=seconds)
        finally:
            self.process.kill()
        return self.process.returncode, re.findall(r"^\[\d+/\d+\].*", printed, re.MULTILINE), printed

    def at_work(self, besides: Iterable[Path] = (), node: str = "") -> Path:
        """Waits for a run (on the node) that has a checkpoint and no result yet; its folder."""

        def is_found(run: Path) -> bool:
            return not (run / "result.json").exists() and node in job_state(self.job_of(run))["NodeList"]

        def found() -> Path | None:
            assert self.process.poll() is None, self.ended()
            runs = {path.parent for path in self.folder.glob("*/last.ckpt")}
            return next(filter(is_found, runs - set(besides)), None)

        return wait_for(found, "a run at work", seconds=600)

    def job_of(self, run: Path) -> str:
        """SLURM's number of the job that does the run, the last one of several."""
        asked = {
            path: pickle.loads(path.read_bytes()).args[0] for path in self.folder.glob(".submitit/*_submitted.pkl")
        }
        submitted = [path for path, job in asked.items() if job.hydra.sweep.subdir == run.name]
        return max(submitted, key=lambda path: path.stat().st_mtime).name.removesuffix("_submitted.pkl")


def scancel(*words: str) -> None:
    """Of a signal that it has delivered SLURM 22.05 may say "try again later", which scancel would do for minutes."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", *words], timeout=3)


def steps(run: Path) -> int:
    return torch.load(run / "last.ckpt", weights_only=True)["global_step"]


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def job_state(job: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", told("scontrol", "show", "job", "-o", job)))


def process_of(job: str) -> int:
    """The process that trains."""
    ours = f"SLURM_JOB_ID={job_state(job)['JobId']}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
            if words[0] != b"srun" and b"submitit.core._submit" in words and ours in environment:
                return int(process.name)
    raise ProcessLookupError(job)


def assert_as_if_unbroken(run: Path) -> None:
    """Its final weights and its accuracy are those of the same run without SLURM, in one go."""
    asked = [word for word in result(run)["overrides"] if not word.startswith("sweep=")]
    command = [sys.executable, "-m", "bagnet_lightning.train", *asked, "sweep=unbroken"]
    subprocess.run(command, cwd=run.parents[2], check=True)
    unbroken = run.parents[1] / "unbroken" / run.name
    expected, weights = (torch.load(path / "last.ckpt", weights_only=True)["state_dict"] for path in (unbroken, run))
    assert all(torch.equal(expected[key], weights[key]) for key in expected)
    assert result(run)["best_val_accuracy"] == result(unbroken)["best_val_accuracy"]


def test_at_the_time_limit_a_run_goes_on_in_the_next_job_and_one_that_cannot_is_a_failed_line(tmp_path):
    asked = [*SMALL, "trainer.max_epochs=100000"]
    for name in ("warned", "unwarned"):
        (tmp_path / name).mkdir()
    # SLURM warns up to a minute earlier than asked: half a minute after the start, when the job can hear it.
    soon = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=30", "hydra.launcher.max_num_timeout=1"]
    warned = Sweep(tmp_path / "warned", *asked, *soon)
    unwarned = Sweep(tmp_path / "unwarned", *asked, "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=0")
    run = warned.at_work()
    job = warned.job_of(run)
    wait_for(lambda: job_state(job).get("Restarts") == "1", "the requeued job", seconds=180)
    before = steps(run)
    code, lines, printed = warned.ended()
    assert (code, len(lines)) == (1, 1), printed
    assert "its time was over more often than hydra.launcher.max_num_timeout" in lines[0]
    assert steps(run) > before > 0
    code, lines, printed = unwarned.ended()
    assert (code, len(lines)) == (1, 1), printed
    assert "ended without a result: TIMEOUT" in lines[0]


def test_jobs_outlive_an_interrupted_command_and_the_same_command_waits_for_them_again(tmp_path):
    asked = [*SMALL, "optim=sgd,adam", "trainer.max_epochs=60"]
    first = Sweep(tmp_path, *asked)
    job = first.job_of(first.at_work())
    first.process.send_signal(signal.SIGINT)
    code, lines, printed = first.ended()
    assert (code, lines) == (130, []), printed
    assert "the jobs go on in SLURM" in printed
    assert job_state(job)["JobState"] == "RUNNING"
    submitted = set(first.folder.glob(".submitit/*_submitted.pkl"))
    code, lines, printed = Sweep(tmp_path, *[word.replace("trainer=cpu", "trainer=auto") for word in asked]).ended()
    assert (code, lines) == (1, []), printed  # of the same name, but with another precision
    assert re.search(r"SLURM job \S+ trains another configuration in multirun_outputs/s/bagnet9", printed)
    code, lines, printed = Sweep(tmp_path, *asked).ended()
    assert (code, len(lines)) == (0, 2), printed
    assert set(first.folder.glob(".submitit/*_submitted.pkl")) == submitted
    assert job_state(job)["Restarts"] == "0"


def test_table_1_of_which_one_is_killed_one_cancelled_one_preempted_and_a_node_lost(tmp_path, cluster):
    """All 17 rows, from random weights because the pretrained ones would need a download."""
    on_its_gpu = tmp_path / "on_its_gpu.sh"  # a job holds its GPU's lock as long as it lives
    on_its_gpu.write_text(
        f"cd {tmp_path}\n"
        "gpu=$SLURMD_NODENAME-$CUDA_VISIBLE_DEVICES\n"
        "exec 9> $gpu; flock --nonblock 9 && echo $gpu >> gpus || echo $gpu >> shared\n"
    )
    size = [word for word in SMALL if not word.startswith("model")]
    asked = ["table1=glob(*)", *size, "model.pretrained=false", "checkpoint.every_n_steps=2"]
    asked += [f"+hydra.launcher.setup=['. {on_its_gpu}']"]
    sweep = Sweep(tmp_path, *asked)
    killed = sweep.at_work()
    os.kill(process_of(sweep.job_of(killed)), signal.SIGKILL)  # scancel's would be a cancelled job
    cancelled = sweep.at_work(besides=[killed])
    scancel(sweep.job_of(cancelled))
    preempted = sweep.at_work(besides=[killed, cancelled])
    scancel("--signal=USR1", sweep.job_of(preempted))
    lost = sweep.at_work(besides=[killed, cancelled, preempted], node="two")
    cluster.kill_node("two")
    code, lines, printed = sweep.ended()
    assert (code, len(lines)) == (1, 17), printed
    assert sum(": 0." in line for line in lines) == 15, printed
    assert sum("ended without a result: stopped by SIGKILL" in line for line in lines) == 1
    assert sum("ended without a result: CANCELLED" in line for line in lines) == 1
    assert "15 of 17 runs finished" in printed
    statuses = [result(run)["status"] for run in (killed, cancelled, preempted, lost)]
    assert statuses == ["failed", "failed", "finished", "finished"]
    for run in (preempted, lost):
        assert job_state(sweep.job_of(run))["Restarts"] == "1"
    assert not (tmp_path / "shared").exists()
    assert set((tmp_path / "gpus").read_text().split()) == {"one-0", "one-1", "two-0", "two-1"}

    code, lines, printed = Sweep(tmp_path, *asked).ended()
    assert (code, len(lines)) == (0, 17), printed
    assert sum("skipped: finished before" in line for line in lines) == 15
    for run in (killed, cancelled, preempted, lost):
        assert_as_if_unbroken(run)
