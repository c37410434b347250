"""The device of a run: whether torch can use it, its name, precision and memory."""

import os
import platform
import re
import resource
from functools import cache
from pathlib import Path

import torch

from bagnet_lightning.errors import UserError


def check_device(accelerator: str) -> None:
    """Raises UserError if the installed torch cannot compute on the GPU that a Trainer with `accelerator` would use."""
    problem = gpu_problem()
    if problem and (accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())):
        raise UserError(problem)


def gpu_problem() -> str | None:
    """Returns why the installed torch cannot compute on this machine's GPU, and what to do; None if it can."""
    build = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        if torch.backends.mps.is_available():
            return None
        if not Path("/proc/driver/nvidia/version").exists():
            return "there is no NVIDIA driver on this machine: install one, or ask for trainer=cpu"
        if torch.version.cuda is None:
            return f"{build} is a build for the CPU: install one for CUDA, or ask for trainer=cpu"
        return (
            f"{build}, made for CUDA {torch.version.cuda}, finds no GPU that the driver {driver()} lets it use: update "
            "the driver, or install a torch for an older CUDA (for a K80: make k80)"
        )
    if torch.version.hip is not None:  # ROCm, whose architectures have other names
        return None
    for device in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(device)
        if not serves(torch.cuda.get_arch_list(), capability):
            return (
                f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, and "
                f"{build} holds code for {' '.join(torch.cuda.get_arch_list())}: install a newer torch "
                "for a newer card, that of constraints-k80.txt (3.7 to 8.6) for an older one"
            )
    return None


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices several times as fast as float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False)  # torch before 2.13 does not report it


def serves(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for `architectures`, like ["sm_75", "sm_90a", "compute_90"], runs on a card of this capability.

    Machine code (sm) runs on its major version from its minor version on, with suffix "a" on exactly its own version;
    intermediate code (compute) is compiled by the driver for every later card. CUDA programming guide, "Compatibility".
    """
    for architecture in architectures:
        kind, major, minor, suffix = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture).groups()
        made_for = int(major), int(minor)
        if suffix == "a":
            served = capability == made_for
        elif kind == "compute":
            served = capability >= made_for
        else:
            served = capability[0] == made_for[0] and capability[1] >= made_for[1]
        if served:
            return True
    return False


def driver() -> str | None:
    """Returns the version of the NVIDIA driver, or None if there is none."""
    first_line = " ".join(_lines(Path("/proc/driver/nvidia/version"))[:1])
    found = re.search(r"\s(\d+\.\d+[.\d]*)\s", first_line)
    return found and found[1]


def chosen_precision(precision: str, accelerator: str) -> str:
    """Returns the precision of a Trainer on `accelerator`: "auto" is the fastest that the device computes natively.

    torch.cuda.is_bf16_supported() is of no use for this: it counts emulation.
    """
    if precision != "auto":
        return precision
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true"
    major, _ = torch.cuda.get_device_capability()
    return "bf16-mixed" if major >= 8 else "16-mixed" if major == 7 else "32-true"


def device_name(device: torch.device) -> str:
    """Returns the name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return f"{models[0].split(':')[1].strip() if models else platform.machine()} ({os.cpu_count()} CPUs)"


def peak_memory_mib(device: torch.device) -> float:
    """Returns the peak memory so far: of the GPU's tensors since the run began, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
