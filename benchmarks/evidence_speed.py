"""Evidence at every pixel of one 64 px image, all 200 classes: dense_evidence against the public form, on the CPU.

    python benchmarks/evidence_speed.py [ROUNDS]

The public form cuts all 4,096 one-pixel-shifted patches out of the padded image and runs them in chunks of 1,000
through the network, without composing its first two convolutions. Both sides have the same weights (width 1). In each
of the rounds (3) the public form runs once, and dense_evidence, its coarser strides and two matrix products five times.
Everything printed comes from medians, by two clocks: wall time, and the processor time of all threads, which other
programs hardly change, but which also does not see a thread that waits. Targets: at least 5x (q = 9), 9x (17) and
30x (33), at 85 % of the rate of a large matrix product. torch.mm does not use every machine's widest instructions, so
that product is measured twice: by torch.mm, and as a 1x1 convolution with the widest layer's channels, which the
library that runs the network computes. What dense_evidence would reach at exactly that rate is printed beside it: at
q = 9 nearly all work is the same on both sides, so there the rate, not the form, sets the limit.
"""

import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # or processor time counts spinning; read when torch is imported

import numpy as np
import torch
from cpu_step import PlainStem
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bagnet_lightning.evidence import dense_evidence
from bagnet_lightning.machine.memory import keep_freed_memory
from bagnet_lightning.models.bagnet import BagNet, bagnet9, bagnet17, bagnet33

SIDE, CLASSES, REPEATS, STRIDES = 64, 200, 5, (2, 4, 8)


@torch.no_grad()
def main(rounds: int) -> None:
    keep_freed_memory()  # as the commands do
    square, image = torch.randn(2048, 2048), torch.randn(1, 3, SIDE, SIDE)
    features = torch.randn(1, SIDE, SIDE, 512).permute(0, 3, 1, 2)  # channels-last
    kernel = torch.randn(2048, 512, 1, 1)
    products = {
        "torch.mm, 2048 x 2048 x 2048": (2 * 2048**3 / 1e9, torch.mm, square, square),
        "1x1 convolution, 4096 x 512 x 2048": (2 * 4096 * 512 * 2048 / 1e9, F.conv2d, features, kernel),
    }
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {torch.backends.cpu.get_cpu_capability()}")
    for make, target in ((bagnet9, 5), (bagnet17, 9), (bagnet33, 30)):
        torch.manual_seed(0)
        model = make(CLASSES).eval()
        public = make(CLASSES).eval()
        public.__class__ = PlainStem
        public.load_state_dict(model.state_dict())
        public_gflop, patches = gflop(patch_by_patch, public, image)  # these runs warm up, too
        dense_gflop, dense = gflop(dense_evidence, model, image)
        coarse_gflop = {stride: gflop(dense_evidence, model, image, None, stride)[0] for stride in STRIDES}
        error = ((dense[0] - patches).abs().max() / patches.abs().max()).item()

        times = {name: [] for name in ("public", "dense", *STRIDES, *products)}
        for _ in range(rounds):
            times["public"].append(seconds(patch_by_patch, public, image))
            for _ in range(REPEATS):
                times["dense"].append(seconds(dense_evidence, model, image))
                for stride in STRIDES:
                    times[stride].append(seconds(dense_evidence, model, image, None, stride))
                for name, (_, *call) in products.items():
                    times[name].append(seconds(*call))

        print(
            f"\nq = {model.receptive_field} (target {target}x): {dense_gflop:.0f} GFLOP an image, the public form "
            f"{public_gflop:.0f}; largest relative difference {error:.0e}"
        )
        medians = {name: np.median(samples, axis=0) for name, samples in times.items()}
        ratios = np.array(times["public"]) / np.median(np.reshape(times["dense"], (rounds, REPEATS, 2)), axis=1)
        for clock, unit in enumerate(("wall time", f"processor time / {threads} threads")):
            taken = {name: median[clock] for name, median in medians.items()}
            rate = dense_gflop / taken["dense"]
            print(
                f"  {unit}: {np.median(ratios[:, clock]):.1f}x (rounds {np.round(ratios[:, clock], 1).tolist()}), "
                f"{1 / taken['dense']:.2f} img/s, {rate:.0f} GFLOP/s"
            )
            for name, (work, *_) in products.items():
                product_rate = work / taken[name]
                print(
                    f"    {rate / product_rate:.0%} of {name}: {product_rate:.0f} GFLOP/s, at which it would be "
                    f"{taken['public'] / (dense_gflop / product_rate):.1f}x"
                )
            for stride, work in coarse_gflop.items():
                print(
                    f"    stride {stride}: {work / dense_gflop:.1%} of the work, "
                    f"{taken[stride] / taken['dense']:.1%} of the time"
                )


def patch_by_patch(model: BagNet, image: Tensor) -> Tensor:
    """Returns the evidence at every pixel in the public form: (1, 3, H, W) -> (H, W, classes)."""
    field = model.receptive_field
    patches = F.pad(image[0], [(field - 1) // 2] * 4).unfold(1, field, 1).unfold(2, field, 1).permute(1, 2, 0, 3, 4)
    logits = [model(chunk) for chunk in patches.reshape(-1, 3, field, field).split(1000)]
    return torch.cat(logits).view(*image.shape[2:], -1)


def seconds(function: Callable, *arguments) -> tuple[float, float]:
    """Returns the wall time, and the processor time over the number of threads."""
    wall, processor = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, (time.process_time() - processor) / torch.get_num_threads()


def gflop(function: Callable, *arguments) -> tuple[float, Tensor]:
    """Returns the work, a multiplication and an addition being two operations, and the result."""
    with FlopCounterMode(display=False) as counter:
        result = function(*arguments)
    return counter.get_total_flops() / 1e9, result


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
