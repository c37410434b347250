"""What happens around the runs of one command: checks before, a line after each, the table at the end.

A Hydra callback (conf/config.yaml). Hydra turns a callback's exceptions into warnings but lets SystemExit through.
"""

import sys
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from bagnet_lightning.config import check
from bagnet_lightning.errors import UserError
from bagnet_lightning.results import read_run


class Sweep(Callback):
    """Refuses wrong values before the first run, tells of each finished one, reports, and sets the exit code."""

    def __init__(self) -> None:
        self.total = 1
        self.results: list[dict] = []
        self.console = Console(stderr=False, soft_wrap=True)

    def on_run_start(self, config: DictConfig, **kwargs) -> None:
        _check(config)
        if config.dry_run:
            _print_jobs([config.hydra.run.dir])

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        loader = GlobalHydra.instance().config_loader()
        try:
            overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(config.hydra.overrides.task))
            (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
            configs = [loader.load_sweep_config(config, job) for job in jobs]
        except HydraException:
            return  # Hydra meets it again, and then reports it
        for job in configs:
            _check(job)
        if config.dry_run:
            _print_jobs([f"{job.hydra.sweep.dir}/{job.hydra.sweep.subdir}" for job in configs])
        self.total = len(jobs)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs) -> None:
        result = job_return._return_value
        if not isinstance(result, dict):  # an exception: its own message tells
            return
        self.results.append(result)
        self.console.print(_line(result, len(self.results), self.total, self.results), highlight=False)

    def on_run_end(self, config: DictConfig, job_return: JobReturn, **kwargs) -> None:
        result = job_return._return_value
        if isinstance(result, dict) and result["status"] != "finished":
            sys.exit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        from bagnet_lightning.report import write_report

        try:
            write_report(Path(config.hydra.sweep.dir), self.console)
        except UserError as error:
            sys.exit(f"error: {error}")
        if any(result["status"] != "finished" for result in self.results):
            sys.exit(1)


def _check(config: DictConfig) -> None:
    try:
        check(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))
    except UserError as error:
        sys.exit(f"error: {error}")


def _print_jobs(folders: list[str]) -> None:
    """What a sweep would do, and nothing done: ends the command."""
    for number, folder in enumerate(folders, start=1):
        run = read_run(folder)
        done = f"{run['epochs_done']} epochs done" if run["config"] else "to do"
        print(f"[{number}/{len(folders)}] {folder}: {done if run['status'] == 'unfinished' else run['status']}")
    print("one after the other, each with the whole device")
    sys.exit(0)


def _line(result: dict, done: int, total: int, results: list[dict]) -> str:
    """One finished run, and what is left to do."""
    name = f"{result['model']} {result['optimizer']}"
    if result["status"] == "finished":
        told = f"{result['best_val_accuracy']:.4f} in {result['train_seconds']:.0f} s"
        told += ", skipped: finished before" if result.get("skipped") else ""
    else:
        told = f"{result['status']}: {result['error']}"
    left = ""
    if done < total:
        trained = [r["train_seconds"] for r in results if not r.get("skipped") and r["status"] == "finished"]
        estimate = f", about {(total - done) * sum(trained) / len(trained) / 60:.0f} min" if trained else ""
        left = f"; {total - done} left{estimate}"
    return f"[{done}/{total}] {name}: {told}{left}".replace("[", r"\[", 1)
