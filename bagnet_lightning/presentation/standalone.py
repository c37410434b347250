"""Self-contained HTML files: they hold style, script, data and pictures, and load nothing."""

import base64
import io
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

#: Colours, dark and light, and typography of all pages; a page's own style follows it.
STYLE = Path(__file__).with_name("style.css")


def page(folder: Path, name: str, title: str, data: dict, scripts: Sequence[str]) -> str:
    """Returns the page `folder`/`name`.html with page.css and `scripts` of the folder, which read `data` as JSON."""
    parts = {
        "TITLE": escape(title),
        "STYLE": "".join(path.read_text(encoding="utf-8") for path in (STYLE, folder / "page.css")),
        # "<" is escaped, so that it cannot end the script element.
        "DATA": json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
        "SCRIPT": "\n".join((folder / script).read_text(encoding="utf-8") for script in scripts),
    }
    template = (folder / f"{name}.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def png_uri(pixels: np.ndarray) -> str:
    """Returns an image, (H, W, 3) uint8, as the URI of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return data_uri(stream.getvalue(), "image/png")


def data_uri(content: bytes, kind: str) -> str:
    """Returns `content` as a data URI. kind: its media type, such as "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
