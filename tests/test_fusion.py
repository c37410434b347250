"""Decisions of a BagNet's patches, fused into one for the image: against scikit-learn, and against `evaluate`."""

import json

import numpy as np
import pytest
import torch
from conftest import composed
from safetensors import safe_open
from safetensors.numpy import save
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from trained_checkpoints import write_checkpoint

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.config import digest
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.data.module import Textures
from bagnet_lightning.data.of_config import data_of_run
from bagnet_lightning.errors import UserError
from bagnet_lightning.local_features.model import keypoint_shares, load_local_model
from bagnet_lightning.local_features.patches import Patches
from bagnet_lightning.local_features.pipeline import run
from bagnet_lightning.local_features.svm import GaussianSvm
from bagnet_lightning.predictions import read_predictions

CLASSES = [f"{field}px_{direction}" for field in (9, 17, 33) for direction in ("rows", "columns")]
SMALL = ["data=textures", "data.image_size=33", "data.train_images=120", "data.val_images=60"]


def textures():
    data = composed(*SMALL, name="classical").data
    made = Textures(**{key: value for key, value in data.items() if key != "_target_"})
    made.setup()
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of an untrained network whose patches decide now for one class, now for another."""
    path = write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt", "bagnet9", CLASSES)
    trained, images = load_trained(path), textures().train_images
    pixels, _, _ = images[torch.arange(len(images))]
    with torch.no_grad():
        logits = trained.network.patch_logits(normalize(pixels, trained.mean, trained.std)).flatten(0, 2)
    loaded = torch.load(path, weights_only=True)
    weights = loaded["state_dict"]
    weights["network.fc.weight"] /= logits.std(0)[:, None]
    weights["network.fc.bias"] = (weights["network.fc.bias"] - logits.mean(0)) / logits.std(0)
    torch.save(loaded, path)
    return path


def asked(checkpoint, *overrides):
    return composed(*SMALL, f"checkpoint={checkpoint}", *overrides, name="classical")


def histograms(checkpoint):
    """(images, classes) mean probabilities of the patches, of both splits, and their labels."""
    trained, data = load_trained(checkpoint), textures()
    for images in (data.train_images, data.val_images):
        pixels, labels, _ = images[torch.arange(len(images))]
        with torch.no_grad():
            logits = trained.network.patch_logits(normalize(pixels, trained.mean, trained.std))
        yield logits.softmax(-1).mean((1, 2)).numpy(), labels.numpy()


@pytest.mark.parametrize(
    ("head", "reference"),
    [("logistic", LogisticRegression(C=50, tol=1e-8, max_iter=10_000)), ("svm", SVC(C=50, break_ties=True))],
)
def test_heads_decide_as_scikit_learn_does_on_the_same_histograms(checkpoint, tmp_path, head, reference):
    (train, labels), (val, truth) = histograms(checkpoint)
    reference.fit(train, labels)
    result = run(asked(checkpoint, f"head={head}", "classifier.C=50"), tmp_path)
    model = load_local_model(tmp_path / "model.safetensors")
    expected = reference.decision_function(val)
    scores = model.classifier.scores(val)
    if head == "logistic":  # any constant may be added to all classes
        scores, expected = (x - x.mean(1, keepdims=True) for x in (scores, expected))
    assert np.abs(scores - expected).max() < 0.01 * np.abs(expected).max()
    assert len(np.unique(expected.argmax(1))) > 2
    clear = np.diff(np.sort(expected, axis=1))[:, -1] > 0.01 * np.abs(expected).max()
    assert (read_predictions(tmp_path).predicted == expected.argmax(1))[clear].all()
    assert result["best_val_accuracy"] == pytest.approx((expected.argmax(1) == truth).mean(), abs=0.02)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_gaussian_svm_scores_as_libsvms(classes):
    draw = np.random.default_rng(0)
    labels = draw.integers(classes, size=200)
    points = (draw.normal(size=(classes, 5))[labels] + draw.normal(size=(200, 5))).astype(np.float32)
    ours, reference = GaussianSvm(C=2.0), SVC(C=2.0, break_ties=classes > 2).fit(points, labels)
    ours.learn(points, labels, classes)
    others = draw.normal(size=(500, 5)).astype(np.float32)
    assert np.array_equal(ours.scores(others).argmax(1), reference.predict(others))
    if classes > 2:
        assert np.allclose(ours.scores(others), reference.decision_function(others), atol=1e-4)


def test_the_gaussian_svm_needs_train_images_of_all_its_classes():
    points = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    for labels, classes in ((np.arange(30) % 2 * 2, 3), (np.zeros(30, int), 1)):  # the second of three has none
        with pytest.raises(UserError, match="two classes or more, all with train images"):
            GaussianSvm(C=1.0).learn(points, labels, classes)


def test_the_gaussian_svm_of_vectors_that_are_all_the_same_decides_for_the_larger_class():
    points, labels = np.ones((30, 5), np.float32), np.repeat([0, 1], [10, 20])
    svm = GaussianSvm(C=1.0)
    svm.learn(points, labels, 2)
    assert svm.arrays["gamma"].tolist() == [1]
    assert (svm.scores(points).argmax(1) == 1).all()


def test_each_head_is_measured_beside_plain_averaging_which_is_what_evaluate_measures(
    checkpoint, command, tmp_path, capsys
):
    evaluated = command("evaluate", f"checkpoint={checkpoint}", f"out={tmp_path}", *SMALL)
    assert evaluated.returncode == 0, evaluated.stderr
    accuracy = json.loads((tmp_path / "evaluation_textures.json").read_text())["accuracy"]
    results = {}
    for head in ("mean", "logistic", "svm"):
        (tmp_path / head).mkdir()
        results[head] = run(asked(checkpoint, f"head={head}"), tmp_path / head)
        assert results[head]["mean_accuracy"] == accuracy
        assert f"{accuracy:.4f} by the network's own mean" in capsys.readouterr().out
    assert results["mean"]["best_val_accuracy"] == accuracy
    assert [result["explains"] for result in results.values()] == ["patches", "patches", None]
    assert [result["model"] for result in results.values()] == ["bagnet9"] * 3
    assert results["svm"]["system"] == "BagNet-9, patch decisions, Gaussian SVM"


@pytest.mark.parametrize("head", ["mean", "logistic"])
def test_what_the_patches_add_is_what_the_head_decides(checkpoint, tmp_path, head):
    run(asked(checkpoint, f"head={head}"), tmp_path)
    model = load_local_model(tmp_path / "model.safetensors")
    bag = Patches(model.features, textures().val_images).read(0, 3)
    shares = keypoint_shares(model, bag)
    assert shares.shape == (3 * 16, len(CLASSES))
    assert np.allclose(shares.reshape(3, 16, -1).sum(1) + model.classifier.arrays["bias"], model.scores(bag), atol=1e-4)


def test_em_goes_on_from_the_checkpoint_and_is_not_done_twice(checkpoint, tmp_path, tmp_path_factory):
    config = asked(checkpoint, "head=em", "em.rounds=2", "em.trainer.accelerator=cpu", "em.trainer.devices=1")
    first = run(config, tmp_path)
    assert len(first["em"]) == 3
    before, after = (load_trained(path) for path in (checkpoint, tmp_path / "em/last.ckpt"))
    for name, value in before.network.state_dict().items():
        change = (after.network.state_dict()[name] - value).abs().max()
        assert "num_batches" in name or "running" in name or change < 0.002  # of 20 steps at 0.0001
    assert not torch.equal(before.network.fc.weight, after.network.fc.weight)
    assert after.config["data"]["batch_size"] == before.config["data"]["batch_size"]
    assert load_local_model(tmp_path / "model.safetensors").features.trained.config == after.config
    loaded = torch.load(tmp_path / "em/last.ckpt", weights_only=True)
    (history,) = (state for state in loaded["callbacks"].values() if "validation_seconds" in state)
    history["rows"][0]["seconds"] += 1000  # that another process took
    torch.save(loaded, tmp_path / "em/last.ckpt")
    written = (tmp_path / "em/last.ckpt").stat().st_mtime_ns
    again = run(config, tmp_path)
    assert (tmp_path / "em/last.ckpt").stat().st_mtime_ns == written
    for name in ("best_val_accuracy", "mean_accuracy", "em_mean_accuracy", "em"):
        assert again[name] == first[name]
    assert 0 < first["train_seconds"] < 1000 < again["train_seconds"]
    (tmp_path / "em").rename(moved := tmp_path_factory.mktemp("moved") / "em")
    with pytest.raises(UserError, match=r"em/last\.ckpt does not exist"):
        load_local_model(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(moved.with_name("model.safetensors"))
    load_local_model(moved.with_name("model.safetensors"))


def test_weights_are_known_by_what_their_file_holds(checkpoint, tmp_path):
    paths = [tmp_path / name for name in ("one.ckpt", "moved.ckpt")]
    for path in paths:
        path.write_bytes(checkpoint.read_bytes())
    run(asked(paths[0], "head=mean"), tmp_path)
    before, moved = (digest(asked(path, "head=mean")) for path in paths)
    assert before == moved

    loaded = torch.load(paths[0], weights_only=True)
    loaded["state_dict"]["network.fc.bias"] += 1
    torch.save(loaded, paths[0])
    assert digest(asked(paths[0], "head=mean")) != before
    with pytest.raises(UserError, match=r"one\.ckpt has changed since"):
        load_local_model(tmp_path / "model.safetensors")
    model = tmp_path / "model.safetensors"
    with safe_open(model, "np") as file:
        about = json.loads(file.metadata()["bagnet_lightning"])
    del about["config"]["features"]["sha256"]
    model.write_bytes(save({"x": np.zeros(1)}, {"bagnet_lightning": json.dumps(about)}))
    with pytest.raises(UserError, match="written by another version"):
        load_local_model(model)


def test_a_head_learns_from_held_out_images_if_the_network_has_not_seen_them(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"held out nothing, and its network has seen these images"):
        run(asked(checkpoint, "head=logistic", "data.holdout=0.2"), tmp_path)
    with pytest.raises(UserError, match=r"add data\.holdout=SHARE"):
        run(asked(checkpoint, "head=logistic", "fit_on=holdout"), tmp_path)
    loaded = torch.load(checkpoint, weights_only=True)
    loaded["bagnet_lightning"]["config"]["data"]["holdout"] = 0.2
    torch.save(loaded, tmp_path / "held.ckpt")
    holding = ["head=logistic", "data.holdout=0.2"]
    on_train = run(asked(tmp_path / "held.ckpt", *holding), tmp_path)
    assert (on_train["train_images"], on_train["val_images"], on_train["validated_on"]) == (96, 24, "holdout")
    on_held = run(asked(tmp_path / "held.ckpt", *holding, "fit_on=holdout"), tmp_path)
    assert (on_held["train_images"], on_held["val_images"], on_held["validated_on"]) == (24, 60, "val")
    opened = data_of_run(load_local_model(tmp_path / "model.safetensors").config, None)
    opened.setup()
    assert len(opened.val_images) == 60  # not the images that the head has learned from


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["head=mean", "data.classes=3"], r"decides between 6 classes, and the data have 3"),
        (["head=em", "em.trainer.devices=2"], r"one device; leave em\.trainer\.devices"),
        (["head=mean", "checkpoint=null"], r"add checkpoint=PATH"),
        (["features=bagnet", "encoding=decisions"], r"features\.output=logits"),
        (["features=bagnet", "encoding=mean", "classifier=argmax"], r"use head=mean"),
        (["head=em", "features.output=features"], r"features\.output=logits"),
        (["head=mean", "data.classes=1"], r"nothing to tell apart: textures has one class"),
    ],
)
def test_what_does_not_fit_together_is_refused(checkpoint, tmp_path, overrides, words):
    with pytest.raises(UserError, match=words):
        run(asked(checkpoint, *overrides), tmp_path)
