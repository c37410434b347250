"""Paths of the package's configs and of weight files."""

from pathlib import Path

_PACKAGED = Path(__file__).parent / "conf"

#: The folder of Hydra configs: inside the package in an installed wheel, at the top of the repository in a checkout.
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "conf"


def weights_file(path: str | Path) -> Path:
    """Returns the file of weights that a path names: itself, or the model in a folder made by `export format=hub`."""
    path = Path(path)
    return path / "model.safetensors" if path.is_dir() else path
