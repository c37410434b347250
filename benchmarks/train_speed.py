"""Training speed, share of the matrix-product rate, split of a step, and a plain Lightning run for comparison.

    python benchmarks/train_speed.py DATA_ROOT                                    # holds tiny-imagenet-200/
    python benchmarks/train_speed.py DATA_ROOT --models bagnet9 --out speed.json trainer.compile=false

Ours is `fit` with the default settings and the key=value arguments: speed and memory are those of its result, for
training alone, without compiling; an epoch's seconds are those of the later epochs, with validation. The plain run is
what one writes without this package: float32, NCHW, eager, torchvision's ImageFolder with 8 worker processes,
torchmetrics and self.log in every step. step_parts.py describes the split of a step, and with --profile the split by
kinds of kernels. On a CPU take few steps: --width 0.25 --epochs 2 --plain-steps 5 +trainer.limit_train_batches=5
+trainer.limit_val_batches=2
"""

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from bagnet_lightning.config import composed  # before torchvision, which needs it with a CPU torch

# isort: split
import pytorch_lightning
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment
from step_parts import StepParts, wait
from torch import nn
from torch._inductor import config as inductor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassAccuracy

from bagnet_lightning.inference.logits import best_device
from bagnet_lightning.machine.device import device_name
from bagnet_lightning.machine.memory import keep_freed_memory
from bagnet_lightning.training.fit import fit

TARGET_SECONDS = {"bagnet9": 60, "bagnet33": 45, "resnet18": 20}  # 15 epochs on one H200, validation included
TARGET_RATIO = 6
TABLE1_SECONDS = 600  # the 14 from-scratch rows: the step table1 of gpu_table1.sh
WORKERS, PLAIN_WARM_UP = 8, 10
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "64-true": torch.float64}  # else float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder that holds tiny-imagenet-200/")
    parser.add_argument("--models", default="bagnet9,bagnet17,bagnet33,resnet18")
    parser.add_argument("--width", type=float, default=1.0, help="of BagNets")
    parser.add_argument("--epochs", type=int, default=3, help="of ours; the first one compiles")
    parser.add_argument("--plain-steps", type=int, default=200, help="0: no plain run")
    parser.add_argument("--out", type=Path, help="all numbers as JSON; models that it holds are not measured again")
    parser.add_argument("--profile", type=Path, help="folder of the kernels of a step, a text file a model")
    parser.add_argument("--inductor", default="", help="switches of torch._inductor.config to turn on, with commas")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of ours")
    options = parser.parse_intermixed_args()
    keep_freed_memory()
    os.environ["BAGNET_DATA"] = options.root
    for switch in filter(None, options.inductor.split(",")):
        setattr(inductor, switch, True)
    print(f"{device_name(best_device())}, torch {torch.__version__}, pytorch-lightning {pytorch_lightning.__version__}")
    print(f"target for the 14 from-scratch rows of Table 1 on one H200: {TABLE1_SECONDS} s (gpu_table1.sh table1)\n")
    here = {"device": device_name(best_device()), "torch": torch.__version__}
    measured, failed = measured_before(options.out, here), []
    for model in options.models.split(","):
        if measured.get(model, {}).get("complete"):
            report(model, measured[model])
            continue
        width = [f"model.width={options.width}"] if model != "resnet18" else []
        config = composed(f"model={model}", *width, f"trainer.max_epochs={options.epochs}", *options.overrides)
        try:
            parts = measurements(config, options.plain_steps, options.profile and options.profile / f"{model}.txt")
            for part in chain(parts, [{"complete": True}]):
                measured.setdefault(model, {}).update(part)
                if options.out:  # after each, in case the next one fails
                    options.out.write_text(json.dumps(measured, indent=2) + "\n")
        except Exception:
            traceback.print_exc()
            failed.append(model)
        if model in measured:
            report(model, measured[model])
    if failed:
        sys.exit(f"not measured to the end: {', '.join(failed)}")


def measured_before(out: Path | None, here: dict) -> dict:
    """Returns the results in `out` if they are of the same device and torch (`here`); otherwise `here` alone."""
    found = json.loads(out.read_text()) if out and out.exists() else {}
    return found if found.items() >= here.items() else here


