"""What launchers share: a job ends in one result, whatever happens to it. Real engines are in tests/cluster/."""

import json
import os
import signal
from pathlib import Path

import pytest
from conftest import SMALL, composed, wait_for
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.singleton import Singleton

from bagnet_lightning.errors import UserError
from bagnet_lightning.paths import CONF
from bagnet_lightning.results import read_run, write_result
from bagnet_lightning.sweeps.launching import describe_exit_code, failed, folder, run
from hydra_plugins.bagnet_lightning import slurm
from hydra_plugins.bagnet_lightning.ray import RayLauncher

ASKED = ["-m", *[word for word in SMALL if word != "model=bagnet9"], "sweep=s", "trainer.max_epochs=1"]
LAUNCHER = """
import time
from bagnet_lightning.sweeps.launching import ParallelLauncher, failed

class Unlucky(ParallelLauncher):
    def check(self, job):
        pass

    def share(self, job):
        return "a part of nothing"

    def results(self, jobs):
        try:
            for job in jobs:
                if job.model.width == 0.5:
                    yield job, failed(job, "the node is gone")
                else:
                    open("waiting", "x").close()
                    time.sleep(60)
        finally:
            print("the jobs are stopped", flush=True)
"""
UNLUCKY = "hydra.launcher._target_=hydra_plugins.unlucky.Unlucky"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job of a sweep, as a launcher is given it."""
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*SMALL, "sweep=s"], return_hydra_config=True)


@pytest.fixture
def launcher(tmp_path):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins/unlucky.py").write_text(LAUNCHER)


def test_what_a_job_returns_is_its_result(job):
    assert run(job, lambda config: {"status": "finished", "seed": config.seed}) == {"status": "finished", "seed": 0}
    assert not (folder(job) / "result.json").exists()  # the task writes its own


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (ValueError("no such thing\nsecond line"), "ValueError: no such thing"),
        (SystemExit("error: data.root= is needed"), "data.root= is needed"),
        (SystemExit(143), "stopped by SIGTERM; the same command again goes on from last.ckpt"),
        (SystemExit(130), "stopped by SIGINT; the same command again goes on from last.ckpt"),
        (UserError("no such folder"), "UserError: no such folder"),
    ],
)
def test_what_a_job_raises_is_a_failed_result_in_its_folder(job, raised, words):
    def task(config):
        raise raised

    result = run(job, task)
    assert (result["status"], result["error"]) == ("failed", words)
    assert (result["model"], result["optimizer"], result["epochs"]) == ("bagnet9", "adam", 2)
    written = json.loads((folder(job) / "result.json").read_text())
    assert written == {"format": 1, **result}


def test_a_job_that_died_tells_where_the_users_config_files_are(job):
    source = ConfigSourceInfo(path=str(Path("my").absolute()), schema="file", provider="command-line")
    job.hydra.runtime.config_sources = [*job.hydra.runtime.config_sources, source]
    assert failed(job, "the node is gone")["config_dir"] == "my"


def test_a_fresh_job_that_was_stopped_goes_on_without_fresh(job):
    def task(config):
        raise SystemExit(143)

    job.fresh = True
    assert "; the same command, without fresh=true, goes on from last.ckpt" in run(job, task)["error"]


@pytest.mark.parametrize("made", ["last.ckpt", "em/combining.ckpt", "result.json"])
def test_a_fresh_job_that_slurm_requeues_goes_on_with_what_it_has_made_itself(job, monkeypatch, made):
    def fresh(job, asked, restarts):
        job.fresh = asked
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        return task(job)["fresh"]

    task = slurm._Task(lambda config: {"fresh": config.fresh}, Singleton.get_state(), submitted=1000)
    assert [fresh(job, True, 0), fresh(job, True, 1), fresh(job, False, 1)] == [True, True, False]
    path = folder(job) / made
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (999, 999))  # of the run that is to be replaced
    assert [fresh(job, True, 1), fresh(job, False, 1)] == [True, False]
    os.utime(path, (1001, 1001))
    assert [fresh(job, True, 0), fresh(job, True, 1)] == [True, False]


@pytest.mark.parametrize(
    ("code", "words"),
    [(143, "stopped by SIGTERM"), (138, "stopped by SIGUSR1"), (255, "ended with exit code 255")],
)
def test_what_an_exit_code_says(code, words):
    assert describe_exit_code(code) == words


def test_a_finished_result_is_not_overwritten_by_the_news_of_a_dead_worker(job):
    finished = run(job, lambda config: failed(job, "something"))
    write_result(folder(job), {**finished, "status": "finished"})
    assert failed(job, "the node is gone")["status"] == "failed"
    assert read_run(folder(job))["status"] == "finished"


def test_a_parallel_sweep_tells_of_every_job_and_finished_runs_need_no_worker(job, command, tmp_path, launcher):
    numbers = {"best_val_accuracy": 0.5, "train_seconds": 1.0}
    write_result(folder(job), {**failed(job, "not yet"), **numbers, "status": "finished", "error": None})
    swept = command("train", "-m", *SMALL[:-3], *SMALL[-2:], "sweep=s", "model.width=0.25,0.5", UNLUCKY)
    assert swept.returncode == 1, swept.stderr
    assert "[1/2] bagnet9 adam model.width=0.25: 0.5000 in 1 s, skipped: finished before; 1 left\n" in swept.stdout
    assert "[2/2] bagnet9 adam model.width=0.5: failed: the node is gone\nthe jobs are stopped\n" in swept.stdout
    assert "1 of 2 runs finished" in swept.stdout
    assert "the node is gone" in (tmp_path / "multirun_outputs/s/table.md").read_text()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_jobs_and_is_the_exit_code(command, tmp_path, launcher, signum, code):
    def stop(process):
        wait_for(process, tmp_path, "waiting")
        os.kill(process.pid, signum)

    stopped = command("train", *ASKED, UNLUCKY, "model.width=1", meanwhile=stop)
    assert (stopped.returncode, stopped.stdout) == (code, "the jobs are stopped\n")


def test_a_dry_run_tells_the_share_of_every_job_and_starts_nothing(command, tmp_path):
    (tmp_path / "ray.py").write_text("raise SystemExit('Ray was imported')")
    dry = command("train", "-m", "data=textures", "optim=sgd,adam", "hydra/launcher=ray", "dry_run=true")
    assert dry.returncode == 0, dry.stderr
    told = [line.split(": ")[1] for line in dry.stdout.splitlines()]
    assert told == ["to do, with 1 GPU, or 1 CPU where there are no GPUs"] * 2
    assert {path.name for path in tmp_path.iterdir()} <= {"ray.py", "__pycache__"}


@pytest.mark.parametrize(
    ("gpus", "cpus", "asked", "words"),
    [
        (None, None, [], "1 GPU, or 1 CPU where there are no GPUs"),
        (None, 2, ["trainer.devices=2"], "2 GPU, or 2 CPU where there are no GPUs"),
        (0.25, None, [], "0.25 GPU"),
        (0, 3, [], "3 CPU"),
        (None, None, ["trainer=cpu"], "1 CPU"),
    ],
)
def test_the_share_of_a_job_in_words(gpus, cpus, asked, words):
    assert RayLauncher(gpus, cpus, 60, {}).share(composed(*asked)) == words


@pytest.mark.parametrize(
    ("gpus", "cpus", "nodes", "share"),
    [
        (None, None, [{"CPU": 8}], (0, 1)),
        (None, None, [{"CPU": 1}, {"CPU": 16, "GPU": 4}], (1, 4)),
        (None, None, [{"CPU": 16, "GPU": 4}, {"CPU": 8, "GPU": 4}], (1, 2)),  # so that no card is left without a core
        (0.25, None, [{"CPU": 16, "GPU": 1}], (0.25, 4)),
        (0.25, None, [{"CPU": 2, "GPU": 1}], (0.25, 1)),
        (0.5, 3, [{"CPU": 16, "GPU": 1}], (0.5, 3)),
        (2, None, [{"CPU": 16, "GPU": 1}], (2, 1)),  # fits nowhere
        (0, None, [{"CPU": 16, "GPU": 1}], (0, 1)),
    ],
)
def test_the_share_of_a_job_of_a_cluster(gpus, cpus, nodes, share):
    assert RayLauncher(gpus, cpus, 60, {})._share(composed(), nodes) == dict(
        zip(("num_gpus", "num_cpus"), share, strict=True)
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["trainer.devices=2", "hydra.launcher.gpus_per_job=1"], "needs more than hydra.launcher.gpus_per_job=1"),
        (["hydra.launcher.gpus_per_job=1.5"], "must be a share from 0 to 1, or a whole number"),
        (["hydra.launcher.cpus_per_job=all"], "must be a share from 0 to 1, or a whole number"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_what_no_job_of_ray_can_have_is_refused_before_ray_is_started(command, tmp_path, asked, words, dry):
    (tmp_path / "ray.py").write_text("raise SystemExit('Ray was imported')")
    refused = command("train", "-m", "data=textures", "hydra/launcher=ray", f"dry_run={dry}", *asked)
    assert refused.returncode == 1
    assert words in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
