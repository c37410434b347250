"""One run, whatever becomes of it: its result says so, and is written to its folder."""

import logging
import os
import traceback
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from bagnet_lightning.config import plain
from bagnet_lightning.errors import Diverged, Interrupted, UserError
from bagnet_lightning.results import write_result
from bagnet_lightning.training.ranks import rank

log = logging.getLogger(__name__)


def run(config: DictConfig, folder: Path, asked: dict) -> dict:
    """Trains in `folder`, and returns and writes the result: `asked`, what was measured, status and error.

    Raises Interrupted after a signal. Of ranks that train together each returns a result, and rank 0 writes it.
    """
    logger = None
    try:
        from bagnet_lightning.training.fit import fit

        if config.logger:
            logger = instantiate(config.logger, _partial_=True)(folder=folder, composed=plain(config), asked=asked)
        result = {**asked, **fit(config, folder, logger), "status": "finished"}
    except Interrupted as stop:
        log.info("stopped by %s; the same command again goes on", stop)
        if logger:
            logger.close({**asked, "status": "unfinished"})
        raise
    except Diverged as error:
        result = {**asked, "status": "diverged", "error": str(error)}
    except UserError as error:
        result = {**asked, "status": "failed", "error": str(error)}
    except Exception as error:
        log.error(traceback.format_exc())
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        result = {**asked, "status": "failed", "error": f"{what}; see train.log in {os.path.relpath(folder)}"}
    if rank(config) == 0:
        write_result(folder, result)
    if logger:
        logger.close(result)
    return result
