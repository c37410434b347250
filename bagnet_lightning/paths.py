"""Where the package keeps what is not Python."""

from pathlib import Path

_PACKAGED = Path(__file__).parent / "conf"

#: The folder of Hydra configs: inside the package in an installed wheel, at the top of the repository in a checkout.
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "conf"
