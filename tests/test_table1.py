"""Table 1 against numbers typed here by hand."""

import pytest
from conftest import composed

from bagnet_lightning.config import plain
from bagnet_lightning.paths import CONF
from bagnet_lightning.results import describe
from bagnet_lightning.table1 import departures, paper_row, paper_rows

TABLE_1 = [
    (1, "resnet18", "sgd", False, 15, 0.2594),
    (2, "resnet18", "sgd", True, 15, 0.5714),
    (3, "bagnet9", "sgd", False, 5, 0.0062),
    (4, "bagnet9", "sgd", False, 15, 0.0052),
    (5, "bagnet9", "adam", False, 15, 0.3162),
    (6, "bagnet9", "adadelta", False, 15, 0.3170),
    (7, "bagnet17", "sgd", False, 5, 0.0169),
    (8, "bagnet17", "sgd", False, 15, 0.0258),
    (9, "bagnet17", "adam", False, 5, 0.2359),
    (10, "bagnet17", "adam", False, 15, 0.4234),
    (11, "bagnet17", "adam", True, 5, 0.3522),
    (12, "bagnet17", "adadelta", False, 15, 0.4065),
    (13, "bagnet17", "adadelta", True, 5, 0.4000),
    (14, "bagnet33", "sgd", False, 15, 0.0212),
    (15, "bagnet33", "adam", False, 5, 0.1653),
    (16, "bagnet33", "adam", False, 15, 0.4432),
    (17, "bagnet33", "adadelta", False, 15, 0.4395),
]


def test_the_17_rows_are_the_papers():
    assert [(r.row, r.model, r.optimizer, r.pretrained, r.epochs, r.accuracy) for r in paper_rows()] == TABLE_1


@pytest.mark.parametrize("row", paper_rows(), ids=lambda row: row.name)
def test_the_header_of_a_row_says_what_the_file_does(row):
    package, *lines = (CONF / "table1" / f"{row.name}.yaml").read_text().splitlines()
    assert package == "# @package _global_"  # Hydra reads it only above any other comment
    assert f"row {row.row} of Table 1" in lines[0]
    assert f" {row.epochs} epochs" in lines[0]
    assert ("from scratch" in lines[0]) != row.pretrained
    assert lines[1] == f"#   python -m bagnet_lightning.train table1={row.name}"
    assert lines[2].startswith(f"# Paper {row.accuracy:.4f}.")
    assert row.name == f"{row.model}_{row.optimizer}_{row.epochs}" + "_pretrained" * row.pretrained


@pytest.mark.parametrize("row", paper_rows(), ids=lambda row: row.name)
def test_the_file_of_a_row_composes_to_its_training(row):
    config = composed(f"table1={row.name}")
    made = [config[part]._target_.rpartition(".")[2].lower() for part in ("model", "optim")]
    assert made == [row.model, row.optimizer]
    assert (config.model.pretrained, config.trainer.max_epochs) == (row.pretrained, row.epochs)
    assert config.paper == {"row": row.row, "accuracy": row.accuracy}
    assert config.scheduler._target_.endswith(".ConstantLR" if row.optimizer == "adadelta" else ".StepLR")


def test_paper_row_finds_the_cell_or_nothing():
    assert paper_row("bagnet17", "adam", True, 5).accuracy == 0.3522
    assert paper_row("bagnet17", "adam", True, 15) is None
    assert paper_row("bagnet17", "lion", False, 15) is None


@pytest.mark.parametrize(
    ("overrides", "departs"),
    [
        (["table1=bagnet17_adam_15", "seed=2", "trainer.precision=bf16-mixed", "data.root=elsewhere"], []),
        (["model=bagnet17", "optim=adam"], []),
        (["model=bagnet17", "optim=adam", "data.classes=9", "optim.lr=0.1"], ["data.classes=9", "optim.lr=0.1"]),
        (["model=bagnet17", "optim=adam", "scheduler=cosine"], ["scheduler=CosineAnnealingLR"]),
        (["model=bagnet17", "optim=adam", "+trainer.limit_train_batches=3"], ["trainer.limit_train_batches=3"]),
        (["model=bagnet17", "optim=adam", "+trainer.max_steps=10"], ["trainer.max_steps=10"]),
        (["table1=bagnet17_adam_15", "+callbacks.a._target_=b.C"], ["callbacks.a=C"]),
        (["table1=bagnet17_adam_15", "data._target_=mine.Cutout"], ["data=Cutout"]),
        (["table1=bagnet17_adam_15", "model._target_=mine.bagnet17"], ["model=mine.bagnet17"]),
        (["table1=bagnet17_adam_15", "optim._target_=mine.Adam"], ["optim=mine.Adam"]),
        (["model=bagnet17", "optim=adam", "patch_loss=0.3"], ["patch_loss=0.3"]),
        (["model=bagnet17", "optim=adam", "weight_average=0.9"], ["weight_average=0.9"]),
        (["model=bagnet17", "optim=adam", "label_smoothing=0.1"], ["label_smoothing=0.1"]),
        (["model=bagnet17", "optim=adam", "trainer.gradient_clip_val=0.1"], ["trainer.gradient_clip_val=0.1"]),
        (["model=bagnet17", "optim=adam", "trainer.accumulate_grad_batches=4"], ["trainer.accumulate_grad_batches=4"]),
    ],
)
def test_a_run_is_of_a_row_only_with_its_settings(overrides, departs):
    config = composed(*overrides)
    assert departures(plain(config), paper_row("bagnet17", "adam", False, 15)) == departs
    assert describe(config, overrides)["row"] == (None if departs else 10)


def test_weights_of_ones_own_are_no_imagenet_weights():
    row = ["model=bagnet17", "optim=adam", "trainer.max_epochs=5", "data.normalize=imagenet"]
    assert describe(composed(*row, "model.pretrained=true"), [])["row"] == 11
    own = composed(*row, "model.pretrained=backbone.safetensors")
    assert departures(plain(own), paper_row("bagnet17", "adam", True, 5)) == ["model.pretrained=backbone.safetensors"]
    assert describe(own, [])["row"] is None
