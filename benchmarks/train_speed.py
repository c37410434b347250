"""Training here: speed, share of the matrix-product rate, split of a step, and a plain Lightning run beside it.

    python benchmarks/train_speed.py DATA_ROOT                                    # holds tiny-imagenet-200/
    python benchmarks/train_speed.py DATA_ROOT --models bagnet9 --out speed.json trainer.compile=false

Ours is `fit` with the default settings and whatever key=value arguments follow: speed and memory are what its result
says, training alone, without compiling; an epoch's seconds are those of the later epochs, with validation. The plain
run is what one writes without this package: float32, NCHW, eager, torchvision's ImageFolder with 8 worker processes,
torchmetrics and self.log in every step. The split comes from the same functions run one by one, each as often as a
step would and waited for: data, forward and backward pass, optimizer; the loop is what is left of a step. On a CPU
take few steps: --width 0.25 --epochs 2 --plain-steps 5 +trainer.limit_train_batches=5 +trainer.limit_val_batches=2
"""

import argparse
import csv
import inspect
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import bagnet_lightning.config  # noqa: F401  registers resolvers; and before torchvision, which needs it with a CPU torch

# isort: split
import pytorch_lightning
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassAccuracy

from bagnet_lightning.data.batches import ShuffledBatches
from bagnet_lightning.inference import best_device
from bagnet_lightning.machine import chosen_precision, device_name
from bagnet_lightning.memory import keep_freed_memory
from bagnet_lightning.paths import CONF
from bagnet_lightning.training.acceleration import Compiled, GradientsGraphed, Graphed
from bagnet_lightning.training.classifier import Classifier
from bagnet_lightning.training.fit import fit