def measurements(config: DictConfig, plain_steps: int, profile: Path | None) -> Iterator[dict]:
    """Yields our speed first, which matters most; then the split of a step, its kernels, and the plain run."""
    with tempfile.TemporaryDirectory() as folder:
        result = fit(config, Path(folder))
        with (Path(folder) / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
    epochs = [float(row["seconds"]) for row in rows]
    checkpoint_ms = 1000 * result["checkpoint_seconds"] / int(rows[-1]["step"])
    kept = ("images_per_second", "compiled", "cuda_graph", "compile_seconds", "peak_memory_mib", "precision")
    yield {**{key: result[key] for key in kept}, "epoch_seconds": statistics.median(epochs[1:] or epochs)}

    parts = StepParts(config)
    tflop = step_flop(parts.network, parts.image_size) / 1e12  # an image
    peak = matmul_tflops(DTYPES.get(result["precision"], torch.float32))
    split = parts.split(1000 * parts.data.batch_size / result["images_per_second"] - checkpoint_ms)
    yield {
        "tflops": tflop * result["images_per_second"],
        "matmul_tflops": peak,
        "share_of_matmul": tflop * result["images_per_second"] / peak,
        "split_ms": {**split, "checkpoints": checkpoint_ms},
    }
    if profile:
        profile.parent.mkdir(parents=True, exist_ok=True)
        yield {"kernels_ms": parts.profile(profile)}
    if plain_steps:
        plain = plain_rate(config, parts.data, plain_steps)
        yield {"plain_images_per_second": plain, "ratio": result["images_per_second"] / plain}


def report(model: str, measured: dict) -> None:
    target = f" (target {TARGET_SECONDS[model]} s on one H200)" if model in TARGET_SECONDS else ""
    print(
        f"{model}: {measured['images_per_second']:,.0f} img/s, {measured['precision']}; an epoch with validation "
        f"{measured['epoch_seconds']:.2f} s, 15 at this rate {15 * measured['epoch_seconds']:.0f} s{target}; compiling "
        f"{measured['compile_seconds']:.1f} s; peak memory {measured['peak_memory_mib']:,.0f} MiB"
    )
    if "split_ms" in measured:
        split = ", ".join(f"{part} {milliseconds:.2f}" for part, milliseconds in measured["split_ms"].items())
        print(
            f"  {measured['tflops']:.3g} TFLOP/s, {measured['share_of_matmul']:.1%} of "
            f"{measured['matmul_tflops']:.3g}, the matrix product's\n  a step, in ms: {split}"
        )
    if "kernels_ms" in measured:
        kinds = ", ".join(f"{kind} {milliseconds:.2f}" for kind, milliseconds in measured["kernels_ms"].items())
        print(f"  by kernels, in ms: {kinds}")
    if "ratio" in measured:
        print(
            f"  plain Lightning run: {measured['plain_images_per_second']:,.0f} img/s; "
            f"ratio {measured['ratio']:.2f} (target {TARGET_RATIO})"
        )


def matmul_tflops(dtype: torch.dtype) -> float:
    """Returns the rate of products of random square matrices, the best of six."""
    device = best_device()
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / 1e12 / min(seconds(lambda: a @ b) for _ in range(6))


def step_flop(network: nn.Module, side: int) -> float:
    """Returns the operations of a training step per image, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        network(next(network.parameters()).new_empty(2, 3, side, side).normal_()).sum().backward()
    return counter.get_total_flops() / 2


def plain_rate(config: DictConfig, data, steps: int) -> float:
    """Returns the images per second of a plain Lightning run after its first steps."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = [v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if data.crop_padding:  # both sides follow the recipe
        transform.insert(0, v2.RandomCrop(data.store.splits["train"].images.shape[1], padding=data.crop_padding))
    if data.normalize:
        transform.append(v2.Normalize(data.mean, data.std))
    images = ImageFolder(str(Path(config.data.root) / "tiny-imagenet-200" / "train"), v2.Compose(transform))
    loader = DataLoader(
        images, data.batch_size, shuffle=True, num_workers=WORKERS, pin_memory=torch.cuda.is_available()
    )
    network = instantiate(config.model, num_classes=len(images.classes))
    module = Plain(network, len(images.classes), instantiate(config.optim))
    torch.backends.cudnn.benchmark = False  # Lightning's default, which `fit` has changed
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    environment = LightningEnvironment()  # instead of a search, which imports mpi4py where it is installed
    trainer = Trainer(max_steps=PLAIN_WARM_UP + steps, max_epochs=-1, devices=1, plugins=[environment], **quiet)
    trainer.fit(module, loader)
    return steps * data.batch_size / (module.ended - module.started)


class Plain(LightningModule):
    def __init__(self, network: nn.Module, classes: int, optimizer: Callable):
        super().__init__()
        self.network, self.accuracy = network, MulticlassAccuracy(classes, average="micro")
        self.optimizer = optimizer

    def training_step(self, batch: list, batch_idx: int):
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters())

    def on_train_batch_start(self, batch: list, batch_idx: int) -> None:
        if self.global_step == PLAIN_WARM_UP:
            wait()
            self.started = time.perf_counter()

    def on_train_end(self) -> None:
        wait()
        self.ended = time.perf_counter()


def seconds(function: Callable) -> float:
    wait()
    started = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
