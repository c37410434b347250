"""What a run runs on: device, precision, memory, versions."""

import os
import platform
import resource
import subprocess
from pathlib import Path

import pytorch_lightning
import torch
import torchvision

import bagnet_lightning


def chosen_precision(precision: str, accelerator: str) -> str:
    """`precision` of a Trainer on `accelerator`, where "auto" is the fastest that the device computes natively.

    torch.cuda.is_bf16_supported() is not the question: it counts emulation.
    """
    if precision != "auto":
        return precision
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true"
    major, _ = torch.cuda.get_device_capability()
    return "bf16-mixed" if major >= 8 else "16-mixed" if major == 7 else "32-true"


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return f"{models[0].split(':')[1].strip() if models else platform.machine()} ({os.cpu_count()} CPUs)"


def peak_memory_mib(device: torch.device) -> float:
    """Most memory in use so far: of the GPU's tensors since the run began, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


def versions() -> dict[str, str]:
    """Of everything that has a say in the numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pytorch_lightning": pytorch_lightning.__version__,
        "bagnet_lightning": bagnet_lightning.__version__,
    }


def commit() -> str | None:
    """The checkout's commit, marked "-dirty" if files differ from it; None for an installed package."""
    root = Path(bagnet_lightning.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", root, "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
