"""Steps around the runs of one command: checks before them, a line after each, the table at the end.

A Hydra callback (conf/runs.yaml). Hydra turns a callback's exceptions into warnings but lets SystemExit through.
"""

import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, read_write
from rich.console import Console

from bagnet_lightning.config import NAMING, kind, without_hydra
from bagnet_lightning.errors import UserError
from bagnet_lightning.names import epochs_text, monitor_name
from bagnet_lightning.paths import CONF
from bagnet_lightning.results import note_jobs, read_run
from bagnet_lightning.rules import check
from bagnet_lightning.sweeps.launching import ParallelLauncher, folder
from bagnet_lightning.sweeps.runs import changed_settings, nothing_to_lose
from bagnet_lightning.training import ranks

# Arguments of Lightning's Trainer that a run sets itself, or with which it would leave no checkpoint or result.
RESERVED_ARGUMENTS = (
    *("logger", "callbacks", "plugins", "profiler", "fast_dev_run", "enable_checkpointing", "enable_progress_bar"),
    *("enable_model_summary", "num_sanity_val_steps", "log_every_n_steps", "use_distributed_sampler"),
    # A row of metrics.csv, and a candidate for best.ckpt, is of a whole epoch.
    *("val_check_interval", "check_val_every_n_epoch", "max_steps", "min_steps", "max_time"),
    *("overfit_batches", "barebones"),  # order and batches are ours, and so is what is measured
)
WHOLE_DEVICE = "the whole device, one after the other"


