"""Trains one classifier, or with -m every cell of a grid.

    python -m bagnet_lightning.train model=bagnet17 optim=adam
    python -m bagnet_lightning.train -m model=bagnet9,bagnet17,bagnet33 optim=sgd,adam,adadelta

The same command again skips finished runs and continues unfinished ones.
"""

import logging
import os
import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bagnet_lightning.cli import command
from bagnet_lightning.config import digest, plain
from bagnet_lightning.errors import Diverged, Interrupted, UserError
from bagnet_lightning.files import write_text
from bagnet_lightning.results import paper_row, read_run, write_result

log = logging.getLogger(__name__)
RUN_FILES = ("config.yaml", "metrics.csv", "best.ckpt", "last.ckpt", "result.json")


@command("config")
def main(config: DictConfig) -> dict:
    folder = Path(HydraConfig.get().runtime.output_dir)
    asked = describe(config)
    if config.fresh:
        for name in RUN_FILES:
            (folder / name).unlink(missing_ok=True)
    earlier = read_run(folder)
    if earlier["config"] and digest(OmegaConf.create(earlier["config"])) != asked["config_digest"]:
        error = f"{folder} holds a run of another configuration; start over with fresh=true, or name another sweep=NAME"
        return {**asked, "status": "failed", "error": error}
    if earlier.get("status") == "finished":
        return {**earlier, "skipped": True}
    (folder / "result.json").unlink(missing_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    try:
        from bagnet_lightning.fit import fit

        result = {**asked, **fit(config, folder, run_id=asked["config_digest"]), "status": "finished"}
    except Interrupted as stop:
        log.info("stopped by %s; the same command again goes on", stop)
        raise SystemExit(stop.exit_code) from stop
    except Diverged as error:
        result = {**asked, "status": "diverged", "error": str(error)}
    except UserError as error:
        result = {**asked, "status": "failed", "error": str(error)}
    except Exception as error:
        log.error(traceback.format_exc())
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        result = {**asked, "status": "failed", "error": f"{what}; see train.log in {os.path.relpath(folder)}"}
    write_result(folder, result)
    return result


def describe(config: DictConfig) -> dict:
    """What was asked for: the part of a result that is known before the run."""
    model, optimizer, scheduler = (config[group]._target_.split(".")[-1] for group in ("model", "optim", "scheduler"))
    pretrained = config.model.pretrained is not False
    row = None
    if config.data.name == "tiny_imagenet":
        row = paper_row(model, optimizer.lower(), pretrained, config.trainer.max_epochs)
    return {
        "row": row and row.row,
        "model": model,
        "optimizer": optimizer.lower(),
        "scheduler": scheduler,
        "pretrained": pretrained,
        "epochs": config.trainer.max_epochs,
        "seed": config.seed,
        "data": config.data.name,
        "config_digest": digest(config),
        "overrides": list(HydraConfig.get().overrides.task),
        "paper": row and {"row": row.row, "accuracy": row.accuracy},
    }


if __name__ == "__main__":
    main()
