"""Trains one classifier, or with -m every cell of a grid.

    python -m bagnet_lightning.train model=bagnet17 optim=adam
    python -m bagnet_lightning.train -m model=bagnet9,bagnet17,bagnet33 optim=sgd,adam,adadelta

The same command again skips finished runs and continues unfinished ones.
"""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.errors import Interrupted
from bagnet_lightning.files import alone
from bagnet_lightning.results import describe
from bagnet_lightning.runs import begin, taken
from bagnet_lightning.training import ranks

RUN_FILES = ("config.yaml", "metrics.csv", "best.ckpt", "last.ckpt", "predictions.npz", "wandb_id", "result.json")


@command("config")
def main(config: DictConfig) -> dict:
    assert not config.dry_run, "sweep.py ends a dry run before this"  # Hydra swallows what fails there
    folder = Path(HydraConfig.get().runtime.output_dir)
    asked = describe(config, list(HydraConfig.get().overrides.task))
    if ranks.rank(config):
        logging.disable(logging.INFO)  # of what all ranks do, one tells
        return train(config, folder, asked, lead=False)
    with alone(folder) as free:
        return train(config, folder, asked, lead=True) if free else taken(folder, asked)


def train(config: DictConfig, folder: Path, asked: dict, lead: bool) -> dict:
    """The run's result, be it an earlier one. lead: whether this process, of the run's ranks, writes its files."""
    earlier = begin(config, folder, asked, RUN_FILES, lead)
    if earlier is not None:
        return earlier
    try:
        if ranks.must_start(config):
            return ranks.run(config, folder, asked)
        from bagnet_lightning.training.run import run

        return run(config, folder, asked)
    except Interrupted as stop:
        raise SystemExit(stop.exit_code) from stop


if __name__ == "__main__":
    main()
