import signal
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, composed
from PIL import Image
from pytorch_lightning import Callback
from test_fit import weights
from test_interrupts import before
from torch.nn import functional as F

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.data.module import Textures
from bagnet_lightning.errors import Interrupted, UserError
from bagnet_lightning.inference.logits import batches, predict
from bagnet_lightning.predictions import (
    IMAGES_PER_PAIR,
    SIDE,
    confusion,
    most_confused,
    read_predictions,
    write_predictions,
)
from bagnet_lightning.results import read_metrics
from bagnet_lightning.training import best_predictions, trainer
from bagnet_lightning.training.best_predictions import BestPredictions
from bagnet_lightning.training.classifier import Classifier
from bagnet_lightning.training.fit import fit

NAMES = ["red", "green", "blue"]


@pytest.fixture
def written(tmp_path):
    """Twelve images of one colour each: four of every class, one green and two blue ones taken for red."""
    labels = np.repeat([0, 1, 2], 4)
    predicted = np.array([0, 0, 0, 0, 0, 1, 1, 1, 0, 2, 2, 0])
    pixels = np.zeros((12, 20, 30, 3), np.uint8)
    pixels[np.arange(12), :, :, labels] = 255
    write_predictions(tmp_path, NAMES, labels, predicted, lambda places: pixels[places])
    return tmp_path, labels, predicted


def test_what_was_written_is_read(written):
    folder, labels, predicted = written
    read = read_predictions(folder)
    assert read.class_names == NAMES
    assert read.labels.tolist() == labels.tolist()
    assert read.confusion().tolist() == [[4, 0, 0], [1, 3, 0], [2, 0, 2]]
    assert read.confusion().trace() == (labels == predicted).sum()
    assert read.examples.shape == (8, 20, 30, 3)
    assert (read.examples[np.arange(8), 0, 0, read.example_labels] == 255).all()


def test_any_number_of_classes_is_counted():
    labels = np.array([299, 0, 299], np.uint16)  # as they are kept
    assert np.argwhere(confusion(labels, labels, 300)).tolist() == [[0, 0], [299, 299]]


def test_larger_images_are_predicted_fewer_at_a_time():
    for side, count in ((64, 250), (128, 62), (2000, 1)):
        assert len(batches(torch.empty(1, dtype=torch.uint8).expand(500, side, side, 3))[0]) == count


def test_the_sheet_has_the_most_confused_pairs_in_rows(written):
    read = read_predictions(written[0])
    assert most_confused(read.confusion(), 6) == [(2, 0), (1, 0)]
    (written[0] / "sheet.jpg").write_bytes(read.sheet)
    sheet = np.asarray(Image.open(written[0] / "sheet.jpg"))
    assert sheet.shape == (2 * SIDE, IMAGES_PER_PAIR * SIDE, 3)
    middles = sheet[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE].astype(int)
    assert (middles[0].argmax(1) == 2).tolist()[:2] == [True, True]  # blue, blue, nothing
    assert middles[0, 2].max() < 20
    assert middles[1, 0].argmax() == 1


def test_a_damaged_file_is_told_and_a_missing_one_is_none(written):
    path = written[0] / "predictions.npz"
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cut or damaged"):
            read_predictions(written[0])
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with suppress(ValueError):  # what is read of it, or this
            read_predictions(written[0])
    path.write_bytes(whole)
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, "labels": arrays["labels"].astype(int) - 1})
    with pytest.raises(ValueError, match="cut or damaged"):
        read_predictions(written[0])
    path.unlink()
    assert read_predictions(written[0]) is None


def test_a_run_keeps_those_of_its_best_checkpoint(tmp_path):
    asked = composed(*SMALL, "data.val_images=11", "data.eval_batch_size=5", "label_smoothing=0.1")
    result = fit(asked, tmp_path)  # in batches of 4, 4, 3
    read = read_predictions(tmp_path)
    assert (read.labels == read.predicted).mean() == pytest.approx(result["best_val_accuracy"])
    trained = load_trained(tmp_path / "best.ckpt")
    data = Textures(**{k: v for k, v in trained.config["data"].items() if k != "_target_"})
    data.setup()
    logits = predict(trained, data.val_images.split.images[data.val_images.chosen])
    assert read.predicted.tolist() == logits.argmax(1).tolist()
    assert read.labels.tolist() == data.val_images.labels.tolist()
    loss = F.cross_entropy(logits, data.val_images.labels).item()  # smoothed in training alone
    assert read_metrics(tmp_path)[result["best_epoch"] - 1]["val_loss"] == pytest.approx(loss, rel=1e-4)
    recalls = [(read.predicted[read.labels == label] == label).mean() for label in np.unique(read.labels)]
    assert result["val_balanced_accuracy"] == pytest.approx(np.mean(recalls))


class Own(Callback):
    """Logs a measure of its own, in the epochs that have one."""

    def __init__(self, values):
        self.values = values

    def on_validation_batch_end(self, trainer, module, outputs, batch, *args):
        assert outputs["logits"].argmax(1).equal(outputs["predicted"])

    def on_validation_epoch_end(self, trainer, module):
        if (value := self.values[trainer.current_epoch]) is not None:
            module.log("val_own", value)


