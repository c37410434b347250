"""The rows of the paper's Table 1, as conf/table1/ has them."""

from dataclasses import dataclass
from functools import cache

from omegaconf import OmegaConf

from bagnet_lightning.paths import CONF


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
