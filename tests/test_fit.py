import csv
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from conftest import SMALL, composed
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning import Callback, Trainer
from torch import nn

from bagnet_lightning.checkpoint import load_trained, read_checkpoint, read_network, write_backbone
from bagnet_lightning.errors import Diverged, UserError
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.models.of_config import RESERVED, network_of
from bagnet_lightning.results import read_metrics, read_run
from bagnet_lightning.sweeps.runs import at_work
from bagnet_lightning.training.classifier import Classifier
from bagnet_lightning.training.fit import fit, loss_settings
from bagnet_lightning.training.history import History
from bagnet_lightning.training.progress import Progress
from bagnet_lightning.training.trainer import schedule


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_measurements_and_checkpoints(tmp_path):
    result = fit(composed(*SMALL, "scheduler.step_size=1"), tmp_path)
    epochs = rows(tmp_path)
    assert [float(row["learning_rate"]) for row in epochs] == pytest.approx([0.001, 0.0001])
    assert [row["epoch"] for row in epochs] == ["1", "2"]
    assert [row["step"] for row in epochs] == ["3", "6"]
    best = max(epochs, key=lambda row: float(row["val_accuracy"]))
    assert result["best_val_accuracy"] == float(best["val_accuracy"])
    assert result["best_epoch"] == int(best["epoch"])
    assert result["final_val_accuracy"] == float(epochs[-1]["val_accuracy"])
    assert result["train_images"] == 36
    assert result["images_per_second"] > 0
    assert sum(float(row["seconds"]) for row in epochs) < result["train_seconds"]  # the last checkpoints count, too
    assert "optimizer_states" not in read_checkpoint(tmp_path / "best.ckpt")  # two thirds of last.ckpt's size
    trained = load_trained(tmp_path / "best.ckpt")
    assert not trained.network.training
    assert trained.config["model"]["width"] == 0.25
    assert len(trained.classes) == result["classes"]
    assert result["parameters"] == sum(parameter.numel() for parameter in trained.network.parameters())


def test_classes_without_a_validation_image_do_not_count_in_the_balanced_accuracy(tmp_path):
    part = ["data.eval_batch_size=4", "+trainer.limit_val_batches=1"]  # two images each of two of six classes
    result = fit(composed(*SMALL, *part, "trainer.max_epochs=1"), tmp_path)
    assert (result["val_images"], result["val_balanced_accuracy"]) == (4, pytest.approx(result["best_val_accuracy"]))


def test_one_class_is_refused(tmp_path):
    with pytest.raises(UserError, match="textures has one class, "):
        fit(composed(*SMALL, "data.classes=1"), tmp_path)


def test_a_batch_without_variance_is_refused(tmp_path):
    model = ["model._target_=bagnet_lightning.models.bagnet.bagnet33"]  # one patch of an image of 33 px
    with pytest.raises(UserError, match=r"data\.batch_size=1: batch norm has one value of each channel"):
        fit(composed(*SMALL, *model, "data.batch_size=1"), tmp_path)


def test_images_smaller_than_a_patch_and_unknown_arguments_of_lightnings_are_refused(tmp_path):
    for folder in (tmp_path / split / name for split in ("train", "val") for name in "ab"):
        folder.mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(folder / "1.png")
    with pytest.raises(UserError, match="9 x 9 px are smaller than this network's patches: 17 px or more"):
        fit(
            composed("data=image_folder", f"data.root={tmp_path}", "data.image_size=9", "trainer=cpu"), tmp_path / "run"
        )
    with pytest.raises(UserError, match=r"takes no foo: leave trainer\.foo out"):
        fit(composed(*SMALL, "+trainer.foo=1"), tmp_path)


@pytest.mark.parametrize(("limit", "epoch"), [("limit_val_batches=0", 1), ("max_steps=2", 1), ("max_steps=4", 2)])
def test_an_epoch_without_a_validation_is_refused(tmp_path, limit, epoch):
    with pytest.raises(UserError, match=f"epoch {epoch} ended without a validation"):
        fit(composed(*SMALL, f"+trainer.{limit}"), tmp_path)


class Loudest(BagNet):
    def forward(self, images):
        return self.patch_logits(images).amax((1, 2))


def test_a_bagnet_whose_logits_are_no_mean_of_its_patches_is_refused(tmp_path):
    config, stages = composed(*SMALL), [True, True, False, False]
    config.model = OmegaConf.create({"_target_": f"{__name__}.Loudest", "wide_stages": stages, "width": 0.25})
    with pytest.raises(UserError, match="Loudest is a BagNet, but its logits are not the mean of its patches'"):
        fit(config, tmp_path)


