"""hydra/launcher=slurm: every job of a sweep is a job of SLURM, submitted by submitit.

The settings are hydra-submitit-launcher's. It loses all results when one job dies, so this waits for them itself.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.singleton import Singleton
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bagnet_lightning.config import digest, without_hydra
from bagnet_lightning.errors import UserError
from bagnet_lightning.sweeps.launching import (
    ParallelLauncher,
    describe_exit_code,
    devices,
    failed,
    folder,
    on_cpu,
    run_until_stopped,
)
from bagnet_lightning.sweeps.runs import goes_on

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job

_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
_ENDED |= {"REVOKED", "TIMEOUT"}
_POLL_SECONDS = 10  # s between calls of squeue; an ended job's result may take as long to appear in the shared folder


class SlurmLauncher(ParallelLauncher):
    """A launcher that submits the jobs, unless an earlier command did and they are still in SLURM, and waits for them.

    When this command is ended, the jobs go on.
    """

    def __init__(self, **settings):
        self.settings = settings

    def check(self, job: DictConfig) -> None:
        if devices(job) > (self.settings["gpus_per_node"] or 1) and not on_cpu(job):
            raise UserError(f"trainer.devices={devices(job)} needs hydra.launcher.gpus_per_node={devices(job)}")

    def share(self, job: DictConfig) -> str:
        return f"{self.settings['gpus_per_node'] or 0} GPU and {self.settings['cpus_per_task']} CPU of SLURM"

    def results(self, jobs: list[DictConfig]) -> Iterator[tuple[DictConfig, dict]]:
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # read when submitit is imported, here and in the jobs
        executor = self._executor()
        earlier = _still_there(executor)
        waiting = {earlier[folder(job)]: job for job in jobs if folder(job) in earlier}
        for submitted, job in waiting.items():
            (config,) = submitted.submission().args
            if digest(without_hydra(config)) != digest(without_hydra(job)):
                raise UserError(
                    f"SLURM job {submitted.job_id} trains another configuration in {folder(job)}: wait for it, end it "
                    "by scancel, or name another sweep=NAME"
                )
        new = [job for job in jobs if folder(job) not in earlier]
        if new:
            waiting |= dict(zip(self._submit(executor, new), new, strict=True))
        numbers = ",".join(sorted({job.job_id.partition("_")[0] for job in waiting}))
        print(f"{len(waiting)} jobs of SLURM: {numbers}", flush=True)
        try:
            yield from _ended(waiting)
        except (KeyboardInterrupt, GeneratorExit):
            print(
                f"the jobs go on in SLURM (scancel {numbers} ends them); the same command waits for them again, and "
                f"`python -m bagnet_lightning.report runs={self.config.hydra.sweep.dir}` shows what there is",
                file=sys.stderr,
            )
            raise

    def _submit(self, executor: "AutoExecutor", jobs: list[DictConfig]) -> list["Job"]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            return executor.map_array(_Task(self.task_function, Singleton.get_state(), time.time()), jobs)
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError("SLURM refused the jobs, as sbatch says above") from error

    def _executor(self) -> "AutoExecutor":
        try:
            import submitit
            from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
        except ModuleNotFoundError as error:
            raise UserError("hydra/launcher=slurm needs a package: pip install 'bagnet-lightning[slurm]'") from error
        if not shutil.which("sbatch"):
            raise UserError("hydra/launcher=slurm: there is no sbatch here; start it where SLURM jobs can be submitted")
        try:
            settings = OmegaConf.to_container(OmegaConf.merge(SlurmQueueConf, self.settings))
        except OmegaConfBaseException as error:
            raise UserError(f"hydra.launcher: {str(error).splitlines()[0]}") from error
        place, times = settings.pop("submitit_folder"), settings.pop("max_num_timeout")
        common = set(OmegaConf.structured(BaseQueueConf))
        settings = {name if name in common else f"slurm_{name}": value for name, value in settings.items()}
        del settings["slurm__target_"]
        executor = submitit.AutoExecutor(place, cluster="slurm", slurm_max_num_timeout=times)
        executor.update_parameters(**settings)
        return executor


@dataclass(frozen=True)
class _Task:
    """The function that submitit pickles and runs in the job."""

    function: TaskFunction
    state: dict
    submitted: float  # in seconds of time.time()

    def __call__(self, job: DictConfig) -> dict:
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        Singleton.set_state(self.state)
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)):  # it was requeued, and goes on with what it has made
            made = [path for pattern in ("result.json", "**/*.ckpt") for path in folder(job).glob(pattern)]
            job.fresh &= all(path.stat().st_mtime < self.submitted for path in made)
        try:
            return run_until_stopped(job, self.function)
        except SystemExit as stop:
            if stop.code != 128 + signal.SIGUSR1:
                raise  # SLURM reports why
        from submitit.core.utils import UncompletedJobError

        try:
            signal.raise_signal(signal.SIGUSR1)  # all is saved, and submitit's own handler requeues and exits
        except UncompletedJobError:
            return failed(job, f"its time was over more often than hydra.launcher.max_num_timeout; {goes_on(job)}")

    def checkpoint(self, job: DictConfig):
        """Returns the job to requeue."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def _still_there(executor: "AutoExecutor") -> dict[Path, "Job"]:
    """Returns the jobs of earlier commands that wait or run in SLURM, by the folders of their runs."""
    from submitit import SlurmJob

    states = _states("--me")
    if states is None:
        raise UserError("SLURM does not answer (squeue --me), and may have these jobs already: try again")
    ours = [SlurmJob(executor.folder, name) for name, (state, _) in states.items() if state not in _ENDED]
    return {folder(*job.submission().args): job for job in ours if job.paths.submitted_pickle.exists()}


