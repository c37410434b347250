"""The figures show what was measured, mark what is missing, and clip or cover nothing."""

import pytest
from sweep_folders import write_run

from bagnet_lightning.reporting.figures import draw_curves, draw_figure2
from bagnet_lightning.reporting.table import read_table
from bagnet_lightning.table1 import paper_rows


def bars(axes) -> list[float]:
    return [round(bar.get_height(), 6) for bar in axes.patches]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def inside(figure) -> bool:
    """Whether all text is within the picture."""
    figure.draw_without_rendering()
    picture = figure.bbox.padded(1)
    words = [t for axes in figure.axes for t in (*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label)]
    words += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [word.get_window_extent() for word in words if word.get_text()]
    return all(picture.x0 <= b.x0 and b.x1 <= picture.x1 and picture.y0 <= b.y0 and b.y1 <= picture.y1 for b in boxes)


def test_one_run_has_its_bar_and_the_papers(tmp_path):
    write_run(tmp_path / "a", accuracy=0.4)
    figure = draw_figure2(read_table(tmp_path))
    assert bars(figure.axes[0]) == [40.0, 42.34]
    assert texts(figure.axes[0]) == ["40.0", "42.3"]
    assert figure.axes[0].patches[0].get_hatch() is None
    assert figure.axes[0].patches[1].get_hatch()
    assert figure.axes[0].get_ylim()[1] > 42.34
    assert inside(figure)


def test_bars_leave_no_place_for_a_paper_that_has_no_value(tmp_path):
    for name in ("sgd", "adam"):
        write_run(tmp_path / name, optimizer=name, config={"data.name": "textures"}, data="textures")
    first, second = draw_figure2(read_table(tmp_path)).axes[0].patches
    assert second.get_x() - first.get_x() == pytest.approx(1)


def test_groups_go_by_patch_size_and_failed_cells_are_marked(tmp_path):
    for model in ("resnet18", "bagnet33", "bagnet9"):
        write_run(tmp_path / model, model, "sgd", 0.2)
    write_run(tmp_path / "x", "bagnet17", "sgd", status="failed", error="no")
    (axes,) = draw_figure2(read_table(tmp_path)).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["BagNet-9", "BagNet-17", "BagNet-33", "ResNet-18"]
    assert texts(axes) == ["20.0", "0.5", "failed", "2.6", "20.0", "2.1", "20.0", "25.9"]
    assert len(bars(axes)) == 7


def test_the_17_rows_have_a_panel_for_each_training(tmp_path):
    for row in paper_rows():
        fields = {"epochs": row.epochs, "pretrained": row.pretrained}
        write_run(tmp_path / row.name, row.model, row.optimizer, row.accuracy, **fields)
    figure = draw_figure2(read_table(tmp_path))
    titles = [" ".join(axes.get_title().split()) for axes in figure.axes]
    kinds = ["from scratch", "pretrained (ImageNet)"]
    assert titles == [f"{epochs} epochs, {kind}" for epochs in (15, 5) for kind in kinds]
    assert [len(axes.patches) for axes in figure.axes] == [2 * 10, 2 * 1, 2 * 4, 2 * 2]
    assert inside(figure)


def test_seeds_have_error_bars_and_a_word_in_the_legend(tmp_path):
    for seed, accuracy in enumerate((0.3, 0.34)):
        write_run(tmp_path / str(seed), accuracy=accuracy, seed=seed)
    figure = draw_figure2(read_table(tmp_path))
    (errorbar,) = figure.axes[0].containers[1:2]
    (segment,) = errorbar.lines[2][0].get_segments()
    assert segment[:, 1].tolist() == pytest.approx([32 - 2 * 2**0.5, 32 + 2 * 2**0.5])
    assert "n = 2 runs" in figure.legends[0].get_texts()[-1].get_text()


def test_the_legend_says_when_the_paper_cannot_be_compared(tmp_path):
    write_run(tmp_path / "a", classes=10)
    figure = draw_figure2(read_table(tmp_path))
    assert "(42.3)" in texts(figure.axes[0])
    legend = figure.legends[0]
    assert "not comparable" in legend.get_texts()[-1].get_text()


def test_very_many_settings_are_told_instead_of_drawn(tmp_path):
    for i in range(20):
        write_run(tmp_path / str(i), config={"optim.lr": 0.001 * (i + 1)})
    table = read_table(tmp_path)
    figure = draw_figure2(table)
    assert len(figure.axes) == 12
    assert "8 more settings" in figure.get_supxlabel()
    assert inside(figure)
    assert inside(draw_curves(table))


def test_curves_are_the_metrics_a_column_a_model(tmp_path):
    write_run(tmp_path / "a", "bagnet9", accuracy=0.3, epochs=4)
    write_run(tmp_path / "b", "bagnet33", accuracy=0.4, epochs=1)
    figure = draw_curves(read_table(tmp_path))
    assert [axes.get_title() for axes in figure.axes] == ["BagNet-9", "BagNet-33", "", ""]
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata()[-1] == pytest.approx(30)
    assert figure.axes[1].lines[0].get_marker() == "o"  # one epoch is a point, not an invisible line
    assert inside(figure)


def test_curves_of_seeds_are_their_mean(tmp_path):
    write_run(tmp_path / "a", accuracy=0.3, seed=0)
    write_run(tmp_path / "b", accuracy=0.5, seed=1)
    axes = draw_curves(read_table(tmp_path)).axes[0]
    (line,) = axes.lines
    assert line.get_ydata()[-1] == pytest.approx(40)
    assert len(axes.collections) == 1  # the band


def test_an_unfinished_curve_ends_in_a_cross_and_no_epoch_says_so(tmp_path):
    write_run(tmp_path / "a", "bagnet9", status=None, done=3)
    write_run(tmp_path / "b", "bagnet17", status="failed", error="at once")
    figure = draw_curves(read_table(tmp_path))
    assert [line.get_marker() for line in figure.axes[0].lines] == ["o", "x"]
    assert texts(figure.axes[1]) == ["no finished epoch"]
    assert "did not finish" in [text.get_text() for text in figure.legends[0].get_texts()]
