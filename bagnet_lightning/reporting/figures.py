"""Figure 2 and the learning curves of a sweep.

python -m bagnet_lightning.report runs=multirun_outputs/SWEEP writes them beside the runs.
"""

import math
import statistics
import textwrap
from collections.abc import Iterable
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bagnet_lightning.names import OPTIMIZERS, epochs_text, model_name, model_order, optimizer_name
from bagnet_lightning.presentation.plots import GREY
from bagnet_lightning.reporting.settings import format_settings, of_networks
from bagnet_lightning.reporting.table import Line, Table, sortable
from bagnet_lightning.results import read_metrics

# Okabe & Ito's colours: distinguishable with any colour vision, and in greyscale.
COLOURS = {"sgd": "#E69F00", "adam": "#0072B2", "adadelta": "#009E73", "adamw": "#CC79A7", "muon": "#D55E00"}
OTHER_COLOUR = "#56B4E9"
DASHES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")  # combined, 16 distinct line styles
DPI = 150
MOST_PANELS = 12  # in Figure 2; further ones are left to the table
SLOTS_A_ROW = 30  # maximum number of bars in a row of Figure 2
SLOT = 0.42  # width of a bar in inches


def draw_figure2(table: Table) -> Figure:
    """Draws the paper's grouped bars: best validation accuracy by model and optimizer, the paper's hatched beside ours.

    Runs with other epochs, pretraining or settings have panels of their own.
    """
    panels = _panels(table)
    best = sorted(panels, key=lambda panel: -max(line.accuracy or 0 for line in panel[1]))[:MOST_PANELS]
    shown = [panel for panel in panels if panel in best]
    rows: list[list[tuple[str, list[Line]]]] = [[]]
    for panel in shown:
        if rows[-1] and sum(_slots(lines) for _, lines in [*rows[-1], panel]) > SLOTS_A_ROW:
            rows.append([])
        rows[-1].append(panel)
    slots = max(sum(_slots(lines) for _, lines in row) for row in rows)
    figure = Figure(figsize=(max(6.5, slots * SLOT + 1.2), 3.6 * len(rows) + 0.9), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(len(rows), slots)
    first = None
    for i, row in enumerate(rows):
        start = 0
        for title, lines in row:
            stop = start + _slots(lines)
            axes = figure.add_subplot(grid[i, start:stop], sharey=first)
            _draw_bars(axes, lines, title)
            first = first or axes
            if start == 0:
                axes.set_ylabel("best validation accuracy (%)")
            else:
                axes.tick_params(labelleft=False)
            start = stop
    tallest = max([*_heights(line for _, lines in shown for line in lines), 1])
    first.set_ylim(0, tallest * 1.18)
    _add_legend(figure, _bar_legend(table))
    if hidden := len(panels) - len(shown):
        figure.supxlabel(f"{hidden} more settings, no better: see table.csv", fontsize=8, color=GREY)
    return figure


def draw_curves(table: Table) -> Figure:
    """Draws validation accuracy and train loss over epochs: one column per model, one curve per optimizer and settings.

    Runs of one line are drawn as their mean in a band from lowest to highest. A cross marks the end of a run that did
    not finish.
    """
    models = sorted({line.model for line in table.lines}, key=model_order)
    variants = list(dict.fromkeys(_variant(line, table) for line in table.lines))
    figure = Figure(figsize=(max(6.5, 3.3 * len(models) + 0.6), 6.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, len(models), sharex="col", sharey="row", squeeze=False)
    crosses = False
    for column, model in enumerate(models):
        panels[0, column].set_title(model_name(model), fontsize=11)
        panels[1, column].set_xlabel("epoch")
        panels[1, column].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for line in (line for line in table.lines if line.model == model):
            histories = [history for run in line.runs if (history := read_metrics(run["folder"]))]
            style = _style(variants.index(_variant(line, table)), optimizer_colour(line.optimizer))
            for axes, name, unit in zip(panels[:, column], ("val_accuracy", "train_loss"), (100, 1), strict=True):
                drawn = _draw_curve(axes, histories, name, unit, style, finished=line.status == "finished")
                crosses |= drawn and line.status != "finished"
        for axes in panels[:, column]:
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if not axes.lines:
                axes.text(0.5, 0.5, "no finished epoch", transform=axes.transAxes, ha="center", color=GREY)
    panels[0, 0].set_ylabel("validation accuracy (%)")
    panels[0, 0].set_ylim(bottom=0)
    panels[1, 0].set_ylabel("train loss")
    handles = [Line2D([], [], color=optimizer_colour(o), lw=2, label=optimizer_name(o)) for o in _optimizers(table)]
    if len(variants) > 1:
        handles += [
            Line2D([], [], **_style(i, GREY), label=variant or "from scratch")
            for i, variant in enumerate(variants[:16])
        ]
    if any(line.std is not None for line in table.lines):
        handles.append(Patch(facecolor=GREY, alpha=0.18, label="lowest to highest run"))
    if crosses:
        handles.append(Line2D([], [], color=GREY, linestyle="", marker="x", label="did not finish"))
    _add_legend(figure, handles)
    return figure


def _panels(table: Table) -> list[tuple[str, list[Line]]]:
    """Returns (title, lines) of each combination of epochs, pretraining and settings, the paper's own first."""

    def key(line: Line) -> tuple:
        settings = [sortable(value) for value in _settings(line, table).values()]
        return line.epochs != 15, line.pretrained != "no", -(line.epochs or 0), line.pretrained, settings

    def title(line: Line) -> str:
        return f"{epochs_text(line.epochs)}, {_variant(line, table) or 'from scratch'}"

    return [(text, list(lines)) for text, lines in groupby(sorted(table.lines, key=key), title)]


def _variant(line: Line, table: Table) -> str:
    """Describes pretraining and settings; empty for a run from scratch without settings."""
    pretrained = "" if line.pretrained == "no" else f"pretrained ({line.pretrained})"
    return ", ".join(filter(None, [pretrained, format_settings(_settings(line, table))]))


def _settings(line: Line, table: Table) -> dict[str, object]:
    told = of_networks(table.settings, ((other.model, other.settings) for other in table.lines))
    return {name: value for name, value in line.settings.items() if name not in told}


def _slots(lines: list[Line]) -> int:
    """Returns the width of a panel, its bars and the gaps around its groups, in widths of a bar."""
    cells = {(line.model, line.optimizer) for line in lines}
    return max(_bars(lines) * len(cells) + len({model for model, _ in cells}) + 1, 5)


def _bars(lines: list[Line]) -> int:
    """Returns the number of bars of a cell: the paper's has a place where any cell has one."""
    return 2 if any(line.paper for line in lines) else 1


def _draw_bars(axes: Axes, lines: list[Line], title: str) -> None:
    x, ticks, bars = 0.0, [], _bars(lines)
    models = sorted({line.model for line in lines}, key=model_order)
    for model in models:
        start = x
        cells = [line for line in lines if line.model == model]
        for optimizer in sorted({line.optimizer for line in cells}, key=_optimizer_order):
            cell = [line for line in cells if line.optimizer == optimizer]
            _draw_pair(axes, x, next((line for line in cell if line.accuracy is not None), cell[0]))
            x += bars
        ticks.append((start + x - 1) / 2)
        x += 1
    axes.set_xticks(ticks, [model_name(model) for model in models])
    middle, half = (x - 2) / 2, max(_slots(lines) / 2, 1.7)
    axes.set_xlim(middle - half, middle + half)
    axes.set_title(textwrap.fill(title, 5 * _slots(lines)), fontsize=10)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def _draw_pair(axes: Axes, x: float, line: Line) -> None:
    """Draws our bar at x, the paper's at x + 1."""
    colour = optimizer_colour(line.optimizer)
    if line.accuracy is not None:
        height, error = 100 * line.accuracy, 100 * (line.std or 0)
        axes.bar(x, height, width=0.92, color=colour)
        if line.std is not None:
            axes.errorbar(x, height, error, color="black", capsize=3, lw=1)
        _label(axes, x, height + error, f"{height:.1f}", "bold")
    else:
        text = "no value" if line.status == "finished" else line.status
        axes.annotate(
            text,
            (x, 0),
            (0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90,
            fontsize=8,
            color=GREY,
        )
    if line.paper:
        height = 100 * line.paper.accuracy
        axes.bar(x + 1, height, width=0.92, facecolor="none", edgecolor=colour, hatch="////", lw=1)
        _label(axes, x + 1, height, f"({height:.1f})" if line.not_comparable else f"{height:.1f}", "normal")


def _label(axes: Axes, x: float, height: float, text: str, weight: str) -> None:
    axes.annotate(text, (x, height), (0, 2), textcoords="offset points", ha="center", fontsize=8, fontweight=weight)


def _add_legend(figure: Figure, handles: list) -> None:
    """Adds a legend above the panels, in as few lines as the figure's width allows; the figure gets taller by them."""
    width, height = figure.get_size_inches()
    for handle in handles:  # with many settings, a label can be wider than the figure
        handle.set_label(textwrap.fill(handle.get_label(), int((width - 0.7) / 0.075)))
    labels = [handle.get_label().splitlines() for handle in handles]
    inches = [0.7 + 0.075 * max(map(len, label), default=0) for label in labels]
    for lines in range(1, len(handles) + 1):
        if sum(max(inches[i : i + lines]) for i in range(0, len(handles), lines)) < width:
            break
    columns = math.ceil(len(handles) / lines)
    figure.set_size_inches(width, height + 0.2 * lines * max(map(len, labels), default=1))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def _heights(lines: Iterable[Line]) -> list[float]:
    """Returns the heights of all bars with their error bars, in %."""
    heights = []
    for line in lines:
        heights += [100 * (line.accuracy + (line.std or 0))] if line.accuracy is not None else []
        heights += [100 * line.paper.accuracy] if line.paper else []
    return heights


def _bar_legend(table: Table) -> list:
    handles = [
        Patch(facecolor=optimizer_colour(optimizer), label=optimizer_name(optimizer))
        for optimizer in _optimizers(table)
    ]
    if any(line.paper for line in table.lines):
        departs = any(line.paper and line.not_comparable for line in table.lines)
        label = "the paper, on the full Tiny ImageNet (in parentheses: not comparable)" if departs else "the paper"
        handles.append(Patch(facecolor="none", edgecolor=GREY, hatch="////", label=label))
    counts = {len(line.runs) for line in table.lines if line.std is not None}
    if counts:
        label = f"± standard deviation, n = {'–'.join(map(str, sorted({min(counts), max(counts)})))} runs"
        handles.append(Line2D([], [], color="black", marker="|", markersize=10, linestyle="", label=label))
    return handles


def _draw_curve(axes: Axes, histories: list[list[dict]], name: str, unit: float, style: dict, finished: bool) -> bool:
    """Draws the mean of `histories` over the epochs that all of them have. Returns False if there are none."""
    curves = [{row["epoch"]: unit * row[name] for row in rows if row.get(name) is not None} for rows in histories]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    if not epochs:
        return False
    values = [[curve[epoch] for curve in curves] for epoch in epochs]
    means = [statistics.mean(at_epoch) for at_epoch in values]
    axes.plot(epochs, means, **style)
    if len(curves) > 1:
        axes.fill_between(epochs, [*map(min, values)], [*map(max, values)], color=style["color"], alpha=0.18, lw=0)
    if not finished:
        axes.plot(epochs[-1], means[-1], color=style["color"], marker="x", markersize=8, mew=2)
    return True


def _style(variant: int, colour: str) -> dict:
    dash, marker = DASHES[variant % len(DASHES)], MARKERS[variant // len(DASHES) % len(MARKERS)]
    return {"color": colour, "linestyle": dash, "marker": marker, "markersize": 3, "lw": 1.6}


def _optimizers(table: Table) -> list[str]:
    return sorted({line.optimizer for line in table.lines}, key=_optimizer_order)


def _optimizer_order(optimizer: str) -> tuple[int, str]:
    return ([*OPTIMIZERS].index(optimizer) if optimizer in OPTIMIZERS else len(OPTIMIZERS)), optimizer


def optimizer_colour(optimizer: str) -> str:
    return COLOURS.get(optimizer, OTHER_COLOUR)
