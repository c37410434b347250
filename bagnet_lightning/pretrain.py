"""Trains networks without labels, on tiles of images, and leaves backbones for model.pretrained=PATH.

    python -m bagnet_lightning.pretrain method=tile2vec model=bagnet9,bagnet17,bagnet33

The same command again skips finished runs and continues unfinished ones.
"""

from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.sweeps.runs import run_in_folder


@command("pretrain")
def main(config: DictConfig) -> dict:
    return run_in_folder(config, partial(pretrain, config))


def pretrain(config: DictConfig, folder: Path, requested: dict) -> dict:
    from bagnet_lightning.pretraining.fit import fit
    from bagnet_lightning.training.run import run

    return run(config, folder, requested, fit)


if __name__ == "__main__":
    main()