def _ended(waiting: dict["Job", DictConfig]) -> Iterator[tuple[DictConfig, dict]]:
    """Yields (job, result) as the jobs end, also for those that die."""
    polled, dead = time.monotonic(), set()
    while waiting:
        time.sleep(1)
        for results in {job.paths.folder for job in waiting}:
            with suppress(OSError):
                results.chmod(results.stat().st_mode)  # else NFS may show new files a minute later
        for job in [job for job in waiting if job.paths.result_pickle.exists()]:
            yield waiting[job], _result(job, waiting.pop(job))
        if not waiting or time.monotonic() - polled < _POLL_SECONDS:
            continue
        polled, states = time.monotonic(), _states(f"--jobs={','.join(job.job_id for job in waiting)}")
        for job in list(waiting):
            state, status = (states or {}).get(job.job_id, ("forgotten by SLURM", 0))
            if states is None or state not in _ENDED | {"forgotten by SLURM"}:
                dead.discard(job)
            elif job not in dead:
                dead.add(job)
            else:
                config, code = waiting.pop(job), os.waitstatus_to_exitcode(status)
                reason = describe_exit_code(code) if state == "FAILED" and code > 128 else state
                error = f"SLURM job {job.job_id} ended without a result: {reason}; {goes_on(config)}"
                yield config, failed(config, f"{error}; see {os.path.relpath(job.paths.stderr)}")


def _result(job: "Job", config: DictConfig) -> dict:
    from submitit.core.utils import UncompletedJobError

    try:
        return job.result()
    except UncompletedJobError:  # an error of the run itself is in its result
        return failed(config, f"SLURM job {job.job_id} could not start; see {os.path.relpath(job.paths.stderr)}")


def _states(*options: str) -> dict[str, tuple[str, int]] | None:
    """Returns state and wait status of jobs by number; None if SLURM does not answer. It forgets ended jobs."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--Format=JobArrayID:|,State:|,exit_code:|", *options]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    lines = [line.split("|") for line in answer.stdout.splitlines()]
    return {number: (state, int(status)) for number, state, status, *_ in lines}
