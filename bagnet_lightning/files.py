"""Files that matter."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes `path` whole or not at all: under another name beside it, then renamed. Raises OSError."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """The same for what is no text."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
