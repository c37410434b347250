"""An analysis as a table in the terminal and as one self-contained page."""

from html import escape
from itertools import groupby

from bagnet_lightning.analysis.figures import FILL_NAMES, METHODS
from bagnet_lightning.presentation.standalone import STYLE, data_uri

OWN_STYLE = """
body { max-width: 62rem }
h2 { margin: 2.2rem 0 .3rem }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap }
tr > th:first-child { white-space: normal; font-weight: 400 }
.group tr + tr > th { padding-left: 1rem }
.group tr:not(:last-child) > * { border-bottom: 0 }
td { font-variant-numeric: tabular-nums }
.quiet, figcaption { overflow-wrap: anywhere } figure { margin: .5rem 0 }
@media screen and (max-width: 600px) { figure img { width: 520px; max-width: none } }
@media print {
  html { font-size: 75% } body { max-width: none; padding: 0; font-size: 1rem }
  h2 { break-after: avoid } figure, tr { break-inside: avoid } figure img { max-height: 20cm }
}
"""

# For each figure: heading and caption, the source included.
SECTIONS = {
    "patches": (
        "Most informative patches of {name}",
        "For each class the patches with the highest logit for it, at most one an image: in images of the class, and, "
        "misleadingly, in images of others. Numbers are logits (Brendel & Bethge 2019, section 4.2).",
    ),
    "kept": (
        "Accuracy by kept patches",
        "Only k patches of an image are kept, and their logits averaged. Strongest: the largest logit less the mean "
        "over the classes. Each class's own strongest: every class averages its own k patches (k = 1 is max pooling). "
        "No rule looks at the label; all meet in the network's own accuracy.",
    ),
    "masked": (
        "Deletion and insertion",
        "Tiles of {tile} x {tile} px, in the order of each method's map of the predicted class, are replaced by the "
        "mean colour (black for a network without normalisation) or by the blurred image, or shown on it (Petsiuk et "
        "al. 2018). Same images and same tiles for every method. The mean colour is also where integrated gradients "
        "start. Exact evidence is, for each pixel, the logit of the patch centred on it; exact contributions are what "
        "the patches that the network looks at add to the logit, each evenly over its pixels. Both are exact for whole "
        "patches: which of its pixels matter they do not say, and a tile is part of several patches.",
    ),
    "pointing": (
        "Pointing game",
        "Whether the strongest pixel of the true class's map lies in the object's bounding box (Zhang et al. 2016, "
        "without tolerance), and how much of the map's positive part does (Wang et al. 2020). Objects tend to the "
        "middle, so the middle pixel is the baseline to beat. Grad-CAM is as coarse as a network's last stage: 2 x 2 "
        "values for 64 px images in a ResNet-18 with the ImageNet stem.",
    ),
    "shuffled": (
        "Shuffled tiles",
        "The tiles of every image in random order: what does not change does not rest on the order of larger parts "
        "(after Brendel & Bethge 2019, section 4.3). Same orders for every network.",
    ),
}


def summary(networks: list[dict]) -> list[list[str]]:
    """Returns the main numbers as rows of cells: a heading row, then measurements with their value for each network.

    ↑ and ↓ mark what is better when it is higher or lower.
    """
    rows = {
        "accuracy ↑": [value(network["shuffled"]["accuracy"][-1]) for network in networks],
        "additivity error ↓": [
            f"{network['additivity_error']:.1e}" if "additivity_error" in network else "" for network in networks
        ],
    }
    for fill, fill_name in FILL_NAMES.items():
        for kind, better in (("deletion", "↓"), ("insertion", "↑")):
            for method, (name, _) in METHODS.items():
                rows[f"{kind} area {better}, {fill_name}, {name}"] = [
                    value(network["masked"][fill][method][kind]["area"]) if method in network["masked"][fill] else ""
                    for network in networks
                ]
    for key, name in (("hits", "points into the box ↑"), ("mass", "positive evidence in the box ↑")):
        for method, (method_name, _) in METHODS.items():
            rows[f"{name}, {method_name}"] = [
                value(network["pointing"][method][key]) if method in network.get("pointing", ()) else ""
                for network in networks
            ]
    for key, name in (("chance", "the box's share of the image"), ("centre", "middle pixel in the box")):
        rows[name] = [value(network["pointing"][key]) if "pointing" in network else "" for network in networks]
    for position, size in enumerate(networks[0]["shuffled"]["tile"]):
        if size:
            for key, name in (("accuracy", "accuracy"), ("unchanged", "unchanged predictions")):
                rows[f"{name}, {size} px tiles shuffled"] = [
                    value(network["shuffled"][key][position]) for network in networks
                ]
    body = [[name, *cells] for name, cells in rows.items() if any(cells)]
    return [["", *(network["name"] for network in networks)], *body]


def value(number: dict) -> str:
    """Formats {"mean", "se", "n"}."""
    if number["mean"] is None:
        return ""
    return f"{number['mean']:.3f}" + (f" ± {number['se']:.3f}" if number["se"] is not None else "")


def as_text(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def page(analysis: dict, pictures: dict[str, bytes]) -> str:
    """Returns the analysis as a self-contained HTML page. pictures: PNGs by name; "patches_2": the second network's."""
    networks = analysis["networks"]
    head, *body = summary(networks)
    table = f"<tr>{''.join(f'<th scope=col>{escape(cell)}</th>' for cell in head)}</tr>" + "".join(
        _rows(subject, [*rows]) for subject, rows in groupby(body, lambda row: row[0].rpartition(", ")[0])
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(n for net in networks for n in net["notes"]))
    sources = "<br>".join(f"{escape(network['name'])}: {escape(network['checkpoint'])}" for network in networks)
    figures = "".join(_figure(name, networks, picture) for name, picture in pictures.items())
    title = f"What decisions of {' and '.join(escape(network['name']) for network in networks)} rest on"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<meta name="color-scheme" content="light dark">
<style>{STYLE.read_text(encoding="utf-8")}{OWN_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{escape(analysis["data"])}, {escape(analysis["split"])} split, {analysis["classes"]} classes:
{networks[0]["images"]:,} images, chosen at random (seed {analysis["seed"]}); maps and masks on
{networks[0]["map_images"]:,} of them. ± and bands are one standard error over the images;
↑ is better when higher, ↓ when lower.</p>
<p class="quiet">{sources}</p>
<div class="wide"><table>{table}</table></div>
{f"<ul class='quiet'>{notes}</ul>" if notes else ""}
{figures}
</body>
</html>
"""


def _rows(subject: str, rows: list[list[str]]) -> str:
    """Returns the rows of one subject; several have it as a heading, and their names only what follows it."""
    heading = bool(subject) and len(rows) > 1
    lines = [f"<tr><th scope=rowgroup colspan={len(rows[0])}>{escape(subject)}</th></tr>"] if heading else []
    for name, *cells in rows:
        own = escape(name.removeprefix(f"{subject}, ") if heading else name)
        lines.append(f"<tr><th scope=row>{own}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return f"<tbody{' class=group' if heading else ''}>{''.join(lines)}</tbody>"


def _figure(name: str, networks: list[dict], picture: bytes) -> str:
    section, _, number = name.partition("_")
    network = networks[int(number) - 1 if number else 0]
    heading, caption = (
        escape(text.format(name=network["name"], tile=network["masked"]["tile"])) for text in SECTIONS[section]
    )
    return (
        f"<h2>{heading}</h2>\n<figure>"
        f'<div class="wide"><img alt="{heading}" src="{data_uri(picture, "image/png")}"></div>'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )
