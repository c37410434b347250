"""The page as one HTML file, from its data; Chart.js (MIT), which draws the charts, is embedded once."""

from pathlib import Path

from bagnet_lightning.presentation.standalone import page

TEMPLATE = Path(__file__).parent / "template"
SCRIPTS = ("vendor/chart.umd.min.js", "table.js", "charts.js", "run.js", "page.js")


def results_page(data: dict) -> str:
    """Returns the HTML of the page. data: from page_data."""
    return page(TEMPLATE, "page", data["title"], data, SCRIPTS)
