"""Downloads, verifies and packs the data, once; verifies what is packed.

python -m bagnet_lightning.prepare data=tiny_imagenet data.root=data
"""

import time

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.errors import UserError
from bagnet_lightning.rules import RULES


@command("prepare", RULES)
def main(config: DictConfig) -> None:
    from bagnet_lightning.data.of_config import data_of
    from bagnet_lightning.data.store import verify

    started = time.perf_counter()
    store = data_of(config.data).open_store()
    if "root" in config.data and not verify(store):
        raise UserError(
            f"the packed images under {config.data.get('cache') or config.data.root} have changed since they were "
            "packed: delete what ends in .store there, or .bagnet_store-SIZE, and give the same command again"
        )
    for name, split in store.splits.items():
        count, height, width, _ = split.images.shape
        print(f"{name:>6}: {count:,} images of {width} x {height} px, digest {store.digests[name][:12]}")
    print(f"{len(store.classes)} classes, verified in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
