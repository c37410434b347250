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