class Sweep(Callback):
    """A callback that checks values before the first run, prints a line after each, reports, and sets the exit code."""

    def __init__(self) -> None:
        self.total: int | None = 1  # jobs; None: not known before
        self.shared: set[str] = set()  # overrides that all jobs of a sweep have
        self.began = time.monotonic()
        self.results: list[dict] = []
        self.console = Console(soft_wrap=True)

    def on_run_start(self, config: DictConfig, **kwargs) -> None:
        _set_hydra(config, Path(config.hydra.run.dir))
        self.shared = set(config.hydra.overrides.task)
        _check(config)
        if _parallel_launcher(config):
            sys.exit("error: hydra/launcher applies to sweeps only: add -m")
        if config.dry_run:
            _print_jobs([(Path(config.hydra.run.dir), config, WHOLE_DEVICE)])

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        asked = OmegaConf.to_container(config.hydra.overrides.task)  # ${hydra:...} is not known here
        self.shared = set(asked)
        if not _lists_jobs(config):
            if config.dry_run:
                sys.exit("error: dry_run=true: this hydra/sweeper chooses its jobs one after the other")
            self.total = None
            return
        loader = GlobalHydra.instance().config_loader()
        try:
            overrides = OverridesParser.create(config_loader=loader).parse_overrides(asked)
            (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
            configs = [loader.load_sweep_config(config, job) for job in jobs]
        except HydraException:
            return  # Hydra raises it again, and then reports it
        launcher = _parallel_launcher(config)
        for job in configs:
            _set_hydra(job, folder(job))
            _check(job, sweep=True, launcher=launcher)
        name, times = Counter(job.hydra.sweep.subdir for job in configs).most_common(1)[0]
        if times > 1:
            sys.exit(
                f"error: {times} jobs would share the folder {name}; ask for each in a sweep of its own, sweep=NAME"
            )
        if config.dry_run:
            _print_jobs([(folder(job), job, launcher.share(job) if launcher else WHOLE_DEVICE) for job in configs])
        jobs_of_sweep = {job.hydra.sweep.subdir: list(job.hydra.overrides.task) for job in configs}
        note_jobs(Path(config.hydra.sweep.dir), jobs_of_sweep)
        self.total = len(jobs)
        self.shared = set(jobs_of_sweep.popitem()[1]).intersection(*jobs_of_sweep.values())

    def on_job_start(self, config: DictConfig, **kwargs) -> None:
        if not _lists_jobs(config):
            _check(config, sweep=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs) -> None:
        result = job_return._return_value
        if not isinstance(result, dict):  # an exception, whose own message is printed
            return
        self.results.append(result)
        if ranks.rank(config) == 0:
            own = [override for override in job_return.overrides if override not in self.shared]
            own = [override for override in own if override.partition("=")[0] not in NAMING]
            monitor = config.get("monitor")
            line = _line(result, monitor, own, self.results, self.total, time.monotonic() - self.began)
            self.console.print(line, markup=False, highlight=False)

    def on_run_end(self, config: DictConfig, job_return: JobReturn, **kwargs) -> None:
        result = job_return._return_value
        if isinstance(result, dict) and result["status"] != "finished":
            sys.exit(1)

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        from bagnet_lightning.reporting.report import write_report

        try:
            write_report([Path(config.hydra.sweep.dir)], self.console)
        except UserError as error:
            sys.exit(f"error: {error}")
        except Exception:  # Hydra would turn it into a warning and exit with 0
            traceback.print_exc()
            sys.exit(1)
        if any(result["status"] != "finished" for result in self.results):
            sys.exit(1)


def _lists_jobs(config: DictConfig) -> bool:
    """Whether all jobs of a sweep are known before the first one, as they are by Hydra's own sweeper."""
    return config.hydra.sweeper._target_ == f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"


def _set_hydra(config: DictConfig, run_folder: Path) -> None:
    """Lets ${hydra:...} in a configuration be resolved before its job starts, as it will be then."""
    with read_write(config.hydra):
        config.hydra.runtime.output_dir = str(run_folder.absolute())
    HydraConfig.instance().set_config(config)


def _check(config: DictConfig, sweep: bool = False, launcher: ParallelLauncher | None = None) -> None:
    try:
        check(without_hydra(config))
        ours = CONF / f"{config.hydra.job.config_name}.yaml"
        ours = ours if ours.exists() else CONF / "config.yaml"  # --config-name of one's own
        known = {*OmegaConf.load(ours), *config.hydra.runtime.choices}
        for override in config.hydra.overrides.task:
            key = override.lstrip("+").partition("=")[0]
            if override.startswith("+") and not {key, key.partition(".")[0]} & known:
                raise UserError(f"there is no key {key}: nothing would read it; --help lists those that there are")
            for recipes, group in (("batches.", "data."), ("bagnet.", "model.")):
                if key.startswith(recipes) and not (sweep and recipes == "bagnet."):  # with networks that lack it
                    raise UserError(f"{key} is for recipes; ask for {key.replace(recipes, group, 1)}")
        if kind(config) != "related" and not OmegaConf.is_dict(config.get("checkpoint")):
            raise UserError(
                f"checkpoint={config.get('checkpoint')}: a run goes on from its own last.ckpt; weights to start from "
                "are model.pretrained=FILE"
            )
        if any(override.startswith(("+trainer.", "++trainer.")) for override in config.hydra.overrides.task):
            from bagnet_lightning.training.trainer import check_arguments  # which takes seconds

            check_arguments(config.trainer)
        for group in ("trainer", "em.trainer"):
            if reserved := [key for key in OmegaConf.select(config, group) or {} if key in RESERVED_ARGUMENTS]:
                raise UserError(f"{group}.{reserved[0]} cannot be set here: leave it out")
        if config.data._target_.endswith(".ImageFolder") and config.image_files is None:
            raise UserError(
                f"data.root={config.data.root} must be a folder that holds train/<class>/* and val/<class>/* "
                "(or train alone, with data.holdout=0.1)"
            )
        ranks.check(config, sweep)
        if launcher:
            launcher.check(config)
    except UserError as error:
        sys.exit(f"error: {error}")


def _parallel_launcher(config: DictConfig) -> ParallelLauncher | None:
    """Returns the launcher if it is a parallel one."""
    launcher = Plugins.instance().class_name_to_class.get(config.hydra.launcher._target_)
    return instantiate(config.hydra.launcher) if launcher and issubclass(launcher, ParallelLauncher) else None


def _print_jobs(jobs: list[tuple[Path, DictConfig, str]]) -> None:
    """Prints what each job would do, in which folder and with what share of the devices, and ends the command."""
    for number, (run_folder, job, share) in enumerate(jobs, start=1):
        run = {"status": "unfinished"} if job.fresh else read_run(run_folder)
        differs = changed_settings(run, without_hydra(job))
        if differs and not nothing_to_lose(run):
            status = "refused, since it holds a run of another configuration"
        elif run["status"] == "finished":
            status = "finished"
        elif differs:
            status = f"to do, with {share}"
        else:
            done = f"{epochs_text(run['epochs_done'])} done" if run.get("epochs") else "to do"
            status = f"{done if run['status'] == 'unfinished' else run['status']}, with {share}"
        print(f"[{number}/{len(jobs)}] {run_folder}: {status}")
    sys.exit(0)


def _line(
    result: dict, monitor: str | None, own: list[str], results: list[dict], total: int | None, elapsed: float
) -> str:
    """Describes an ended run and its overrides that not all runs share (`own`), and what is left after `elapsed` s."""
    name = result.get("system") or f"{result['model']} {result.get('method') or result['optimizer']}"
    if result["status"] == "finished":
        seconds = result["train_seconds"] + result.get("feature_seconds", 0)
        if result.get("kind") == "pretraining":
            outcome = f"loss {result['loss']:.4f}, {result['val_triplet_accuracy']:.1%} of held-out neighbours nearer"
        else:
            outcome = f"{result['best_val_accuracy']:.4f}"
            if monitor != "val_accuracy" and result.get(monitor) is not None:
                outcome += f" ({monitor_name(monitor)} {result[monitor]:.4f})"
        outcome += f" in {seconds:.0f} s"
        outcome += ", skipped: finished before" if result.get("skipped") else ""
    else:
        outcome = f"{result['status']}: {result['error']}"
    left, done = "", len(results)
    if total and done < total:
        trained = sum(r["status"] == "finished" and not r.get("skipped") for r in results)
        estimate = f", about {(total - done) * elapsed / trained / 60:.0f} min" if trained else ""
        left = f"; {total - done} left{estimate}"
    return f"[{done}/{total or '?'}] {' '.join([name, *own])}: {outcome}{left}"
