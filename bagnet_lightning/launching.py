"""What the launchers of conf/hydra/launcher/ share that run jobs in other processes: each job ends in one result.

Hydra finds the launchers in hydra_plugins/, and imports them at the start of every command: no torch, no engine here.
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
from bagnet_lightning.results import describe, read_run, write_result

GOES_ON = "the same command again goes on from last.ckpt"


class ParallelLauncher(Launcher):
    """Composes the jobs, has `results` run those that are not finished yet, and tells the callbacks of each that ends.

    What happens to a job is its result, never an exception; SIGTERM and Ctrl-C end the command with 143 and 130.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @abstractmethod
    def check(self, job: DictConfig) -> None:
        """Raises UserError if the settings cannot give the job what it asks for; asked before anything is started."""

    @abstractmethod
    def share(self, job: DictConfig) -> str:
        """The part of the devices that the job is given, in words; nothing is started to tell it."""

    @abstractmethod
    def results(self, jobs: list[DictConfig]) -> Iterator[tuple[DictConfig, dict]]:
        """Has each of `jobs` done by `run` in a process of its own, and yields (job, result) as they end.

        The result of a job that ended without one is made by `failed`. When closed early, by a signal, it stops them.
        """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        jobs = [self._composed(list(asked), initial_job_idx + index) for index, asked in enumerate(job_overrides)]
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
    """How many devices the job asks for."""
    return OmegaConf.select(job, "trainer.devices", default=1)


def on_cpu(job: DictConfig) -> bool:
    """Whether a GPU would be of no use to the job."""
    return OmegaConf.select(job, "trainer.accelerator", default="auto") == "cpu"


def folder(job: DictConfig) -> Path:
    """Where the job's run lives, relative to the working directory."""
    return Path(job.hydra.sweep.dir) / job.hydra.sweep.subdir


def run(job: DictConfig, task_function: TaskFunction) -> dict:
    """Runs the job in this process and returns its result, whatever it raises or exits with.

    Another process than the launching one first needs `Singleton.set_state` with the state of that.
    """
    try:
        return run_until_stopped(job, task_function)
    except SystemExit as stop:
        return failed(job, f"{ending(stop.code)}; {GOES_ON}")


def run_until_stopped(job: DictConfig, task_function: TaskFunction) -> dict:
    """The same, but a job that a signal stops raises SystemExit with 128 + its number."""
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


def ending(code: int) -> str:
    """What an exit code above 128 says."""
    try:
        return f"stopped by {signal.Signals(code - 128).name}"
    except ValueError:
        return f"ended with exit code {code}"


def failed(job: DictConfig, error: str) -> dict:
    """The result of a job that left none, also written to its folder unless that holds a finished one."""
    config = without_hydra(job)
    asked = describe(config, OmegaConf.to_container(job.hydra.overrides.task))
    result = {**asked, "status": "failed", "error": error}
    earlier = read_run(folder(job))
    folder(job).mkdir(parents=True, exist_ok=True)
    if not earlier["config"]:  # it never began; the table shows its settings all the same
        write_text(folder(job) / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    if earlier["status"] != "finished":
        write_result(folder(job), result)
    return result


@contextmanager
def _interruptible(results: Iterator) -> Iterator[Iterator]:
    """SIGTERM and SIGINT close `results` and end the command with 128 + their number."""
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
