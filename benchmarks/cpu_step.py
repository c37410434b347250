"""A training step on the CPU: the first two convolutions composed into one, against the plain form.

    python benchmarks/cpu_step.py

BagNet-9 and BagNet-33, batch 20, 64 px, forward, backward and SGD. Steps of both sides alternate, and the ratio is that
of the medians. Target: at least 1.12x.
"""

import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bagnet_lightning.machine.memory import keep_freed_memory
from bagnet_lightning.models.bagnet import BagNet, bagnet9, bagnet33

STEPS, BATCH = 7, 20


class PlainStem(BagNet):
    """A BagNet with the stem of the public implementation."""

    def stem(self, images):
        return F.relu(self.bn1(self.conv2(self.conv1(images))), inplace=True)


def main() -> None:
    peak = matmul_gflops()
    print(f"float32 matrix product: {peak:.0f} GFLOP/s on {torch.get_num_threads()} threads")
    keep_freed_memory()  # as all commands do; both sides have it
    for make in (bagnet9, bagnet33):
        torch.manual_seed(0)
        ours = make(200).to(memory_format=torch.channels_last)
        plain = make(200)
        plain.__class__ = PlainStem
        times = {ours: [], plain: []}
        for step in range(STEPS + 1):
            for network, seconds in times.items():
                taken = one_step(network)
                if step:  # the first one warms up
                    seconds.append(taken)
        fast, slow = statistics.median(times[ours]), statistics.median(times[plain])
        with FlopCounterMode(display=False) as counter:
            one_step(ours)
        gflops = counter.get_total_flops() / 1e9 / fast
        print(
            f"{make.__name__:>8}: plain {BATCH / slow:5.1f} img/s, composed {BATCH / fast:5.1f} img/s, "
            f"ratio {slow / fast:.2f} (target 1.12); {gflops:.0f} GFLOP/s, {gflops / peak:.0%} of the matrix product"
        )


def one_step(network: nn.Module) -> float:
    """Returns the seconds of a step on random images, in the network's own memory format."""
    images = torch.randn(BATCH, 3, 64, 64)
    if not isinstance(network, PlainStem):
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    started = time.perf_counter()
    F.cross_entropy(network(images), torch.arange(BATCH)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


def matmul_gflops(size: int = 2048) -> float:
    """Returns the rate of a square matrix product, the best of five."""
    a = torch.randn(size, size)
    a @ a
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / 1e9 / min(seconds)


if __name__ == "__main__":
    main()