def test_a_measure_that_cannot_choose_and_a_loss_without_a_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="val_top5_accuracy: it is 1 for 4 classes"):
        fit(composed(*SMALL, "data.classes=4", "monitor=val_top5_accuracy"), tmp_path)
    with pytest.raises(UserError, match=r"add \+loss\._target_="):
        fit(composed(*SMALL, "+loss.reduction=sum"), tmp_path)


class Counting(Callback):
    """Logs an epoch of its own, and has the state that it is given."""

    def __init__(self, state):
        self.state = state

    def on_train_epoch_end(self, trainer, module):
        module.log("epoch", 7.0)

    def state_dict(self):
        return self.state


def test_lists_in_settings_are_in_checkpoints_as_plain_lists_and_what_callbacks_log_is_no_column(tmp_path):
    config = composed(*SMALL, "trainer.max_epochs=1")
    config.optim = OmegaConf.create({"_target_": "torch.optim.NAdam", "_partial_": True, "betas": [0.9, 0.95]})
    config.callbacks = OmegaConf.create({"own": {"_target_": f"{__name__}.Counting", "state": {"seen": [1]}}})
    fit(config, tmp_path)
    assert [*read_checkpoint(tmp_path / "last.ckpt")["optimizer_states"][0]["param_groups"][0]["betas"]] == [0.9, 0.95]
    assert [float(row["epoch"]) for row in rows(tmp_path)] == [1]


def test_a_state_that_could_not_be_read_again_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="holds more than tensors and plain types"):
        fit(composed(*SMALL), tmp_path, added_callbacks=[Counting({"best": Path("a")})])


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    fit(composed(*SMALL, "trainer.max_epochs=1"), tmp_path)
    with pytest.raises(UserError, match="the images of val have changed since last"):
        fit(composed(*SMALL, "data.val_images=18"), tmp_path)
    fit(composed(*SMALL), tmp_path)
    assert len(rows(tmp_path)) == 2


def test_the_settings_of_the_loss_reach_the_training(tmp_path, monkeypatch):
    seen, start = [], Classifier.on_train_start

    def started(self):
        seen.append((self.criterion.keywords, self.patch_loss))
        start(self)

    monkeypatch.setattr(Classifier, "on_train_start", started)
    fit(composed(*SMALL, "label_smoothing=0.1", "patch_loss=0.2", "trainer.max_epochs=1"), tmp_path)
    assert seen == [({"label_smoothing": 0.1}, 0.2)]


def test_rare_classes_weigh_as_much_as_the_others(tmp_path):
    weighted = loss_settings(composed("class_weights=balanced"), torch.tensor([0, 0, 0, 1]), 2)["criterion"]
    assert weighted.weight.tolist() == pytest.approx([2 / 3, 2])
    without_images = loss_settings(composed("class_weights=balanced"), torch.tensor([0, 2, 2, 2]), 4)["criterion"]
    assert without_images.weight.tolist() == pytest.approx([2, 0, 2 / 3, 0])
    logits = torch.randn(4, 2)
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0, 0, 1]), reduction="none")
    expected = (losses[:3].mean() + losses[3]) / 2
    assert weighted(logits, torch.tensor([0, 0, 0, 1])).item() == pytest.approx(expected.item())
    fit(composed(*SMALL, "class_weights=balanced", "trainer.max_epochs=1"), tmp_path)
    assert load_trained(tmp_path / "best.ckpt").config["class_weights"] == "balanced"


def test_a_loss_of_ones_own_is_a_function_or_a_module(tmp_path):
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    own = "+loss._target_=torch.nn.functional.multi_margin_loss"
    function = loss_settings(composed(own, "+loss.margin=0.5"), labels, 3)
    expected = torch.nn.functional.multi_margin_loss(logits, labels, margin=0.5)
    assert function["criterion"](logits, labels) == expected
    module = "+loss._target_=torch.nn.MultiMarginLoss"
    asked = composed(module, "+loss.margin=0.5")
    assert isinstance(loss_settings(asked, labels, 3)["criterion"], torch.nn.MultiMarginLoss)
    with pytest.raises(UserError, match="class_weights is of cross-entropy"):
        loss_settings(composed(module, "class_weights=balanced"), labels, 3)
    fit(composed(*SMALL, module, "+loss.margin=100.0", "trainer.max_epochs=1"), tmp_path)
    (epoch,) = read_metrics(tmp_path)
    assert epoch["train_loss"] > 50 > epoch["val_loss"]  # which is cross-entropy


