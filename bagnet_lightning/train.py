"""Trains one classifier, or with -m every cell of a grid.

    python -m bagnet_lightning.train model=bagnet17 optim=adam
    python -m bagnet_lightning.train -m model=bagnet9,bagnet17,bagnet33 optim=sgd,adam,adadelta

The same command again skips finished runs and continues unfinished ones.
"""

import logging
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.sweeps.runs import run_in_folder
from bagnet_lightning.training import ranks


@command("config")
def main(config: DictConfig) -> dict:
    lead = ranks.rank(config) == 0
    if not lead:
        logging.disable(logging.INFO)  # rank 0 alone logs what all ranks do
    return Measured(run_in_folder(config, partial(train, config), lead), monitor=config.monitor)


class Measured(dict):
    """A run's result, which Hydra's sweepers that optimise take for a number: the best epoch's `monitor`.

    float() raises TypeError for a run without one, which they count as a failed trial.
    """

    def __init__(self, result: dict, monitor: str):
        super().__init__(result)
        self.name = {"val_accuracy": "best_val_accuracy"}.get(monitor, monitor)

    def __float__(self) -> float:
        return float(self.get(self.name))


def train(config: DictConfig, folder: Path, requested: dict) -> dict:
    if ranks.must_start(config):
        return ranks.run_on_ranks(config, folder, requested)
    from bagnet_lightning.training.fit import fit
    from bagnet_lightning.training.run import run

    return run(config, folder, requested, fit)


if __name__ == "__main__":
    main()
