"""What many tests need: small configurations, and commands run as a user runs them."""

import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import bagnet_lightning.config  # noqa: F401  registers resolvers
from bagnet_lightning.paths import CONF

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks of the tests are too small for more

SMALL = [
    "data=textures",
    "data.image_size=33",
    "data.train_images=36",
    "data.val_images=12",
    "data.batch_size=12",
    "model=bagnet9",
    "model.width=0.25",
    "trainer=cpu",
    "trainer.max_epochs=2",
]


class PowerCut(BaseException):
    """Ends a process where nothing catches it."""


def composed(*overrides: str, name: str = "config") -> DictConfig:
    """The configuration that a command would be given."""
    return deepcopy(_composed(overrides, name))  # which takes a hundredth of composing it


@cache
def _composed(overrides: tuple[str, ...], name: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture(scope="session")
def ten_real_classes(tmp_path_factory) -> Path:
    """The data.root of a Tiny ImageNet of its first ten classes, from a part of the real one that holds them."""
    name = "tiny-imagenet-200"
    real = Path(os.environ.get("BAGNET_DATA", "")).resolve() / name
    if not real.is_dir():
        pytest.skip(f"BAGNET_DATA names no folder that holds {name}")
    classes = sorted(path.name for path in (real / "train").iterdir())[:10]
    root = tmp_path_factory.mktemp("real")
    (root / name / "train").mkdir(parents=True)
    (root / name / "val").mkdir()
    for path in (*(f"train/{wnid}" for wnid in classes), "val/images", "words.txt"):
        (root / name / path).symlink_to(real / path)
    (root / name / "wnids.txt").write_text("\n".join(classes))
    annotations = (real / "val" / "val_annotations.txt").read_text().splitlines(keepends=True)
    kept = [line for line in annotations if line.split("\t")[1] in classes]
    (root / name / "val" / "val_annotations.txt").write_text("".join(kept))
    return root


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from browser import start  # skips what needs it where selenium is missing

    yield from start(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="session")
def server() -> BaseContext:
    """Forks processes that have done what commands begin with, which would else be most of what their tests take."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.warm"])  # found from the project's folder, else all is only slower
    return context


@pytest.fixture
def command(tmp_path, command_in):
    """As `command_in`, in an empty folder."""
    return partial(command_in, cwd=tmp_path)


@pytest.fixture(scope="session")
def command_in(server):
    """Runs `python -m bagnet_lightning.NAME ARGUMENTS` in a folder; returns the finished process.

    anew: in an interpreter of its own, which has imported nothing.
    meanwhile: is given the process (of multiprocessing) while it runs.
    """

    def run(
        name: str,
        *arguments: str,
        cwd: Path,
        anew: bool = False,
        meanwhile: Callable[[BaseProcess], None] = lambda process: None,
        **environment: str,
    ) -> subprocess.CompletedProcess:
        words, environment = [f"bagnet_lightning.{name}", *arguments], {**os.environ, "COLUMNS": "200", **environment}
        if anew:
            asked = [sys.executable, "-m", *words]
            return subprocess.run(asked, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
        with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
            files = DupFd(out.fileno()), DupFd(err.fileno())
            process = server.Process(target=run_module, args=(words, cwd, environment, *files))
            process.start()
            try:
                meanwhile(process)
                process.join(240)
                assert not process.is_alive(), words
            finally:
                process.kill()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, process.exitcode, out.read(), err.read())

    return run


def wait_for(process: BaseProcess, folder: Path, pattern: str) -> None:
    """Until a running process has made a file."""
    end = time.monotonic() + 120
    while not any(folder.glob(pattern)):
        assert process.is_alive()
        assert time.monotonic() < end
        time.sleep(0.01)


def run_module(words: list[str], cwd: Path, environment: dict[str, str], out: DupFd, err: DupFd) -> None:
    """As `python -m WORDS`, in a process that was forked."""
    os.dup2(out.detach(), 1)
    os.dup2(err.detach(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = words, str(cwd)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
