"""One run, finished or failed: its result is written to its folder."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from bagnet_lightning.config import plain
from bagnet_lightning.errors import Interrupted, in_one_line
from bagnet_lightning.results import write_result
from bagnet_lightning.sweeps.runs import goes_on, outcome
from bagnet_lightning.training.loggers import RunLogger
from bagnet_lightning.training.ranks import rank

log = logging.getLogger(__name__)


def run(config: DictConfig, folder: Path, requested: dict, fit: Callable[..., dict]) -> dict:
    """Trains in `folder`, and returns and writes the result: `requested`, the measurements, status and error.

    fit: the function of that name of training or of pretraining.
    Raises Interrupted after a signal. With several ranks each returns a result, and only rank 0 writes it.
    """
    logger: RunLogger | None = None

    def work() -> dict:
        nonlocal logger
        if config.logger:
            logger = instantiate(config.logger, _partial_=True)(
                folder=folder, config=plain(config), requested=requested
            )
        return fit(config, folder, logger)

    try:
        result = outcome(requested, folder, work)
    except Interrupted as stop:
        log.info(stopped := f"stopped by {stop}; {goes_on(config)}")
        if rank(config) == 0:
            print(stopped, file=sys.stderr)
        _close(logger, {**requested, "status": "unfinished"})
        raise
    try:
        if rank(config) == 0:
            write_result(folder, result)
    finally:  # otherwise the next run of a sweep would log to this one
        _close(logger, result)
    return result


def _close(logger: RunLogger | None, result: dict) -> None:
    """Closes the logger; an error of the logger is logged, and does not change the run's result."""
    try:
        if logger:
            logger.close(result)
    except Exception as error:
        log.warning("the logger has failed at the end: %s", in_one_line(error))
