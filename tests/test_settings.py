"""Which settings a table has to show, and which are explained by its other columns."""

from sweep_folders import write_run

from bagnet_lightning.reporting.columns import table1, table1_short
from bagnet_lightning.reporting.settings import COLUMNS, differing_settings, format_settings, short
from bagnet_lightning.reporting.table import read_table
from bagnet_lightning.results import read_runs


def test_a_grid_of_models_and_optimizers_differs_in_nothing_else(tmp_path):
    for model in ("bagnet9", "bagnet33", "resnet18"):
        for optimizer in ("sgd", "adam", "adadelta"):
            write_run(tmp_path / f"{model}{optimizer}", model, optimizer)
    write_run(tmp_path / "seed", seed=1)
    write_run(tmp_path / "pretrained", pretrained="/weights.pth")
    write_run(tmp_path / "elsewhere", config={"data.root": "/there", "fresh": True})
    assert differing_settings(read_runs(tmp_path)) == []


def test_what_was_swept_is_shown_once(tmp_path):
    for rate in (0.1, 0.01):
        for width in (0.5, 1.0):
            onecycle = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": rate}
            config = {"optim.lr": rate, "model.width": width, "scheduler": onecycle}
            write_run(tmp_path / f"{rate}{width}", config=config)
    assert differing_settings(read_runs(tmp_path)) == ["model.width", "optim.lr"]


def test_a_width_of_another_model_is_shown(tmp_path):
    write_run(tmp_path / "a", "bagnet9", config={"model.width": 0.25})
    write_run(tmp_path / "b", "bagnet17", config={"model.width": 0.5})
    assert differing_settings(read_runs(tmp_path)) == ["model.width"]


def test_a_rate_that_somebody_asked_for_is_shown_even_of_another_optimizer(tmp_path):
    write_run(tmp_path / "a", optimizer="sgd", config={"optim.lr": 0.1}, overrides=["optim=sgd", "optim.lr=0.1"])
    write_run(tmp_path / "b", optimizer="adam")
    assert differing_settings(read_runs(tmp_path)) == ["optim.lr"]


def test_a_scheduler_that_is_not_the_papers_is_shown(tmp_path):
    cosine = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 15}
    write_run(tmp_path / "a", config={"scheduler": cosine})
    write_run(tmp_path / "b", epochs=5, config={"scheduler": cosine | {"T_max": 5}})
    assert differing_settings(read_runs(tmp_path)) == []
    write_run(tmp_path / "c", optimizer="sgd")
    assert differing_settings(read_runs(tmp_path)) == ["scheduler._target_"]


def test_a_key_that_only_one_run_has_is_shown(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config={"trainer.limit_train_batches": 15})  # 15, like the epochs
    assert differing_settings(read_runs(tmp_path)) == ["trainer.limit_train_batches"]


def test_a_key_that_some_runs_of_a_model_lack_is_shown(tmp_path):
    write_run(tmp_path / "a", config={"data.flip": True})
    write_run(tmp_path / "b", config={"data.flip": True, "model.zero_init": True})
    write_run(tmp_path / "c", config={"data.flip": False})
    assert differing_settings(read_runs(tmp_path)) == ["data.flip", "model.zero_init"]


def test_values_that_are_equal_by_chance_are_not_taken_for_each_other(tmp_path):
    write_run(tmp_path / "a", seed=0, config={"data.flip": False, "data.seed": 5})
    write_run(tmp_path / "b", seed=1, config={"data.flip": True, "data.seed": 6})
    assert differing_settings(read_runs(tmp_path)) == ["data.flip"]  # which is not taken for a seed


def test_other_images_are_shown_by_the_name_of_their_data(tmp_path):
    write_run(tmp_path / "a", config={"data.name": "cells", "image_files": "0f"})
    write_run(tmp_path / "b", config={"data.name": "dots", "image_files": "1e"})
    assert differing_settings(read_runs(tmp_path)) == ["data.name"]
    write_run(tmp_path / "c", config={"data.name": "dots", "image_files": "2d"})
    assert differing_settings(read_runs(tmp_path)) == ["data.name", "image_files"]


def test_no_column_can_be_mistaken_for_a_setting(tmp_path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1)
    table = read_table(tmp_path)
    headings = [*table1(table), *table1_short(table)]
    assert {name for name in headings if " " not in name} <= {*COLUMNS}


def test_settings_in_words():
    assert short(["scheduler._target_", "data.name"]) == {"scheduler._target_": "scheduler", "data.name": "data"}
    alike = ["scheduler.epochs", "model.name", "optim.eps", "model.eps"]  # as columns, and as each other
    assert short(alike) == {name: name for name in alike}
    assert format_settings(
        {"model.width": 0.25, "optim.lr": None, "data.classes": "n01443537, n01629819, n01641577"}
    ) == ("width 0.25, classes n01443537, n016…")
