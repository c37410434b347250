"""The versions of all that affects a run's results."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import bagnet_lightning


def versions() -> dict[str, str]:
    """Returns the versions of all that affects the results."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # not its own class, which checkpoints must not hold
        "torchvision": version("torchvision"),
        "pytorch_lightning": version("pytorch-lightning"),
        "bagnet_lightning": bagnet_lightning.__version__,
    }


def commit() -> str | None:
    """Returns the checkout's commit, marked "-dirty" if files differ from it.

    For a copy without its history, or an installed package, the value of BAGNET_COMMIT, or None.
    """
    root = Path(bagnet_lightning.__file__).parents[1]
    if not (root / ".git").exists():
        return os.environ.get("BAGNET_COMMIT")
    command = ["git", "-C", root, "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