def test_the_training_loss_of_an_epoch_is_the_mean_over_its_own_images(tmp_path, monkeypatch):
    seen, original = [], Classifier.loss

    def noted(self, images, labels):
        loss = original(self, images, labels)
        seen.append(loss.item() * len(labels))
        return loss

    monkeypatch.setattr(Classifier, "loss", noted)
    fit(composed(*SMALL, "data.batch_size=16"), tmp_path)  # the last batch is of 4
    first, second = (float(row["train_loss"]) for row in rows(tmp_path))
    assert (first, second) == pytest.approx((sum(seen[:3]) / 36, sum(seen[3:]) / 36))


def finish_epoch(history):
    batches = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=0)))
    trainer = SimpleNamespace(callback_metrics={}, current_epoch=0, global_step=5, is_global_zero=True)
    trainer.fit_loop = SimpleNamespace(epoch_loop=batches)
    for hook in ("on_train_start", "on_validation_start", "on_validation_end", "on_train_epoch_end"):
        getattr(history, hook)(trainer, None)


def test_the_time_of_validation_is_not_the_trainings(tmp_path, monkeypatch):
    clock = iter([0.0, 10.0, 13.0, 14.0])  # training, validation until 13
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    history = History(tmp_path / "metrics.csv", (), lambda: 0.0)
    finish_epoch(history)
    assert ([row["seconds"] for row in history.rows], history.training_seconds) == ([14.0], [11.0])


