"""The rows of the paper's Table 1, as conf/table1/ has them."""

from dataclasses import dataclass
from functools import cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from omegaconf import OmegaConf

from bagnet_lightning.config import NOT_IN_DIGEST, leaves, plain, without_hydra
from bagnet_lightning.paths import CONF

_SETTINGS = (
    *("data.", "model.", "optim.", "scheduler.", "label_smoothing", "patch_loss", "weight_average"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_val"),
)
# Not settings of the training, or what a row is chosen by.
_OTHER = {*NOT_IN_DIGEST, "data.seed", "data.name", "data.sha256"}
_OTHER |= {"data._target_", "model._target_", "optim._target_"}
_ADDED = (  # which no row has
    "callbacks.",
    "trainer.limit_",
    "trainer.overfit_",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.val_check",
)


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 1; name is its file in conf/table1, accuracy the paper's best top-1 on Tiny ImageNet's val."""

    row: int
    name: str
    model: str
    optimizer: str
    pretrained: bool
    epochs: int
    accuracy: float


@cache
def paper_rows() -> list[PaperRow]:
    """The 17 rows of Table 1 in the paper's order, from conf/table1."""
    rows = []
    for path in (CONF / "table1").glob("*.yaml"):
        delta = OmegaConf.to_container(OmegaConf.load(path))
        chosen = {key: value for default in delta["defaults"] for key, value in default.items()}
        rows.append(
            PaperRow(
                row=delta["paper"]["row"],
                name=path.stem,
                model=chosen["override /model"],
                optimizer=chosen["override /optim"],
                pretrained=delta.get("model", {}).get("pretrained", False),
                epochs=delta["trainer"]["max_epochs"],
                accuracy=delta["paper"]["accuracy"],
            )
        )
    return sorted(rows, key=lambda row: row.row)


def paper_row(model: str, optimizer: str, pretrained: bool, epochs: int) -> PaperRow | None:
    """The row of Table 1 for "bagnet17", "adam", False, 15; None where the paper has no such row."""
    wanted = (model, optimizer, pretrained, epochs)
    return next((r for r in paper_rows() if (r.model, r.optimizer, r.pretrained, r.epochs) == wanted), None)


def departures(config: dict, row: PaperRow) -> list[str]:
    """The settings of a run's configuration that are not `row`'s, as "optim.lr=0.05"; none if it is the row itself."""
    ours = leaves(config)
    changed = [key for key, value in _settings(row.name).items() if key in ours and ours[key] != value]
    if "scheduler._target_" in changed:  # the keys of another one mean something else
        changed = [key for key in changed if not key.startswith("scheduler.")] + ["scheduler._target_"]
    changed += [key for key, value in ours.items() if key.startswith(_ADDED) and value]
    return [f"{key.removesuffix('._target_')}={ours[key]}" for key in changed]


@cache
def _settings(name: str) -> dict[str, object]:
    # Not by hydra.compose, which cannot be used inside one of Hydra's own commands.
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    config = loader.load_configuration("config", [f"table1={name}"], RunMode.RUN)
    found = leaves(plain(without_hydra(config)))
    return {key: value for key, value in found.items() if key.startswith(_SETTINGS) and key not in _OTHER}
