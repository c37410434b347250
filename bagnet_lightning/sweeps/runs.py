"""Makes each run once: a repeated command finds it finished, and no folder mixes two configurations."""

import logging
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from shutil import rmtree

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from bagnet_lightning.config import plain, training_settings
from bagnet_lightning.errors import Diverged, Interrupted, UserError, in_one_line
from bagnet_lightning.files import locked, write_text
from bagnet_lightning.results import describe, progress_file, read_run, write_progress

log = logging.getLogger(__name__)
TOUCHED = 60  # seconds between two signs of life
# What the runs of all commands leave in their folders, but train.log, which goes on.
RUN_FILES = (
    *("config.yaml", "metrics.csv", "result.json", "predictions.npz", "last.ckpt", "best.ckpt", "backbone.safetensors"),
    *("model.safetensors", "em", "wandb_id", "tensorboard"),
)


def run_in_folder(config: DictConfig, run: Callable[[Path, dict], dict], lead: bool = True) -> dict:
    """Returns the result of the run of Hydra's current job: an earlier one's if it is finished, else `run`'s.

    run: takes the folder and the fields of the result that are known before (results.describe), and writes its result
    itself.
    lead: whether this rank writes the run's files. A signal ends the process with the shell's exit code.
    """
    assert not config.dry_run, "sweep.py ends a dry run before this"  # Hydra turns exceptions there into warnings
    folder = Path(HydraConfig.get().runtime.output_dir)
    requested = describe_job(config, HydraConfig.get())
    with locked(folder, wait=False) if lead else nullcontext() as free:
        if free is False:
            error = f"another process trains in {folder}; wait for it, or stop it"
            return {**requested, "status": "failed", "error": error}
        if lead:
            restore_or_discard(folder)  # files left by a killed process
        if config.fresh and lead:
            put_aside(folder)
        result = None
        try:
            result = skip_or_refuse(config, folder, requested, lead)
            if result is None:
                with at_work(folder) if lead else nullcontext():
                    result = run(folder, requested)
        except Interrupted as stop:
            raise SystemExit(stop.exit_code) from stop
        finally:
            if lead and restore_or_discard(folder) and result:
                result["error"] += "; the earlier run is kept"
        return result


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Keeps a run's progress.json, whose process and age tell others, on this machine and elsewhere, that it goes on.

    Training adds how far it is (training/progress.py).
    """
    path, ended = progress_file(folder), threading.Event()

    def keep_young() -> None:
        while not ended.wait(TOUCHED):
            try:
                os.utime(path)
            except OSError:  # the disk was full, say
                write_progress(folder)

    write_progress(folder)
    thread = threading.Thread(target=keep_young, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):
            path.unlink()


def describe_job(config: DictConfig, hydra: DictConfig) -> dict:
    """Returns results.describe of a job, and the folder of the user's own config files, if its command names one."""
    fields = describe(config, list(hydra.overrides.task))
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            fields["config_dir"] = os.path.relpath(source.path)
    return fields


def goes_on(config: DictConfig) -> str:
    """Says how a run that has ended early is continued."""
    return f"the same command{', without fresh=true,' if config.fresh else ' again'} goes on from last.ckpt"


def put_aside(folder: Path) -> None:
    """Moves an earlier run's files out of the way of a new one, which may fail: see restore_or_discard.

    Warns of what other commands have made of the earlier one, which stays where it is.
    """
    earlier, moving = _aside(folder)
    moving.mkdir()
    for name in RUN_FILES:
        if (folder / name).exists():
            (folder / name).rename(moving / name)
    moving.rename(earlier)
    others = {path.name for path in folder.glob("[!.]*")} - {"train.log", "wandb"}
    if others and any(earlier.iterdir()):
        log.warning("of an earlier run, and not replaced by fresh=true: %s", ", ".join(sorted(others)))


def restore_or_discard(folder: Path) -> bool:
    """Ends what put_aside began: restores the earlier run if it has something to lose and the new one has not, else
    deletes it. Returns whether it was restored.

    If the process is killed during this, the next process goes on from there.
    """
    earlier, moving = _aside(folder)
    restored = False
    if earlier.is_dir():
        restored = nothing_to_lose(read_run(folder)) and not nothing_to_lose(read_run(earlier))
        if restored:
            for name in RUN_FILES:
                if (folder / name).is_dir():
                    rmtree(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
            earlier.rename(moving)
        else:
            rmtree(earlier)
    if moving.is_dir():
        for path in moving.iterdir():
            path.rename(folder / path.name)
        moving.rmdir()
    return restored


def _aside(folder: Path) -> tuple[Path, Path]:
    """Returns hidden folders beside a run's: for files that are put aside, and for files being moved there or back."""
    return folder.with_name(f".{folder.name}.earlier"), folder.with_name(f".{folder.name}.moving")


def skip_or_refuse(config: DictConfig, folder: Path, requested: dict, lead: bool) -> dict | None:
    """Returns the result if nothing is to be run in `folder`: the finished run's, or a refusal. None: run, or go on."""
    earlier = {} if config.fresh else read_run(folder)
    if (changed := changed_settings(earlier, config)) and not nothing_to_lose(earlier):
        changed = ["the images under data.root" if key == "image_files" else key for key in changed]
        error = (
            f"{folder} holds a run of another configuration ({', '.join(changed)}); name another folder, by sweep=NAME "
            "or hydra.run.dir=PATH, or start over with fresh=true"
        )
        return {**requested, "status": "failed", "error": error}
    if earlier.get("status") == "finished":
        return {**earlier, "skipped": True}
    if lead:
        (folder / "result.json").unlink(missing_ok=True)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    return None


def changed_settings(run: dict, config: DictConfig) -> list[str]:
    """Returns the keys by which `config` asks for another training than that of a run (from read_run).

    A key that is null is as one that is missing.
    """
    before, now = training_settings(run.get("config") or {}), training_settings(plain(config))
    return [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)] if before else []


def nothing_to_lose(run: dict) -> bool:
    """Whether the folder of a run (from read_run) has no result and no checkpoint, so that another run may use it."""
    checkpoints = ("last.ckpt", "best.ckpt", "em/*.ckpt")
    left = any(any(run["folder"].glob(pattern)) for pattern in checkpoints)
    return run["status"] not in ("finished", "unreadable") and not left


def outcome(requested: dict, folder: Path, work: Callable[[], dict]) -> dict:
    """Returns a run's result: `requested`, what `work` measured or raised, and the status. Lets Interrupted through."""
    try:
        return {**requested, **work(), "status": "finished"}
    except Diverged as error:
        return {**requested, "status": "diverged", "error": str(error)}
    except UserError as error:
        return {**requested, "status": "failed", "error": str(error)}
    except Exception as error:
        log.error(traceback.format_exc())
        message = f"{_message(error)}; see train.log in {os.path.relpath(folder)}"
        return {**requested, "status": "failed", "error": message}


def _message(error: Exception) -> str:
    """Describes an error in one line, with its cause if something could not be instantiated."""
    if not isinstance(error, InstantiationException):
        return in_one_line(error)
    message, *_ = str(error).replace(", set env var HYDRA_FULL_ERROR=1 to see chained exception.", ":").splitlines()
    return f"{message} {in_one_line(error.__cause__ or error)}"
