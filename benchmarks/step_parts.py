"""The parts of a training step, run as `fit` would run them, and its kernels by kind."""

import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from bagnet_lightning.data.augment import draw_keys
from bagnet_lightning.data.of_config import data_of
from bagnet_lightning.training.acceleration import SWITCHES, accelerate
from bagnet_lightning.training.classifier import Classifier
from bagnet_lightning.training.cuda_graphs import Graphed
from bagnet_lightning.training.fit import loss_settings
from bagnet_lightning.training.trainer import make_trainer, schedule

KINDS = {  # the first that matches a kernel's name, on a CPU an operator's
    "compiled, with sums": r"^triton_(red|per)_",  # of Inductor: mostly batch norm's statistics and gradients
    "compiled, elementwise": r"^triton_poi_",
    "matrix products": (
        r"gemm|nvjet|cutlass|xmma|cublas|conv(olution|2d|_)|[df]prop|[dw]grad|winograd|(\b|add|b)mm\b|^triton_tem_"
    ),
    "batch norm": r"batch_?norm|::bn_|bnorm",
    "loss and accuracy": r"soft_?max|nll_loss|topk|sort|radix",
    "copies": r"mem(cpy|set)|copy|cat|transpose|nchw|nhwc|index|gather|scatter|fill|zero_",
    "sums": r"reduce|::(sum|mean|norm)",
    "elementwise": r"elementwise|add|mul|relu|clamp|threshold|pad|div|sqrt",
}
PROFILED = 10 if torch.cuda.is_available() else 2  # steps


class StepParts:
    """The parts of a step of `config`, in the forms that `fit` chooses on this device."""

    def __init__(self, config: DictConfig):
        trainer = make_trainer(config)
        self.device = trainer.strategy.root_device
        self.data = data_of(config.data)
        self.data.trainer = trainer
        self.data.setup("fit")
        self.image_size = self.data.store.splits["train"].images.shape[1]
        self.network = instantiate(config.model, num_classes=len(self.data.class_ids))
        loss = loss_settings(config, self.data.train_images.labels, len(self.data.class_ids))
        self.classifier = Classifier(self.network, **schedule(config), **loss, about={})
        self.classifier.trainer = trainer
        self.classifier.to(self.device).train()
        self.classifier.on_train_start()
        if trainer.precision == "64-true":
            self.classifier.double()
        accelerate(self.classifier, self.data, trainer, **{key: config.trainer[key] for key in SWITCHES})
        self.forward_context = trainer.precision_plugin.forward_context
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.optimizer = self.classifier.make_optimizer()
        self.indices = torch.randperm(len(self.data.train_source))[: self.data.batch_size].to(self.device)
        self.keys = torch.tensor(draw_keys(0, 0), device=self.device)

    def batch(self) -> tuple[Tensor, Tensor]:
        indices = self.indices.to(self.data.train_source.labels.device)
        images, labels, indices = (tensor.to(self.device) for tensor in self.data.train_source[indices])
        return self.data.augmented(images, indices, self.keys).to(self.classifier.dtype), labels

    def gradients(self, images: Tensor, labels: Tensor) -> None:
        with self.forward_context():
            loss = (self.classifier.gradients or self.classifier.loss)(images, labels)
        if self.classifier.gradients is None:
            (self.scaler.scale(loss) if self.scaler else loss).backward()

    def update(self) -> None:
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        if self.classifier.gradients is None:
            self.optimizer.zero_grad()

    def step(self) -> None:
        self.gradients(*self.batch())
        self.update()

    def split(self, step_ms: float) -> dict[str, float]:
        """Returns the milliseconds that each part adds to those before it, and the loop of `fit` up to its `step_ms`.

        As in training the device is not waited for between the calls, so that work done meanwhile adds nothing.
        """
        forward = self._forward()
        growing = [
            paced_ms(self.batch),
            paced_ms(lambda: forward(*self.batch())),
            paced_ms(lambda: self.gradients(*self.batch())),
            paced_ms(self.step),
            step_ms,
        ]
        added = [after - before for before, after in pairwise([0.0, *accumulate(growing, max)])]
        return dict(zip(("data", "forward", "backward", "optimizer", "loop"), added, strict=True))

    def _forward(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns the forward pass with the loss, recorded as a CUDA graph if the whole step is."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            with self.forward_context():
                # As in training; with the cache, torch.compile would trace the network again.
                dtype, enabled = torch.get_autocast_dtype(self.device.type), torch.is_autocast_enabled(self.device.type)
                with torch.autocast(self.device.type, dtype, enabled, cache_enabled=False):
                    return self.classifier.loss(images, labels).detach()

        return Graphed(loss, self.data.batch_size, False) if self.classifier.gradients else loss

    def profile(self, file: Path) -> dict[str, float]:
        """Returns milliseconds of a step's kernels (on a CPU operators) by KINDS, longest first, then the optimizer.

        Writes both lists of kernels to `file`.
        """
        batch = self.batch()
        for _ in range(PROFILED):  # until the CUDA graph is recorded
            self.gradients(*batch)
            self.update()
        step = self._kernels(lambda: self.gradients(*self.batch()))
        self.gradients(*batch)
        update = self._kernels(self.optimizer.step)
        with file.open("w") as text:
            for title, rows in (("without the optimizer", step), ("the optimizer", update)):
                total, count = sum(row[0] for row in rows), sum(row[1] for row in rows)
                text.write(f"{type(self.network).__name__}, a step {title}: {total:.3f} ms, {count:.0f} kernels\n")
                for milliseconds, count, name in rows[:60]:
                    text.write(f"{milliseconds:9.4f} ms {count:6.0f} x  {kind(name):22} {name[:120]}\n")
        return by_kind(step) | {"optimizer": sum(row[0] for row in update)}

    def _kernels(self, function: Callable) -> list[tuple[float, float, str]]:
        """Returns (milliseconds, number, name) of every kernel that a call of `function` runs, longest first."""
        wait()
        with torch.profiler.profile() as profiler:
            for _ in range(PROFILED):
                function()
            wait()
        rows = []
        for event in profiler.key_averages():
            # Annotations, such as an optimizer's step, last as long as the kernels within them, which count already.
            on_gpu = event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
            if on_gpu or self.device.type == "cpu":
                microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
                rows.append((microseconds / 1000 / PROFILED, event.count / PROFILED, event.key))
        return sorted(rows, reverse=True)


def kind(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def by_kind(rows: list[tuple[float, float, str]]) -> dict[str, float]:
    """Sums the milliseconds of (milliseconds, calls, name) by kind, longest first."""
    total = defaultdict(float)
    for milliseconds, _, name in rows:
        total[kind(name)] += milliseconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def paced_ms(function: Callable) -> float:
    """Returns the milliseconds of a call in blocks of calls without waiting in between: the median over blocks."""
    on_gpu = torch.cuda.is_available()
    calls, warm_up = (20, 5) if on_gpu else (1, 1)  # a GPU's first calls record CUDA graphs
    for _ in range(warm_up):
        function()
    blocks = []
    for _ in range(5):
        wait()
        started = time.perf_counter()
        for _ in range(calls):
            function()
        wait()
        blocks.append(1000 * (time.perf_counter() - started) / calls)
    return statistics.median(blocks)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
