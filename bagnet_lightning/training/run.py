"""One run, finished or failed: its result is written to its folder."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from bagnet_lightning.errors import Interrupted, in_one_line
from bagnet_lightning.results import write_result
from bagnet_lightning.sweeps.runs import goes_on, outcome
from bagnet_lightning.training.loggers import close_logger, make_logger
from bagnet_lightning.training.ranks import rank

log = logging.getLogger(__name__)


def run(config: DictConfig, folder: Path, requested: dict, fit: Callable[..., dict]) -> dict:
    """Trains in `folder`, and returns and writes the result: `requested`, the measurements, status and error.

    fit: the function of that name of training or of pretraining.
    Raises Interrupted after a signal. With several ranks each returns a result, and only rank 0 writes it.
    """
    logger: Logger | None = None

    def work() -> dict:
        nonlocal logger
        logger = make_logger(config, folder, requested)
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


def _close(logger: Logger | None, result: dict) -> None:
    """Closes the logger; an error of the logger is logged, and does not change the run's result."""
    try:
        if logger:
            close_logger(logger, result)
    except Exception as error:
        log.warning("the logger has failed at the end: %s", in_one_line(error))
