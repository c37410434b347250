"""The figures of an analysis: one function per measurement, from the plain numbers that measure.py returns.

`networks` are one such dict for each network, with its "name". None is returned if the subject was not measured.
"""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bagnet_lightning.names import MAPS, clipped
from bagnet_lightning.presentation.overlays import cut_out
from bagnet_lightning.presentation.plots import GREY

DPI = 150
# Okabe & Ito's colours: distinguishable with any colour vision, and in greyscale.
COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#009E73")
METHODS = {key: (name, colour) for (key, name), colour in zip(MAPS.items(), COLOURS, strict=True)}
METHODS["random"] = ("random order", GREY)
FILL_NAMES = {"zero": "mean colour", "blur": "blurred image"}
KEPT_BY = {
    "strongest": ("strongest patches", "#0072B2"),
    "by_class": ("each class's own strongest", "#E69F00"),
    "random": ("random patches", GREY),
}
NETWORKS = ("#0072B2", "#D55E00")
CLASSES_SHOWN = 10
ROW = 1.5  # height of a row of patches, in widths of a patch
OUTSIDE = 217  # grey value where a patch reaches beyond the image


def draw_patches(network: dict, class_names: dict[str, str], pixels: np.ndarray) -> Figure:
    """Draws the most informative patches of some classes: correct ones on the left, misleading ones on the right.

    class_names: by identifier. pixels: (N, H, W, 3) uint8, all images of the split.
    """
    informative = {label: found for label, found in network["informative"].items() if found["correct"]}
    shown = [*informative][:: max(1, -(-len(informative) // CLASSES_SHOWN))]
    columns = max(len(entries) for label in shown for entries in informative[label].values())
    starts = {"correct": 0.0, "misleading": columns + 0.4}
    figure = Figure(figsize=(2 * columns * 0.78 + 2.2, len(shown) * 0.78 * ROW + 0.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for row, label in enumerate(shown):
        for kind, start in starts.items():
            for i, entry in enumerate(informative[label][kind]):
                x, y = start + i, ROW * row
                square = entry["top"], entry["left"], network["receptive_field"]
                patch = cut_out(pixels[entry["image"]], *square, OUTSIDE)
                axes.imshow(patch, extent=(x, x + 0.94, y + 0.94, y), interpolation="nearest")
                text = f"{entry['logit']:.1f}"
                if kind == "misleading":
                    text += "\n" + textwrap.fill(clipped(class_names[entry["label"]], 24), 12)
                axes.text(x + 0.47, y + 0.97, text, ha="center", va="top", fontsize=7, color=GREY, linespacing=0.95)
        name = textwrap.fill(clipped(class_names[label], 30), 16)
        axes.text(-0.15, ROW * row + 0.47, name, ha="right", va="center", fontsize=9)
    for kind, heading in (("correct", "in images of the class"), ("misleading", "in images of other classes (named)")):
        axes.text(starts[kind], -0.15, heading, fontsize=10, va="bottom")
    axes.set_xlim(-1.9, starts["misleading"] + columns)
    axes.set_ylim(ROW * len(shown), -0.5)
    axes.set_axis_off()
    return figure


def draw_kept(networks: list[dict]) -> Figure | None:
    """Draws accuracy by the number of patches kept, one panel per network."""
    networks = [network for network in networks if "strongest" in network]
    if not networks:
        return None
    figure, panels = _panels(1, len(networks), sharey=True)
    for axes, network in zip(panels[0], networks, strict=True):
        kept = network["strongest"]["kept"]
        for rule, (label, colour) in KEPT_BY.items():
            _line(axes, kept, network["strongest"][rule], label, colour)
        axes.set_xscale("log", base=2)
        axes.set_xticks(kept, [str(k) for k in kept])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(f"patches kept of {network['patches']}")
        axes.set_title(network["name"], fontsize=10)
    panels[0, 0].set_ylabel("accuracy (%)")
    panels[0, 0].set_ylim(bottom=0)
    _legend(figure, panels[0, 0])
    return figure


def draw_masked(networks: list[dict]) -> Figure:
    """Draws deletion and insertion curves, one row for each of them and each fill, one column per network."""
    rows = [(fill, kind) for fill in FILL_NAMES for kind in ("deletion", "insertion")]
    actions = {"deletion": "masked", "insertion": "shown"}
    figure, panels = _panels(len(rows), len(networks), sharey="row")
    for column, network in enumerate(networks):
        shares = [100 * share for share in network["masked"]["shares"]]
        for axes, (fill, kind) in zip(panels[:, column], rows, strict=True):
            masked = network["masked"][fill]
            for method, (name, colour) in METHODS.items():
                if method in masked:
                    _line(axes, shares, masked[method][kind]["curve"], name, colour)
            axes.set_xlabel(f"strongest tiles {actions[kind]} (%)")
        panels[0, column].set_title(network["name"], fontsize=10)
    for axes, (fill, kind) in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(f"{kind}, {FILL_NAMES[fill]}:\nprobability of the\npredicted class (%)")
        axes.set_ylim(bottom=0)
    _legend(figure, *panels[0])
    return figure


def draw_pointing(networks: list[dict]) -> Figure | None:
    """Draws the pointing game: hits and mass inside the box, for each network and method, against chance."""
    networks = [network for network in networks if "pointing" in network]
    if not networks:
        return None
    figure, panels = _panels(1, 2, height=0.9 + 0.9 * len(networks))
    titles = {"hits": "strongest pixel in the box (% of images)", "mass": "positive evidence in the box (%)"}
    for axes, (kind, title) in zip(panels[0], titles.items(), strict=True):
        ticks, y = [], 0
        for network in networks:
            start = y
            for method in (method for method in METHODS if method in network["pointing"]):
                value, colour = network["pointing"][method][kind], METHODS[method][1]
                share = 100 * (value["mean"] or 0)
                axes.barh(y, share, 0.85, xerr=_error(value), color=colour, ecolor="black", capsize=2)
                end = share + _error(value)
                axes.annotate(f"{share:.0f}", (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
                y += 1
            ticks.append(((start + y - 1) / 2, network["name"]))
            y += 0.7
        chance = 100 * networks[0]["pointing"]["chance"]["mean"]
        axes.axvline(chance, color="black", linestyle=":", lw=1.2, label="the box's share of the image (chance)")
        if kind == "hits":
            centre = 100 * networks[0]["pointing"]["centre"]["mean"]
            axes.axvline(centre, color=GREY, linestyle="--", lw=1.2, label="always the middle pixel")
        axes.set_yticks(*zip(*ticks, strict=True))
        axes.set_ylim(y - 0.6, -0.7)
        axes.set_xlim(0, 100)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(title)
        axes.grid(axis="y", visible=False)
    panels[0, 1].set_yticklabels([])
    for method, (name, colour) in METHODS.items():
        if any(method in network["pointing"] for network in networks):
            panels[0, 0].bar(0, 0, color=colour, label=name)
    _legend(figure, panels[0, 0], columns=3)
    return figure


def draw_shuffled(networks: list[dict]) -> Figure:
    """Draws accuracy and the share of unchanged predictions by the size of the shuffled tiles, one line per network."""
    figure, panels = _panels(1, 2)
    sizes = networks[0]["shuffled"]["tile"]
    for axes, key, label in zip(
        panels[0], ("accuracy", "unchanged"), ("accuracy (%)", "unchanged predictions (%)"), strict=True
    ):
        for number, (network, colour) in enumerate(zip(networks, NETWORKS, strict=False)):
            positions = [tick + 0.06 * number for tick in range(len(sizes))]
            values = network["shuffled"][key]
            axes.errorbar(
                positions,
                [100 * (value["mean"] or 0) for value in values],
                [_error(value) for value in values],
                color=colour,
                marker="o",
                markersize=4,
                capsize=3,
                label=network["name"],
            )
        axes.set_xticks(range(len(sizes)), ["none" if size is None else f"{size} px" for size in sizes])
        axes.set_xlim(-0.3, len(sizes) - 0.6)
        axes.set_ylim(0, 108 if key == "unchanged" else None)
        axes.set_xlabel("shuffled tiles")
        axes.set_ylabel(label)
    if len(networks) > 1:
        _legend(figure, panels[0, 0])
    return figure


#: What is drawn of all networks together, by the figure's name.
FIGURES = {"kept": draw_kept, "masked": draw_masked, "pointing": draw_pointing, "shuffled": draw_shuffled}


def _panels(rows: int, columns: int, height: float = 2.7, sharey: bool | str = False) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(max(6.5, 3.4 * columns), height * rows + 0.5), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    for axes in panels.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure, panels


def _line(axes: Axes, x: list, values: list[dict], label: str, colour: str) -> None:
    """Draws the means in % in a band of one standard error on either side."""
    means = np.array([100 * (value["mean"] or 0) for value in values])
    errors = np.array([_error(value) for value in values])
    axes.plot(x, means, color=colour, marker="o", markersize=3, lw=1.6, label=label)
    axes.fill_between(x, means - errors, means + errors, color=colour, alpha=0.18, lw=0)


def _legend(figure: Figure, *panels: Axes, columns: int = 4) -> None:
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=columns, frameon=False, fontsize=8)


def _error(value: dict) -> float:
    """Returns one standard error in %; 0, if there is none."""
    return 100 * (value["se"] or 0)
