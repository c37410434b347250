"""Classifies images by their local features: one system, or with -m every cell of a grid.

    python -m bagnet_lightning.classical features=sift classifier=additive
    python -m bagnet_lightning.classical -m features=sift,fast_brief,orb,dense_sift classifier=linear,additive

    python -m bagnet_lightning.classical -m head=mean,logistic,svm,em checkpoint=RUN/best.ckpt

The same command again skips finished runs.
"""

from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.results import write_result
from bagnet_lightning.sweeps.runs import outcome, run_in_folder


@command("classical")
def main(config: DictConfig) -> dict:
    from bagnet_lightning.local_features.model import check_installed

    check_installed()
    return run_in_folder(config, partial(classical, config))


def classical(config: DictConfig, folder: Path, requested: dict) -> dict:
    from bagnet_lightning.local_features.pipeline import run

    result = outcome(requested, folder, partial(run, config, folder))
    write_result(folder, result)
    return result


if __name__ == "__main__":
    main()
