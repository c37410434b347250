"""Whether W&B is to be reached from this machine."""

import os
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit


def wandb_mode() -> str:
    """Returns WANDB_MODE; without it "online" if a key is configured, else "offline"."""
    return os.environ.get("WANDB_MODE") or ("online" if wandb_key() else "offline")


def wandb_key() -> bool:
    """Whether a key is configured, by WANDB_API_KEY or `wandb login`."""
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return "WANDB_API_KEY" in os.environ or netrc(file).authenticators(server) is not None
    except (OSError, NetrcParseError):
        return False
