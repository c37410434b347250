"""The base of launchers in conf/hydra/launcher/ that run jobs in other processes: each job ends in one result.

Hydra finds the launchers in hydra_plugins/ and imports them at the start of every command: so neither torch nor Ray or
submitit is imported here.
"""

import signal
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from bagnet_lightning.config import without_hydra
from bagnet_lightning.errors import in_one_line
from bagnet_lightning.files import write_text
from bagnet_lightning.results import read_run, write_result
from bagnet_lightning.sweeps.runs import describe_job, goes_on


class ParallelLauncher(Launcher):
    """A launcher that composes the jobs, runs the unfinished by `results`, and notifies the callbacks as each ends.

    A job that fails has a result, and raises nothing; SIGTERM and Ctrl-C end the command with 143 and 130.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @abstractmethod
    def check(self, job: DictConfig) -> None:
        """Raises UserError if the settings cannot give the job what it needs; called before anything is started."""

    @abstractmethod
    def share(self, job: DictConfig) -> str:
        """Describes the part of the devices that the job is given, without starting anything."""

    @abstractmethod
    def results(self, jobs: list[DictConfig]) -> Iterator[tuple[DictConfig, dict]]:
        """Runs each of `jobs` by `run` in a process of its own, and yields (job, result) as they end.

        The result of a job that ended without one is made by `failed`. When closed early, by a signal, it stops the
        jobs, unless they can go on without this command.
        """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        jobs = [self._composed(list(overrides), initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        ended, waiting = [], []
        for job in jobs:
            if not job.fresh and read_run(folder(job))["status"] == "finished":
                ended.append(self._ended(job, run(job, self.task_function)))  # it is only skipped, and needs no worker
            else:
                waiting.append(job)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if waiting:
            with _interruptible(self.results(waiting)) as results:
                ended += [self._ended(job, result) for job, result in results]
        return ended

    def _composed(self, overrides: list[str], number: int) -> DictConfig:
        job = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(job):
            job.hydra.job.id = job.hydra.job.num = number
        return job

    def _ended(self, job: DictConfig, result: dict) -> JobReturn:
        ended = JobReturn(overrides=list(job.hydra.overrides.task), status=JobStatus.COMPLETED)
        ended.return_value = result
        self.hydra_context.callbacks.on_job_end(config=job, job_return=ended)
        return ended


def devices(job: DictConfig) -> int:
    """Returns the number of devices that the job needs."""
    return OmegaConf.select(job, "trainer.devices", default=1)


def on_cpu(job: DictConfig) -> bool:
    """Whether the job runs on the CPU even where there is a GPU."""
    return OmegaConf.select(job, "trainer.accelerator", default="auto") == "cpu"


def folder(job: DictConfig) -> Path:
    """Returns the folder of the job's run, relative to the working directory."""
    return Path(job.hydra.sweep.dir) / job.hydra.sweep.subdir


def run(job: DictConfig, task_function: TaskFunction) -> dict:
    """Runs the job in this process and returns its result, whatever it raises or exits with.

    In another process than the launching one, call `Singleton.set_state` first, with the launching one's state.
    """
    try:
        return run_until_stopped(job, task_function)
    except SystemExit as stop:
        return failed(job, f"{describe_exit_code(stop.code)}; {goes_on(job)}")


def run_until_stopped(job: DictConfig, task_function: TaskFunction) -> dict:
    """Runs the job like `run`, but raises SystemExit with 128 + the signal's number if a signal stops it."""
    setup_globals()
    context = HydraContext(config_loader=None, callbacks=Callbacks())
    try:
        ended = run_job(task_function, job, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code > 128:
            raise
        return failed(job, str(stop.code).removeprefix("error: "))
    result = ended._return_value
    if isinstance(result, Exception):
        return failed(job, in_one_line(result))
    return result


def describe_exit_code(code: int) -> str:
    """Describes an exit code above 128."""
    try:
        return f"stopped by {signal.Signals(code - 128).name}"
    except ValueError:
        return f"ended with exit code {code}"


def failed(job: DictConfig, error: str) -> dict:
    """Returns the result of a job that left none, and writes it to its folder unless that holds a finished one."""
    config = without_hydra(job)
    result = {**describe_job(config, job.hydra), "status": "failed", "error": error}
    earlier = read_run(folder(job))
    folder(job).mkdir(parents=True, exist_ok=True)
    if not earlier["config"]:  # it never began; the table needs its settings
        write_text(folder(job) / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    if earlier["status"] != "finished":
        write_result(folder(job), result)
    return result


@contextmanager
def _interruptible(results: Iterator) -> Iterator[Iterator]:
    """Makes SIGTERM and SIGINT close `results` and end the command with 128 + the signal's number."""
    received = []

    def interrupt(signum: int, frame: object) -> None:
        received.append(signum)
        raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        with closing(results):
            yield results
    except KeyboardInterrupt:
        sys.exit(128 + received[0])
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
