"""Files that matter."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes `path` whole or not at all: under another name beside it, then renamed. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
