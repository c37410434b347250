"""Classifies images by their local features: one system, or with -m every cell of a grid.

    python -m bagnet_lightning.classical features=sift classifier=additive
    python -m bagnet_lightning.classical -m features=sift,fast_brief,orb,dense_sift classifier=linear,additive

    python -m bagnet_lightning.classical -m head=mean,logistic,svm,em checkpoint=RUN/best.ckpt

The same command again skips finished runs.
"""

from pathlib import Path

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.runs import once

RUN_FILES = ("config.yaml", "model.safetensors", "predictions.npz", "em", "result.json")


@command("classical")
def main(config: DictConfig) -> dict:
    from bagnet_lightning.local_features.model import check_installed

    check_installed()

    def work(folder: Path) -> dict:
        from bagnet_lightning.local_features.pipeline import run

        return run(config, folder)

    return once(config, RUN_FILES, work)


if __name__ == "__main__":
    main()
