"""Saves the team's dashboard on Weights & Biases, from the panels in conf/dashboard.yaml.

python -m bagnet_lightning.dashboard sweep=table1 entity=TEAM
"""

from hydra.utils import instantiate
from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.errors import UserError, in_one_line


@command("dashboard")
def main(config: DictConfig) -> None:
    sweep = config.sweep  # read first: a missing one is reported before anything is imported
    try:
        import wandb
        import wandb_workspaces.workspaces  # noqa: F401  conf/dashboard.yaml uses it
    except ModuleNotFoundError as error:
        raise UserError("a dashboard needs the package: pip install 'bagnet-lightning[dashboard]'") from error
    try:
        if not wandb.login(prompt=False):
            raise UserError("a dashboard is kept by W&B: log in first (`wandb login`, or WANDB_API_KEY)")
        config.entity = config.entity or wandb.Api().default_entity
        workspace = instantiate(config.workspace, _convert_="all").save()
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise UserError(f"W&B did not take the dashboard: {in_one_line(error)}") from error
    print(f"{sweep}: {workspace.url}")


if __name__ == "__main__":
    main()