TARGET_SECONDS = {"bagnet9": 60, "bagnet33": 45, "resnet18": 20}  # 15 epochs on one H200, validation included
TARGET_RATIO = 6
WORKERS, PLAIN_WARM_UP, REPEATS = 8, 10, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder that holds tiny-imagenet-200/")
    parser.add_argument("--models", default="bagnet9,bagnet17,bagnet33,resnet18")
    parser.add_argument("--width", type=float, default=1.0, help="of BagNets")
    parser.add_argument("--epochs", type=int, default=3, help="of ours; the first one compiles")
    parser.add_argument("--plain-steps", type=int, default=200, help="0: no plain run")
    parser.add_argument("--out", type=Path, help="all numbers as JSON")
    parser.add_argument("--profile", type=Path, help="what takes the time of forward and backward pass, as text")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of ours")
    asked = parser.parse_intermixed_args()
    keep_freed_memory()
    precision = chosen_precision("auto", "auto")
    peak = matmul_tflops(torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    print(f"{device_name(best_device())}, torch {torch.__version__}, pytorch-lightning {pytorch_lightning.__version__}")
    print(f"matrix product in the precision of {precision}: {peak:.3g} TFLOP/s\n")
    measured = {"device": device_name(best_device()), "torch": torch.__version__, "matmul_tflops": peak}
    for model in asked.models.split(","):
        width = [f"model.width={asked.width}"] if model != "resnet18" else []
        config = composed(asked, f"model={model}", *width)
        measured[model] = measure(model, config, asked, peak)
        report(model, measured[model])
        if asked.out:  # after each, in case the next does not end
            asked.out.write_text(json.dumps(measured, indent=2) + "\n")


def composed(asked: argparse.Namespace, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        ours = [f"data.root={asked.root}", f"trainer.max_epochs={asked.epochs}", *asked.overrides]
        return compose("config", [*overrides, *ours])


def measure(model: str, config: DictConfig, asked: argparse.Namespace, peak: float) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        result = fit(config, Path(folder))
        with (Path(folder) / "metrics.csv").open() as file:
            epochs = [float(row["seconds"]) for row in csv.DictReader(file)]
    data = instantiate(config.data, _convert_="all")
    data.setup()
    network = instantiate(config.model, num_classes=len(data.class_ids))
    tflop = step_tflop(network, data.store.splits["train"].images.shape[1]) / 1e12  # an image
    measured = {
        "images_per_second": result["images_per_second"],
        "tflops": tflop * result["images_per_second"],
        "share_of_matmul": tflop * result["images_per_second"] / peak,
        "compile_seconds": result["compile_seconds"],
        "epoch_seconds": statistics.median(epochs[1:] or epochs),
        "peak_memory_mib": result["peak_memory_mib"],
        "precision": result["precision"],
        "split_ms": split(config, data, network, 1000 * data.batch_size / result["images_per_second"], asked.profile),
    }
    if asked.plain_steps:
        measured["plain_images_per_second"] = plain_rate(config, data, asked.plain_steps)
        measured["ratio"] = result["images_per_second"] / measured["plain_images_per_second"]
    return measured


def report(model: str, measured: dict) -> None:
    target = f" (target {TARGET_SECONDS[model]} s on one H200)" if model in TARGET_SECONDS else ""
    split = ", ".join(f"{part} {milliseconds:.2f}" for part, milliseconds in measured["split_ms"].items())
    print(
        f"{model}: {measured['images_per_second']:,.0f} img/s, {measured['tflops']:.3g} TFLOP/s, "
        f"{measured['share_of_matmul']:.1%} of the matrix product; {measured['precision']}\n"
        f"  an epoch with validation {measured['epoch_seconds']:.2f} s, 15 at this rate "
        f"{15 * measured['epoch_seconds']:.0f} s{target}; compiling {measured['compile_seconds']:.1f} s\n"
        f"  a step, in ms: {split}; peak memory {measured['peak_memory_mib']:,.0f} MiB"
    )
    if "ratio" in measured:
        print(
            f"  plain Lightning run: {measured['plain_images_per_second']:,.0f} img/s; "
            f"ratio {measured['ratio']:.2f} (target {TARGET_RATIO})"
        )


def matmul_tflops(dtype: torch.dtype) -> float:
    """Of random square matrices; the best of five."""
    device = best_device()
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / 1e12 / min(seconds(lambda: a @ b) for _ in range(6))


def step_tflop(network: nn.Module, side: int) -> float:
    """Operations of a training step per image, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(2, 3, side, side)).sum().backward()
    return counter.get_total_flops() / 2


def split(config: DictConfig, data, network: nn.Module, step: float, profile: Path | None) -> dict[str, float]:
    """Milliseconds of a step's parts, in the forms that `fit` chooses by itself."""
    device, size = best_device(), data.batch_size
    on_gpu = device.type == "cuda"
    classifier = Classifier(network, instantiate(config.optim), None, "epoch", 0.0, {}).to(device).train()
    classifier.on_train_start()
    source = data.train_images.copied_to(device) if on_gpu else data.train_images
    data.scale, data.bias = data.scale.to(device), data.bias.to(device)
    order = ShuffledBatches(len(source), size, 0, lambda: (0, 0), device)
    indices, key = next(iter(order)), torch.zeros((), dtype=torch.int64, device=device)
    fused = {"fused": True} if on_gpu and "fused" in inspect.signature(classifier.optimizer).parameters else {}
    optimizer = classifier.optimizer(network.parameters(), **fused)
    augmented, forward, both = data.augmented, classifier.loss, lambda *batch: classifier.loss(*batch).backward()
    if on_gpu and config.trainer.compile is not False:
        torch.compiler.reset()
        classifier.run_network, augmented = Compiled(network.forward, size, False), Compiled(augmented, size, False)
    if on_gpu and config.trainer.cuda_graph is not False:
        augmented, both = Graphed(augmented, size, False), GradientsGraphed(classifier, size, False)
        forward = Graphed(lambda *batch: classifier.loss(*batch).detach(), size, False)

    def data_of_a_step():
        images, labels, _ = source[indices]
        return augmented(images, indices, key), labels

    batch = [tensor.clone() for tensor in data_of_a_step()]
    bf16 = config.trainer.precision in ("auto", "bf16-mixed") and chosen_precision("auto", "auto") == "bf16-mixed"
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
        backward_too = median_ms(lambda: both(*batch))  # first: it needs gradients
        parts = {
            "data": median_ms(data_of_a_step),
            "forward": median_ms(lambda: forward(*batch)),
        }
        if profile:
            write_profile(profile, network, lambda: both(*batch))
    parts["backward"] = backward_too - parts["forward"]
    parts["optimizer"] = median_ms(optimizer.step)
    return {**parts, "loop": step - sum(parts.values())}


def write_profile(file: Path, network: nn.Module, function: Callable) -> None:
    """Appends the 30 costliest operations of ten calls: kernels on a GPU."""
    with torch.profiler.profile() as profiler:
        for _ in range(10):
            function()
        wait()
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=90)
    with file.open("a") as text:
        text.write(f"{type(network).__name__}, ten calls\n{table}\n")


def plain_rate(config: DictConfig, data, steps: int) -> float:
    """Images per second of a plain Lightning run after its first steps."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomCrop(data.store.splits["train"].images.shape[1], padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.store.mean, data.store.std),
        ]
    )
    images = ImageFolder(str(Path(config.data.root) / "tiny-imagenet-200" / "train"), transform)
    loader = DataLoader(
        images, data.batch_size, shuffle=True, num_workers=WORKERS, pin_memory=torch.cuda.is_available()
    )
    module = Plain(instantiate(config.model, num_classes=len(images.classes)), len(images.classes))
    torch.backends.cudnn.benchmark = False  # Lightning's default, which ours has changed
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(max_steps=PLAIN_WARM_UP + steps, max_epochs=-1, devices=1, **quiet).fit(module, loader)
    return steps * data.batch_size / (module.ended - module.started)


class Plain(LightningModule):
    def __init__(self, network: nn.Module, classes: int):
        super().__init__()
        self.network, self.accuracy = network, MulticlassAccuracy(classes, average="micro")

    def training_step(self, batch: list, batch_idx: int):
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)

    def on_train_batch_start(self, batch: list, batch_idx: int) -> None:
        if self.global_step == PLAIN_WARM_UP:
            wait()
            self.started = time.perf_counter()

    def on_train_end(self) -> None:
        wait()
        self.ended = time.perf_counter()


def median_ms(function: Callable) -> float:
    """Of REPEATS calls after five that warm up and record."""
    return 1000 * statistics.median([seconds(function) for _ in range(REPEATS + 5)][5:])


def seconds(function: Callable) -> float:
    wait()
    started = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - started


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