def test_a_measure_of_ones_own_is_kept_and_may_choose_the_epoch(tmp_path):
    def asked(values: str, *more: str):
        own = f"+callbacks.own={{_target_: {__name__}.Own, values: {values}}}"
        return composed(*SMALL, "trainer.max_epochs=3", own, *more)

    fit(asked("[null,0.5,nan]"), tmp_path / "kept")
    assert [str(row["val_own"]) for row in read_metrics(tmp_path / "kept")] == ["None", "0.5", "nan"]
    monitor = "monitor=val_own"
    result = fit(asked("[nan,-2,-2]", monitor), tmp_path / "chosen")
    assert (result["best_epoch"], result["val_own"]) == (2, -2)
    assert torch.load(tmp_path / "chosen/best.ckpt", weights_only=True)["global_step"] == 6
    read = read_predictions(tmp_path / "chosen")
    assert (read.labels == read.predicted).mean() == pytest.approx(result["best_val_accuracy"])
    with pytest.raises(UserError, match="monitor=val_own: no callback has logged it"):
        fit(asked("[null,1,1]", monitor), tmp_path / "late")
    with pytest.raises(UserError, match=r"monitor=val_own: choose val_accuracy, .* or add a callback that logs it"):
        fit(composed(*SMALL, monitor), tmp_path / "unknown")


@pytest.mark.parametrize(("monitor", "epoch"), [("val_accuracy", 1), ("val_balanced_accuracy", 2), ("val_loss", 2)])
def test_the_best_epoch_is_that_of_the_chosen_accuracy(tmp_path, monkeypatch, monitor, epoch):
    def scripted(self, batch):
        right = [(8, 0), (4, 3)][self.trainer.current_epoch]  # of 8 images of a class, and 4 of another
        self.val_totals += torch.tensor([12.0 * right[0], sum(right), 12, 12])
        self.val_classes = torch.tensor([[8, right[0]], [4, right[1]], [0, 0]])
        return {"predicted": torch.full_like(batch[1], self.trainer.current_epoch)}

    monkeypatch.setattr(Classifier, "validation_step", scripted)
    result = fit(composed(*SMALL, "trainer.max_epochs=2", f"monitor={monitor}"), tmp_path)
    assert result["best_epoch"] == epoch
    assert result["val_balanced_accuracy"] == pytest.approx([0.5, 0.625][epoch - 1])
    assert result["best_val_accuracy"] == pytest.approx([8 / 12, 7 / 12][epoch - 1])
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert best["global_step"] == 3 * epoch
    assert result.get("val_loss") == (4 if monitor == "val_loss" else None)
    assert set(read_predictions(tmp_path).predicted) == {epoch - 1}


def test_of_equal_epochs_the_predictions_of_the_first_stay_in_the_order_of_the_images(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(best_predictions, "write_predictions", lambda *given: written.append([*given[2:4]]))
    trainer = SimpleNamespace(callback_metrics={"val_accuracy": torch.tensor(0.5)}, world_size=1, is_global_zero=True)
    trainer.datamodule = SimpleNamespace(class_names=NAMES, val_images=SimpleNamespace(labels=torch.tensor([0, 1, 2])))
    callback = BestPredictions(tmp_path, "val_accuracy")
    for predicted in ([0, 1, 1], [2, 2, 2]):
        callback.on_validation_start(trainer, None)
        for indices in ([2, 0], [1]):  # as ranks have them
            outputs = {"predicted": torch.tensor(predicted)[indices]}
            callback.on_validation_batch_end(trainer, None, outputs, (None, None, torch.tensor(indices)))
        callback.on_validation_end(trainer, None)
    ((labels, predicted),) = written
    assert (labels.tolist(), predicted.tolist()) == ([0, 1, 2], [0, 1, 1])


def test_a_run_that_goes_on_keeps_its_best_epoch(tmp_path, monkeypatch):
    def scripted(self, batch):
        labels, epoch = batch[1], self.trainer.current_epoch
        hits = (6, 10, 3)[epoch]  # of 12
        self.val_totals += torch.tensor([12.0, hits, 12 - epoch, 12])
        self.val_classes = torch.ones(6, 2)
        return {"predicted": torch.where(torch.arange(12) < hits, labels, (labels + 1) % 6)}

    monkeypatch.setattr(Classifier, "validation_step", scripted)
    asked = composed(*SMALL, "trainer.max_epochs=3")
    with monkeypatch.context() as patch:
        stop = before(Classifier.training_step, 6, lambda: signal.raise_signal(signal.SIGTERM))
        patch.setattr(Classifier, "training_step", stop)
        patch.setattr(trainer, "commit", lambda: "before")
        with pytest.raises(Interrupted):
            fit(asked, tmp_path)
    monkeypatch.setattr(trainer, "commit", lambda: "after")
    best = weights(tmp_path / "best.ckpt")
    result = fit(asked, tmp_path)
    assert (result["best_epoch"], result["best_val_accuracy"]) == (2, pytest.approx(10 / 12))
    assert result["commit"] == "before / after"
    assert result["val_top5_accuracy"] == pytest.approx(11 / 12)
    assert result["final_val_accuracy"] == pytest.approx(3 / 12)
    assert all(torch.equal(value, best[key]) for key, value in weights(tmp_path / "best.ckpt").items())
    assert not torch.equal(best["network.fc.weight"], weights(tmp_path / "last.ckpt")["network.fc.weight"])
    read = read_predictions(tmp_path)
    assert (read.labels == read.predicted).sum() == 10


def test_of_a_limited_validation_only_what_was_seen_is_kept(tmp_path):
    limited = [*SMALL, "data.val_images=11", "data.eval_batch_size=5", "+trainer.limit_val_batches=1"]
    result = fit(composed(*limited), tmp_path)
    read = read_predictions(tmp_path)
    assert len(read.labels) == len(read.predicted) == result["val_images"] == 4
    assert (read.labels == read.predicted).mean() == pytest.approx(result["best_val_accuracy"])
