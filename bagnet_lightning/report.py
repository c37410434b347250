"""The results of a sweep beside the paper's: a table, Figure 2, learning curves and a page, from files alone.

    python -m bagnet_lightning.report runs=multirun_outputs/SWEEP
    python -m bagnet_lightning.report runs=multirun_outputs/SWEEP watch=true
    python -m bagnet_lightning.report runs=SWEEP,OTHER_SWEEP

Works while the sweep goes on, after a crash, and on another machine that has the runs' folders.
"""

from pathlib import Path

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from bagnet_lightning.cli import command
from bagnet_lightning.errors import UserError
from bagnet_lightning.reporting.report import watch, write_report
from bagnet_lightning.rules import BOOL, PATH, or_null, whole


@command("report", {"out": or_null(PATH), "port": whole(0, 2**16 - 1), "watch": BOOL, "gallery": BOOL}, lists=("runs",))
def main(config: DictConfig) -> None:
    if config.runs is None:
        raise UserError("whose results? add runs=multirun_outputs/SWEEP, the folder of a sweep")
    folders = [Path(str(folder)) for folder in (config.runs if isinstance(config.runs, ListConfig) else [config.runs])]
    if config.watch:
        watch(folders, config.port, Console())
    else:
        project = config.logger.get("project")
        if config.logger and (not project or len(folders) > 1):
            raise UserError("the report of one sweep can be logged, to logger=wandb; leave logger out, or ask for that")
        write_report(folders, Console(), config.out and Path(config.out), config.gallery, project)


if __name__ == "__main__":
    main()
