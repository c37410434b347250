"""What many tests need: small configurations, and commands run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

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


def composed(*overrides: str, name: str = "config") -> DictConfig:
    """The configuration that a command would be given."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture
def command(tmp_path):
    """Runs `python -m bagnet_lightning.NAME ARGUMENTS` in an empty folder; returns the finished process."""

    def run(name: str, *arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", f"bagnet_lightning.{name}", *arguments],
            cwd=cwd,
            env={**os.environ, "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run
