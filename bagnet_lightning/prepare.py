"""Downloads, verifies and packs the data, once.

python -m bagnet_lightning.prepare data=tiny_imagenet data.root=data
"""

import time

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.config import check


@command("prepare")
def main(config: DictConfig) -> None:
    check(config)
    from hydra.utils import instantiate

    started = time.perf_counter()
    store = instantiate(config.data, _partial_=True, _convert_="all")().open_store()
    for name, split in store.splits.items():
        count, height, width, _ = split.images.shape
        print(f"{name:>6}: {count:,} images of {width} x {height} px")
    print(f"{len(store.classes)} classes, digest {store.digest[:12]}, ready in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
