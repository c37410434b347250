"""What gpu_table1.sh asks of Python on a machine with a GPU: compiled code, and runs that must agree.

    python benchmarks/gpu_checks.py compile ARGUMENTS of train
    python benchmarks/gpu_checks.py stop ARGUMENTS of train
    python benchmarks/gpu_checks.py smoke
    python benchmarks/gpu_checks.py show SWEEP

The last two read multirun_outputs/ of the working directory. A check that fails sets the exit code.
"""

import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from bagnet_lightning.config import composed
from bagnet_lightning.data.augment import draw_keys, scale_and_bias
from bagnet_lightning.data.of_config import data_of
from bagnet_lightning.results import read_metrics, read_runs
from bagnet_lightning.train import main as train
from bagnet_lightning.training.acceleration import Compiled, configure_compiler
from bagnet_lightning.training.classifier import Classifier

RUNS = Path("multirun_outputs")
SHOWN = (
    *("best_val_accuracy", "images_per_second", "train_seconds", "compile_seconds", "compiled", "cuda_graph"),
    "peak_memory_mib",
)


def compile_step(arguments: list[str]) -> bool:
    """Compiles a training's augmentation, and its network's forward and backward pass; returns whether they are right.

    torch keeps on disk what it has made, for the trainings that come.
    """
    configure_compiler()  # as trainings do: torch would not find again what was compiled with other switches
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = composed(*arguments)
    data, size = data_of(config.data), config.data.batch_size
    data.scale, data.bias = (values.to(device) for values in scale_and_bias((0.5,) * 3, (0.3,) * 3, 64))
    pixels = torch.randint(256, (size, 64, 64, 3), dtype=torch.uint8, device=device)
    batch = pixels, torch.arange(size, device=device), torch.tensor(draw_keys(0, 0), device=device)
    augmented = Compiled(data.augmented, size, required=True)
    images = augmented(*batch)
    torch.testing.assert_close(images, data.augmented(*batch))
    network = instantiate(config.model, num_classes=6 if config.data.name == "textures" else 200)
    network.to(device, memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # no block is its shortcut alone, without gradients
    forward = Compiled(network.forward, size, required=True)

    def gradients(function: Callable[[Tensor], Tensor], bfloat16: bool = True) -> Tensor:
        network.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, bfloat16, cache_enabled=False):
            loss = function(images).float().logsumexp(1).mean()
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    exact = gradients(network.forward, bfloat16=False)
    compiled, plain = (cosine_similarity(exact, gradients(f), dim=0).item() for f in (forward, network.forward))
    breaks = dict(torch._dynamo.utils.counters["graph_break"])
    print(
        f"{' '.join(arguments)}: compiled in {augmented.seconds + forward.seconds:.0f} s; cosine similarity of the "
        f"gradients and those in float32 {compiled:.4f}, uncompiled {plain:.4f}; graph breaks: {breaks or 'none'}",
        flush=True,
    )
    return not breaks and compiled > plain - 0.1  # rounding makes 0.7 of two runs of a deep network


def train_and_stop(arguments: list[str]) -> None:
    """Trains, and gets SIGTERM after three quarters of the steps, in the midst of an epoch."""
    step = Classifier.training_step

    def stopped(self: Classifier, batch: tuple) -> Tensor:
        if self.trainer.global_step == self.trainer.estimated_stepping_batches * 3 // 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    Classifier.training_step = stopped
    sys.argv[1:] = arguments
    train()


def losses_agree() -> bool:
    """Whether runs of one optimizer in the sweeps smoke_* have ended with about the same losses."""
    agree = True
    for optimizer, count in (("adam", 2), ("muon", 3)):
        folders = sorted(RUNS.glob(f"smoke_*/*{optimizer}*"))
        assert len(folders) == count, folders
        rows = [read_metrics(folder)[-1] for folder in folders]
        for loss, most in (("train_loss", 1.1), ("val_loss", 1.2)):  # rounding alone makes 1.03 and 1.04
            values = [row[loss] for row in rows]
            factor = max(values) / min(values)
            agree &= all(map(math.isfinite, values)) and factor <= most
            named = ", ".join(
                f"{folder.parent.name} {value:.4f}" for folder, value in zip(folders, values, strict=True)
            )
            print(f"{optimizer}, {loss}: {named}; they differ by a factor of {factor:.3f}, {most} at most are right")
    return agree


def show(sweep: str) -> None:
    """Prints how fast each run of a sweep was, and whether it was compiled and recorded."""
    for run in read_runs(RUNS / sweep):
        print(f"{run['folder'].name}: {run['status']}, {', '.join(f'{key} {run.get(key)}' for key in SHOWN)}")


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    if task == "compile":
        sys.exit(not compile_step(arguments))
    elif task == "stop":
        train_and_stop(arguments)
    elif task == "smoke":
        sys.exit(not losses_agree())
    elif task == "show":
        show(*arguments)
    else:
        sys.exit(__doc__)
