"""The rows of the paper's Table 1, from conf/table1/."""

from dataclasses import dataclass
from functools import cache

from omegaconf import OmegaConf

from bagnet_lightning.config import NOT_IN_DIGEST, composed, leaves, plain, within
from bagnet_lightning.paths import CONF

# Not settings of the training, repeated by other keys, or what a row is chosen by.
_NO_SETTING = (
    *(*NOT_IN_DIGEST, "seed", "data.seed", "data.name", "data.sha256", "image_files", "image_size"),
    *("batches", "bagnet", "pretrained_sha256", "trainer.max_epochs"),
    *("trainer.accelerator", "trainer.precision", "trainer.deterministic", "trainer.sync_batchnorm"),
    *("trainer.strategy", "trainer.benchmark", "trainer.detect_anomaly"),
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
    """Returns the 17 rows of Table 1 in the paper's order, from conf/table1."""
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
    """Returns the row of Table 1 for "bagnet17", "adam", False, 15; None if the paper has no such row."""
    requested = (model, optimizer, pretrained, epochs)
    return next((r for r in paper_rows() if (r.model, r.optimizer, r.pretrained, r.epochs) == requested), None)


def departures(config: dict, row: PaperRow) -> list[str]:
    """Returns the settings of a run's configuration that differ from `row`'s, as "optim.lr=0.05"; empty for the row."""
    ours, expected = _settings(config), _settings_of_row(row.name)
    changed = [key for key in {**expected, **ours} if key in ours and ours[key] != expected.get(key)]
    if "scheduler._target_" in changed:  # another scheduler's keys mean something else
        changed = [key for key in changed if not key.startswith("scheduler.")] + ["scheduler._target_"]
    short = leaves(config)

    def shown(key: str) -> object:  # with its module if a class of the same name is expected
        return ours[key] if str(expected.get(key)).rpartition(".")[2] == short[key] else short[key]

    return [f"{key.removesuffix('._target_')}={shown(key)}" for key in changed]


def _settings(config: dict) -> dict[str, object]:
    return {key: value for key, value in leaves(config, modules=True).items() if not within(key, _NO_SETTING)}


@cache
def _settings_of_row(name: str) -> dict[str, object]:
    return _settings(plain(composed(f"table1={name}")))
