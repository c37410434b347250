"""The page as one HTML file, from its data; Chart.js (MIT), which draws the charts, is embedded once."""

from html import escape
from pathlib import Path

from bagnet_lightning.standalone import STYLE, embedded, fill

TEMPLATE = Path(__file__).parent / "template"
SCRIPTS = ("table.js", "charts.js", "run.js", "page.js")


def page(data: dict) -> str:
    """Returns the HTML of the page. data: from page_data."""

    def text(path: Path) -> str:
        return path.read_text(encoding="utf-8")

    return fill(
        TEMPLATE / "page.html",
        TITLE=escape(data["title"]),
        STYLE=text(STYLE) + text(TEMPLATE / "page.css"),
        CHARTS=text(TEMPLATE / "vendor" / "chart.umd.min.js"),
        DATA=embedded(data),
        SCRIPT="\n".join(text(TEMPLATE / name) for name in SCRIPTS),
    )
