"""Checks whether a machine has what a sweep needs. Imports torch, but neither Lightning nor the data."""

import glob
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import torch

from bagnet_lightning.data.image_folder import name_in_cache
from bagnet_lightning.errors import UserError
from bagnet_lightning.machine.device import check_device, chosen_precision, device_name, driver, gpu_problem
from bagnet_lightning.machine.versions import versions
from bagnet_lightning.machine.wandb_account import wandb_key, wandb_mode

RUNS = Path("multirun_outputs")
#: GiB. The 17 rows keep two checkpoints each, of up to 0.2 GiB; Tiny ImageNet is a zip of 0.25 and a store of 1.3.
RUNS_NEED, DATA_NEED, MEMORY_NEED = 7, 2, 4
#: What bfloat16 saves on a CPU with these instructions, by torch's names for them; as measured, see docs/running.md.
BFLOAT16 = {
    "amx_bf16": " (BagNets take half the time on this CPU with trainer.precision=bf16-mixed trainer.compile=true)",
    "avx512_bf16": " (networks take 0.6 of the time on this CPU with trainer.precision=bf16-mixed)",
}


@dataclass(frozen=True)
class Problem:
    """A problem of the machine. text: what is wrong and what to do. fatal: no sweep could run."""

    text: str
    fatal: bool


def facts(config: dict) -> dict[str, str]:
    """Describes the machine, by the heading of each line. config: of conf/doctor.yaml, as plain types."""
    accelerator = config["trainer"]["accelerator"]
    gpus = range(torch.cuda.device_count()) if accelerator != "cpu" and torch.cuda.is_available() else ()
    devices = [
        f"{torch.cuda.get_device_name(gpu)}, "
        f"compute capability {'.'.join(map(str, torch.cuda.get_device_capability(gpu)))}, "
        f"{torch.cuda.get_device_properties(gpu).total_memory / 2**30:.0f} GiB"
        for gpu in gpus
    ]
    runs, data = _existing(RUNS), config["data"].get("root")
    return {
        "device": "; ".join(devices) or device_name(torch.device("cpu")),
        "driver": driver() or "no NVIDIA driver",
        "torch": f"{torch.__version__}, {_build()}",
        "precision": (precision := chosen_precision(config["trainer"]["precision"], accelerator))
        + (_bfloat16() if precision == "32-true" and not devices else ""),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items() if name != "torch"),
        "memory": f"{_free_memory():.1f} GiB free",
        "runs": f"{RUNS.absolute()}, {_free_disk(runs):.1f} GiB free",
        "data": f"{config['data']['name']}, {_state_of_data(config['data'])}"
        + (f"; {Path(data).absolute()}, {_free_disk(_existing(Path(data))):.1f} GiB free" if data else ""),
        "W&B": wandb_mode()
        + ("" if wandb_mode() == "online" or wandb_key() else " (no key: `wandb login`, or WANDB_API_KEY)"),
    }


def problems(config: dict) -> list[Problem]:
    """Returns what would stop a sweep, or surprise the user. config: of conf/doctor.yaml, as plain types."""
    found = []
    try:
        check_device(config["trainer"]["accelerator"])
        if config["trainer"]["accelerator"] == "auto" and driver() and gpu_problem():
            found.append(Problem(f"{gpu_problem()}; until then training runs on the CPU", fatal=False))
    except UserError as error:
        found.append(Problem(str(error), fatal=True))
    found += _room(RUNS, RUNS_NEED, "the checkpoints of the 17 rows", "run from a folder of a disk with room")
    root = config["data"].get("root")
    state = _state_of_data(config["data"])
    if root and state == "missing":
        what = "is empty" if Path(root).is_dir() else "does not exist"
        found.append(Problem(f"data.root={root} {what}: give the folder that holds the data", fatal=True))
    elif (
        root
        and config["data"]["_target_"].endswith(".ImageFolder")
        and not all(Path(root, split).is_dir() for split in ("train", *([] if config["data"]["holdout"] else ["val"])))
    ):
        what = "must be a folder that holds train/<class>/* and val/<class>/* (or train alone, with data.holdout=0.1)"
        found.append(Problem(f"data.root={root} {what}", fatal=True))
    elif root and not state.startswith("packed"):
        key = "root" if "url" in config["data"] else "cache"  # where the packed images go
        place = Path(config["data"].get(key) or root)
        found += _room(place, DATA_NEED, f"{config['data']['name']}", f"set data.{key} to a folder of a disk with room")
    if _free_memory() < MEMORY_NEED:
        found.append(
            Problem(
                f"{_free_memory():.1f} GiB of memory are free, of about {MEMORY_NEED} that a run takes: end "
                "other programs, or use a larger machine",
                fatal=False,
            )
        )
    return found


def _bfloat16() -> str:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.13 does not report them
    return next((saved for name, saved in BFLOAT16.items() if capabilities.get(name)), "")


def _build() -> str:
    if torch.version.cuda is None:
        return "a build for the CPU"
    return (
        f"for CUDA {torch.version.cuda}, with code for {' '.join(torch.cuda.get_arch_list()) or 'no card that is here'}"
    )


def _state_of_data(data: dict) -> str:
    if "root" not in data:
        return "generated"
    root = Path(data["root"])
    cached = Path(data.get("cache") or root), f"{glob.escape(name_in_cache(root))}-*.store"
    places = [(root, "*.store"), (root, ".bagnet_store-*"), cached]
    if any(any(folder.glob(f"{name}/manifest.json")) for folder, name in places):
        return "packed"
    if root.is_dir() and any(root.iterdir()):
        return "to be packed at the first use"
    return "to be downloaded at the first use" if "url" in data else "missing"


def _room(folder: Path, need: float, what: str, remedy: str) -> list[Problem]:
    """Returns a problem if an output folder cannot be written, or has less than `need` GiB of room."""
    nearest = _existing(folder)
    try:
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return [Problem(f"{nearest.absolute()} cannot be written ({error.strerror}): {remedy}", fatal=True)]
    free = _free_disk(nearest)
    if free >= need:
        return []
    return [
        Problem(f"{nearest.absolute()} has {free:.1f} GiB left, of about {need} for {what}: {remedy}", fatal=free < 0.5)
    ]


def _existing(folder: Path) -> Path:
    """Returns the folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _free_disk(folder: Path) -> float:
    return shutil.disk_usage(folder).free / 2**30


def _free_memory() -> float:
    """Returns the GiB available to programs; on systems that do not report it, all of the memory."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
    return kib / 2**20 if kib is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