def test_the_seconds_of_an_epoch_that_broke_off_count_in_its_row(tmp_path, monkeypatch):
    history = History(tmp_path / "metrics.csv", (), lambda: 0.0)
    history.rows, history.training_seconds, history.epoch_started = [], [], 0.0
    history.load_state_dict({**history.state_dict(), "unfinished_seconds": 7.0})
    clock = iter([100.0, 104.0, 105.0, 106.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    finish_epoch(history)
    assert ([row["seconds"] for row in history.rows], history.training_seconds) == ([13.0], [12.0])


@pytest.mark.parametrize(("limit", "images"), [([], 36), (["+trainer.limit_train_batches=2"], 24)])
def test_the_images_of_an_epoch_are_those_it_trains_on(tmp_path, monkeypatch, limit, images):
    monkeypatch.setattr(History, "timing", lambda self, per_epoch: {"images": per_epoch})
    result = fit(composed(*SMALL, "trainer.max_epochs=1", *limit), tmp_path)
    assert result["images"] == images
    assert result["checkpoint_seconds"] > 0


def test_the_speed_is_of_the_epochs_after_the_first_in_whichever_process():
    first = History(Path("metrics.csv"), (), lambda: 56.0)
    first.rows, first.training_seconds, first.epoch_started = [{"seconds": 60.0}], [58.0], time.perf_counter()
    second = History(Path("metrics.csv"), (), lambda: 4.0)
    second.load_state_dict({**first.state_dict(), "unfinished_seconds": 1.0})
    assert second.timing(1000)["images_per_second"] == 1000 / 58
    second.rows, second.training_seconds = [*second.rows, *[{"seconds": 3.0}] * 3], [58.0, 6.0, 2.0, 2.0]
    assert second.timing(1000) == {"train_seconds": 70, "compile_seconds": 60, "images_per_second": 500}


def test_a_run_that_starts_from_anothers_weights_tells_what_becomes_of_the_head_and_of_the_inputs(tmp_path, capsys):
    fit(composed(*SMALL, "data.classes=3", "trainer.max_epochs=1"), tmp_path / "three")
    start = f"model.pretrained={tmp_path / 'three/best.ckpt'}"
    fit(composed(*SMALL, start, "trainer.max_epochs=1"), tmp_path / "six")
    assert "its last layer begins anew, but for 3 of 6 classes" in capsys.readouterr().out
    fit(composed(*SMALL, "data.classes=3", start, "trainer.max_epochs=1"), tmp_path / "again")
    told = capsys.readouterr().out
    assert "last layer" not in told
    assert "pixels" not in told
    fit(composed(*SMALL, "data.classes=3", start, "data.normalize=true", "trainer.max_epochs=1"), tmp_path / "other")
    assert "trained on pixels that were not normalised, unlike data.normalize here" in capsys.readouterr().out


def test_a_start_from_weights_that_have_seen_the_held_out_images_is_refused(tmp_path):
    fit(composed(*SMALL, "data.holdout=0.5", "trainer.max_epochs=1"), tmp_path / "first")
    start = f"model.pretrained={tmp_path / 'first/last.ckpt'}"
    asked = [*SMALL, start, "data.holdout=0.5", "trainer.max_epochs=1"]
    fit(composed(*asked), tmp_path / "second")
    with pytest.raises(UserError, match=r"held out 0\.5, fold 0, and its network has seen these images"):
        fit(composed(*asked, "data.fold=1"), tmp_path / "third")
    fit(composed(*SMALL, start, "data.name=other", "data.train_images=30", "trainer.max_epochs=1"), tmp_path / "third")
    about, _ = read_network(tmp_path / "third/best.ckpt")
    write_backbone(load_trained(tmp_path / "third/best.ckpt").network, about, tmp_path / "third.safetensors")
    start = f"model.pretrained={tmp_path / 'third.safetensors'}"  # which has seen the images of the first run, too
    with pytest.raises(UserError, match=r"held out 0\.5, fold 0, and its network has seen these images"):
        fit(composed(*SMALL, start, "data.holdout=0.5", "data.fold=1"), tmp_path / "fourth")


def test_a_run_at_work_tells_how_far_it_is(tmp_path):
    fit(composed(*SMALL, "trainer.max_epochs=1"), tmp_path / "of_no_run")
    assert not (tmp_path / "of_no_run/progress.json").exists()
    with at_work(tmp_path):
        fit(composed(*SMALL, "trainer.max_epochs=1"), tmp_path)
        told = read_run(tmp_path)["progress"]
    assert (told["epoch"], told["epochs"], told["pid"]) == (1, 1, os.getpid())


def test_the_seconds_left_are_by_the_pace_of_this_process_alone(tmp_path, monkeypatch):
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("bagnet_lightning.training.progress.time", SimpleNamespace(monotonic=lambda: clock.seconds))
    trainer = SimpleNamespace(global_step=60, estimated_stepping_batches=100, current_epoch=3, max_epochs=5)
    trainer.is_global_zero, callback = True, Progress(tmp_path)  # a run that goes on
    with at_work(tmp_path):
        callback.on_train_start(trainer, None)
        assert read_run(tmp_path)["progress"]["seconds_left"] is None
        trainer.global_step, clock.seconds = 70, 20.0
        callback.on_train_batch_end(trainer)
        assert read_run(tmp_path)["progress"]["seconds_left"] == 60


def test_a_run_that_validates_on_a_holdout_says_so(tmp_path):
    result = fit(composed(*SMALL, "data.holdout=0.5", "trainer.max_epochs=1"), tmp_path)
    assert (result["validated_on"], result["train_images"], result["val_images"]) == ("holdout", 18, 18)


def test_what_callbacks_do_at_the_end_of_a_validation_is_not_training(tmp_path):
    class Watching(Callback):
        seen: ClassVar[list[float]] = []

        def on_validation_end(self, trainer, module):
            (history,) = (callback for callback in trainer.callbacks if isinstance(callback, History))
            self.seen.append(history.validation_seconds)

    fit(composed(*SMALL, "trainer.max_epochs=1"), tmp_path, added_callbacks=[Watching()])
    assert Watching.seen == [0]  # validation's time is still running


def test_a_last_image_that_joins_the_batch_before_it_is_counted(tmp_path):
    asked = [*SMALL, "data.train_images=25", "data.batch_size=12", "trainer.max_epochs=1"]
    assert fit(composed(*asked), tmp_path / "all")["train_images"] == 25
    assert fit(composed(*asked, "+trainer.limit_train_batches=1"), tmp_path / "limited")["train_images"] == 12


def test_a_network_of_timm_is_trained_read_and_starts_another_training(tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="timm is an optional dependency: pip install 'bagnet-lightning[timm]'")
    small = [*SMALL[:5], "trainer=cpu", "model=timm", "trainer.max_epochs=1", "model.model_name=test_convnext"]
    config = composed(*small)
    fit(config, tmp_path / "run")
    first = load_trained(tmp_path / "run/last.ckpt")  # with nothing in the environment
    assert first.name == "test_convnext"
    config.model.pretrained = str(tmp_path / "run/last.ckpt")
    config.data.classes = [*reversed(first.classes[:3])]
    config.optim.lr = 1e-12
    fit(config, tmp_path / "again")
    second = load_trained(tmp_path / "again/last.ckpt")
    torch.testing.assert_close(second.network.head.fc.weight, first.network.head.fc.weight[[2, 1, 0]])
    torch.testing.assert_close(second.network.stem[0].weight, first.network.stem[0].weight)
    for override, refusal in (
        ("+model.checkpoint_path=x", "model.checkpoint_path cannot be set here, but model.pretrained=PATH"),
        *(
            (f"+model.{key}=1", f"model.{key} cannot be set here: leave it out")
            for key in RESERVED
            if "path" not in key
        ),
        ("model.model_name=test_resnett", "has no such network; nearest: test_resnet"),
    ):
        with pytest.raises(UserError, match=re.escape(refusal)):
            fit(composed(*small, override), tmp_path / "other")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'bagnet-lightning\[timm\]'"):
        load_trained(tmp_path / "run/last.ckpt")
    with pytest.raises(UserError, match=r"pip install 'bagnet-lightning\[timm\]'"):
        fit(composed(*small), tmp_path / "other")


def test_a_network_that_takes_a_file_loads_it_itself_and_others_are_given_its_weights(tmp_path):
    torch.save({"fc.weight": torch.ones(2, 48), "fc.bias": torch.ones(2)}, tmp_path / "weights.pt")
    for target, bias in (("Plain", 1), ("Loading", 7)):
        config = {"_target_": f"test_fit.{target}", "pretrained": str(tmp_path / "weights.pt")}
        assert network_of(OmegaConf.create(config), 2).fc.bias.tolist() == [bias] * 2


class Plain(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(48, num_classes)


class Loading(Plain):
    def __init__(self, num_classes, pretrained):
        super().__init__(num_classes)
        nn.init.constant_(self.fc.bias, 7 if Path(pretrained).exists() else 0)


def test_lightnings_own_checkpoints_can_be_added(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keep = "+callbacks.keep={_target_: pytorch_lightning.callbacks.ModelCheckpoint, dirpath: kept, save_top_k: -1}"
    fit(composed(*SMALL, keep, "trainer.max_epochs=1"), tmp_path / "run")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["epoch=0-step=3.ckpt"]


def test_the_classifier_trains_in_a_trainer_of_ones_own(tmp_path):
    config = composed(*SMALL)
    data = instantiate(config.data, _convert_="all")
    data.setup()
    assert len(next(iter(data.train_dataloader()))[0]) == 12
    network = instantiate(config.model, num_classes=6)
    module = Classifier(network, **schedule(config), about={})
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, num_sanity_val_steps=2)
    trainer.fit(module, data)
    assert trainer.callback_metrics["train_loss"] > 0


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path):
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        fit(composed(*SMALL, f"seed={seed}", "data.seed=0"), tmp_path / name)  # the same order and augmentation
    a, b, c = (weights(tmp_path / name / "last.ckpt") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["network.fc.weight"], c["network.fc.weight"])


def progress(folder) -> tuple[int, int]:
    """(epoch, steps) of last.ckpt; (-1, 0) before it is there."""
    if not (folder / "last.ckpt").exists():
        return -1, 0
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    return checkpoint["epoch"], checkpoint["global_step"]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_checkpoint(tmp_path, monkeypatch, value):
    original = Classifier.training_step

    def poisoned(self, batch):
        return original(self, batch) * (float(value) if self.trainer.global_step == 4 else 1)

    monkeypatch.setattr(Classifier, "training_step", poisoned)
    with pytest.raises(
        Diverged, match=rf"is {value} at step 4 \(epoch 2, learning rate 0.001, train images \[\d+(, \d+){{11}}\]"
    ):
        fit(composed(*SMALL), tmp_path)
    assert progress(tmp_path) == (0, 3)
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "last.ckpt").values())


@pytest.mark.parametrize(
    ("step", "ways_out"),
    [
        ("training_step", r"data\.batch_size=12; ask for data\.batch_size=6.*accumulate_grad_batches=2"),
        ("validation_step", r"validation at data\.eval_batch_size=250; ask for data\.eval_batch_size=125"),
    ],
)
def test_out_of_memory_names_the_batch_size_and_the_ways_out(tmp_path, monkeypatch, step, ways_out):
    monkeypatch.setattr(Classifier, step, lambda self, batch: torch.empty(2**60))
    with pytest.raises(UserError, match=ways_out):
        fit(composed(*SMALL), tmp_path)


def test_half_batches_accumulated_are_the_whole_batch_where_batch_statistics_do_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: x * 0.5)
    settings = {
        "whole": [],
        "accumulated": ["data.batch_size=6", "trainer.accumulate_grad_batches=2"],
        "half": ["data.batch_size=6"],
    }
    for name, batches in settings.items():
        fit(composed(*SMALL, "optim.lr=0.1", *batches), tmp_path / name)
    whole, accumulated, half = (weights(tmp_path / name / "last.ckpt")["network.fc.weight"] for name in settings)
    assert (accumulated - whole).norm() < 1e-4 * (half - whole).norm()
