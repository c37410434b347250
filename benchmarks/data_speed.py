"""Augmented, normalised float batches on one CPU core: the packed store against torchvision's ImageFolder.

    python benchmarks/data_speed.py DATA_ROOT      # holds tiny-imagenet-200/

Both sides crop (padding 4), flip and normalise, in batches of 100, in this process (num_workers=0) on one thread. Rates
are images per second of processor time, so that other programs have little effect; rounds alternate, and the ratio is
that of the medians. Target: at least 30x.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from bagnet_lightning.config import composed
from bagnet_lightning.data.augment import draw_keys
from bagnet_lightning.data.of_config import data_of
from bagnet_lightning.machine.memory import keep_freed_memory

ROUNDS, BATCH = 5, 100
PLAIN_BATCHES, STORE_BATCHES = 20, 300


def main(root: str) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as all commands do; both sides have it
    data = data_of(composed(f"data.root={root}", "data.crop_padding=4", "data.normalize=true").data)
    data.setup()
    keys = torch.tensor(draw_keys(data.seed, epoch=0))
    sides = {"ImageFolder": [], "store": []}
    for _ in range(ROUNDS):
        plain = (images for images, _ in plain_batches(Path(root), data.mean, data.std))
        packed = (data.augmented(images, indices, keys) for images, _, indices in data.train_dataloader())
        sides["ImageFolder"].append(rate(plain, PLAIN_BATCHES))
        sides["store"].append(rate(packed, STORE_BATCHES))
    theirs, ours = (statistics.median(rates) for rates in sides.values())
    gigabytes = ours * 64 * 64 * 3 * 4 / 1e9
    copied = torch.ones(2**26)
    started = time.process_time()
    for _ in range(5):
        copied.fill_(1)
    bandwidth = 5 * copied.nbytes / 1e9 / (time.process_time() - started)
    print(f"ImageFolder  {theirs:9,.0f} img/s")
    print(f"store        {ours:9,.0f} img/s ({gigabytes:.2f} GB/s of floats; filling memory: {bandwidth:.1f} GB/s)")
    print(f"ratio        {ours / theirs:9.1f}   (target 30)")


def plain_batches(root: Path, mean, std) -> DataLoader:
    """Returns the loader that one writes without a store."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomCrop(64, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    images = ImageFolder(str(root / "tiny-imagenet-200" / "train"), transform)
    return DataLoader(images, BATCH, shuffle=True, num_workers=0)


def rate(batches, count: int) -> float:
    """Returns the images per second of `count` batches, after a first one."""
    iterator = iter(batches)
    next(iterator)
    started = time.process_time()
    for _ in range(count):
        images = next(iterator)
        assert images.shape == (BATCH, 3, 64, 64)
    return count * BATCH / (time.process_time() - started)


if __name__ == "__main__":
    main(sys.argv[1])
