"""Sweeps on real Ray clusters of this machine, whose GPUs are a count and no more; what dies is really killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL
from hydra import compose, initialize_config_dir
from processes import jobs_at_work, parent

from bagnet_lightning.paths import CONF
from hydra_plugins.bagnet_lightning.ray import RayLauncher

pytestmark = pytest.mark.cluster
SWEEP = ["-m", *SMALL, "sweep=s", "hydra/launcher=ray"]
TWO_AT_A_TIME = ["+hydra.launcher.ray.num_cpus=2"]
LONG = "trainer.max_epochs=500"


@pytest.fixture
def cluster():
    """A cluster whose only node has no room for jobs; the tests add those that do."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    yield cluster
    for node in [*cluster.worker_nodes, cluster.head_node]:
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


@pytest.fixture
def sweeping(tmp_path):
    """Starts a sweep in the background; what is still running at the end is stopped, and Ray's processes with it."""
    processes = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "bagnet_lightning.train", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "COLUMNS": "200"}, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=120)


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 300) -> object:
    """What the condition gives, once it is something."""
    end = time.monotonic() + seconds
    while not (met := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return met


def job_with_a_checkpoint(sweep: Path) -> tuple[Path, int] | None:
    """The folder and process of a job that is at work and has something to go on from."""
    at_work = jobs_at_work(sweep).items()
    return next(((run, pid) for run, pid in at_work if (run / "last.ckpt").exists() and not is_done(run)), None)


def is_done(run: Path) -> bool:
    return (run / "result.json").exists()


def results(sweep: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sweep.glob("*/result.json")]


def lines(output: str) -> list[str]:
    """Those that tell of a job that ended."""
    return [line for line in output.splitlines() if line.startswith("[")]


def test_table_1_on_four_gpus_of_which_a_node_dies(tmp_path, cluster, sweeping):
    """All 17 rows, from random weights because the pretrained ones would need a download."""
    for _ in range(4):
        cluster.add_node(num_cpus=1, num_gpus=1)
    size = [word for word in SMALL if not word.startswith(("model", "trainer"))]
    asked = ["-m", "table1=glob(*)", *size, "trainer.max_epochs=1", "model.pretrained=false", "sweep=s"]
    asked += ["checkpoint.every_n_steps=1", "hydra/launcher=ray", f"hydra.launcher.ray.address={cluster.address}"]
    process = sweeping(*asked)
    sweep = tmp_path / "multirun_outputs/s"
    wait_for(lambda: len(results(sweep)) >= 2, process)
    lost, worker = wait_for(lambda: job_with_a_checkpoint(sweep), process)
    for pid in (parent(worker), worker):  # as a machine that loses its power: the node's daemon and the job at once
        os.kill(pid, signal.SIGKILL)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 1, errors
    told = lines(output)
    assert [line.split("]")[0] for line in told] == [f"[{n}/17" for n in range(1, 18)]
    assert sum(": 0." in line for line in told) == 16
    (death,) = (line for line in told if ": failed: its " in line)
    assert "the same command again goes on from last.ckpt" in death
    assert json.loads((lost / "result.json").read_text())["status"] == "failed"
    assert "16 of 17 runs finished" in output

    again = sweeping(*asked)
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert output.count("skipped: finished before") == 16
    assert "17 of 17 runs finished" in output
    assert "continues from" in (lost / "train.log").read_text()


def test_a_killed_job_is_one_failed_line_and_one_that_raises_another(tmp_path, sweeping):
    process = sweeping(*SWEEP, *TWO_AT_A_TIME, "optim=sgd,adam,adadelta", "monitor=val_nothing", LONG)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert [": failed: monitor=val_nothing" in line for line in lines(output)] == [True] * 3

    process = sweeping(*SWEEP, *TWO_AT_A_TIME, "optim=sgd,adam", LONG)
    sweep = tmp_path / "multirun_outputs/s"
    _, pid = wait_for(lambda: job_with_a_checkpoint(sweep), process)
    os.kill(pid, signal.SIGKILL)
    assert ": failed: its process was killed (SIGKILL" in process.stdout.readline()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_have_every_job_save_and_end_the_command(tmp_path, sweeping, signum, code):
    process = sweeping(*SWEEP, *TWO_AT_A_TIME, "optim=sgd,adam,adadelta", LONG)
    sweep = tmp_path / "multirun_outputs/s"
    wait_for(lambda: len(list(sweep.glob("*/metrics.csv"))) == 2, process)
    jobs = jobs_at_work(sweep)
    process.send_signal(signum)
    process.communicate(timeout=120)
    assert process.returncode == code
    while jobs_at_work(sweep):  # their processes take a moment to go
        time.sleep(0.1)
    for run in jobs:
        assert "stopped by" in (run / "train.log").read_text()  # which train says once last.ckpt is written
    assert len(list(sweep.glob("*adadelta*/*.ckpt"))) == 0  # it never began


def test_what_no_node_can_hold_fails_and_jobs_on_the_cpu_do_not(tmp_path, sweeping):
    asked = [*SWEEP, "hydra.launcher.gpus_per_job=2", "+hydra.launcher.ray.num_gpus=1"]
    process = sweeping(*asked, "trainer=auto")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert "failed: it asks for 2 GPU and 1 CPU, and no node of the cluster has them" in output
    assert not jobs_at_work(tmp_path)
    process = sweeping(*asked, "trainer=cpu", "sweep=on_the_cpu")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, (output, errors)


def test_a_job_sees_its_share_and_nothing_of_the_jobs_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAGNET_DATA", "somewhere")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        jobs = [compose("config", ["data=textures", f"seed={n}"], return_hydra_config=True) for n in range(6)]

    def seen(config):
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WANDB_RUN_ID", "BAGNET_DATA")
        environment = {name: os.environ.get(name) for name in names}
        os.environ["WANDB_RUN_ID"] = "mine"
        time.sleep(1)
        return {**environment, "folder": os.getcwd(), "process": os.getpid()}

    launcher = RayLauncher(0.5, 3, 0, {"address": "local", "include_dashboard": False, "num_cpus": 12, "num_gpus": 2})
    launcher.setup(hydra_context=None, task_function=seen, config=None)
    told = [result for _, result in launcher.results(jobs)]
    assert {result["CUDA_VISIBLE_DEVICES"] for result in told} == {"0", "1"}
    assert len({result["process"] for result in told}) == 6
    for result in told:
        assert (result["OMP_NUM_THREADS"], result["WANDB_RUN_ID"]) == ("3", None)
        assert (result["BAGNET_DATA"], result["folder"]) == ("somewhere", str(tmp_path))
