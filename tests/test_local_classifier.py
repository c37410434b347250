"""The classifiers against scikit-learn's, and what becomes of their scores: a file, and shares of keypoints."""

import numpy as np
import pytest
from conftest import composed
from local_bags import bag_of, random_bag
from omegaconf import OmegaConf
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from bagnet_lightning.errors import UserError
from bagnet_lightning.local_features import classifier as module
from bagnet_lightning.local_features.classifier import LinearClassifier
from bagnet_lightning.local_features.model import (
    LocalModel,
    keypoint_shares,
    load_local_model,
    made,
    save_local_model,
)

COUNTS = [5, 0, 12, 1, 30]


@pytest.fixture(scope="module")
def histograms() -> tuple[np.ndarray, np.ndarray]:
    """(300, 20) that sum to 1, of 4 classes that overlap, and (300,) labels."""
    draw = np.random.default_rng(0)
    labels = np.arange(300) % 4
    words = draw.dirichlet(np.ones(20), size=4)
    counts = np.stack([draw.multinomial(25, words[label]) for label in labels])
    return (counts / 25).astype(np.float32), labels


@pytest.fixture
def to_the_end(monkeypatch):
    """As near to the optimum as float32 can tell."""
    monkeypatch.setattr(module, "DECREASE", 1e-12)


def test_a_classifier_that_is_not_at_its_optimum_says_so(histograms, monkeypatch, caplog):
    made = LinearClassifier("logistic", 1.0, None, 0)
    made.learn(*histograms, 4)
    assert not caplog.records
    monkeypatch.setattr(module, "ITERATIONS", 2)
    made.learn(*histograms, 4)
    assert "is not at its optimum after 2 iterations" in caplog.text


@pytest.mark.parametrize("C", [0.1, 10])
def test_the_svm_is_scikit_learns(histograms, to_the_end, C):
    vectors, labels = histograms
    ours = LinearClassifier("squared_hinge", C, None, 1)
    ours.learn(vectors, labels, 4)
    theirs = LinearSVC(C=C, dual=False, intercept_scaling=1000, tol=1e-8).fit(vectors.astype(np.float64), labels)
    np.testing.assert_allclose(ours.arrays["weight"], theirs.coef_, atol=2e-3 * np.abs(theirs.coef_).max())
    np.testing.assert_allclose(ours.scores(vectors), theirs.decision_function(vectors), atol=5e-3)


@pytest.mark.parametrize("C", [0.1, 10])
def test_the_logistic_regression_is_scikit_learns(histograms, to_the_end, C):
    vectors, labels = histograms
    ours = LinearClassifier("logistic", C, None, 1)
    ours.learn(vectors, labels, 4)
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=1000).fit(vectors.astype(np.float64), labels)
    np.testing.assert_allclose(ours.arrays["weight"], theirs.coef_, atol=2e-3 * np.abs(theirs.coef_).max())
    np.testing.assert_allclose(ours.scores(vectors), theirs.decision_function(vectors), atol=5e-3)


def test_vectors_far_from_zero_are_learned_as_well(histograms):
    vectors, labels = histograms
    near, far = (LinearClassifier("logistic", 10, None, 1) for _ in range(2))
    near.learn(vectors, labels, 4)
    far.learn(vectors + 20, labels, 4)
    np.testing.assert_allclose(far.scores(vectors + 20), near.scores(vectors), atol=0.02)


@pytest.mark.parametrize("loss", ["squared_hinge", "logistic"])
def test_where_training_stops_the_accuracy_is_that_of_the_end(histograms, monkeypatch, loss):
    vectors, labels = histograms
    stopped = LinearClassifier(loss, 1.0, "chi2", 1)
    stopped.learn(vectors, labels, 4)
    monkeypatch.setattr(module, "DECREASE", 1e-12)
    ended = LinearClassifier(loss, 1.0, "chi2", 1)
    ended.learn(vectors, labels, 4)
    agreed = stopped.scores(vectors).argmax(1) == ended.scores(vectors).argmax(1)
    assert agreed.mean() > 0.98
    again = LinearClassifier(loss, 1.0, "chi2", 1)
    again.learn(vectors, labels, 4)
    np.testing.assert_array_equal(again.arrays["weight"], ended.arrays["weight"])


def test_more_images_than_are_multiplied_at_a_time(histograms, monkeypatch):
    vectors, labels = histograms
    whole = LinearClassifier("logistic", 1.0, None, 1)
    whole.learn(vectors, labels, 4)
    monkeypatch.setattr(module, "ROWS", 70)
    parts = LinearClassifier("logistic", 1.0, None, 1)
    parts.learn(vectors, labels, 4)
    np.testing.assert_allclose(parts.scores(vectors), whole.scores(vectors), atol=1e-2)


def test_the_map_is_made_of_as_many_images_as_are_multiplied_at_a_time(histograms, monkeypatch):
    vectors, labels = histograms
    whole = LinearClassifier("squared_hinge", 1.0, "chi2", 1)
    whole.learn(vectors, labels, 4)
    monkeypatch.setattr(module, "ROWS", 70)
    parts, sizes = LinearClassifier("squared_hinge", 1.0, "chi2", 1), []
    kernel_map = parts.map
    monkeypatch.setattr(parts, "map", lambda rows: (sizes.append(len(rows)), kernel_map(rows))[1])
    parts.learn(vectors, labels, 4)
    assert max(sizes) == 70
    np.testing.assert_allclose(parts.scores(vectors), whole.scores(vectors), atol=1e-2)


def test_a_kernel_is_of_no_negative_numbers(histograms):
    vectors, labels = histograms
    with pytest.raises(UserError, match=r"classifier\.kernel=chi2 takes histograms"):
        LinearClassifier("logistic", 1.0, "chi2", 1).learn(vectors - 0.1, labels, 4)


def model(encoding: str, classifier: str) -> LocalModel:
    """A system of 3 classes with nothing learned from images: random words, Gaussians and weights."""
    few = ["encoding.gaussians=3", "encoding.dimensions=4"] if encoding == "fisher" else []
    config = composed(f"encoding={encoding}", f"classifier={classifier}", *few, name="classical")
    config = OmegaConf.to_container(config, resolve=True)
    parts = {part: made(config, part) for part in ("features", "encoding", "classifier")}
    draw = np.random.default_rng(0)
    if encoding == "bow":
        parts["encoding"].arrays = {"words": draw.normal(size=(6, 8)).astype(np.float32)}
    else:
        shapes = {"mean": (8,), "components": (4, 8), "means": (3, 4), "deviations": (3, 4), "weights": (3,)}
        arrays = {name: draw.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
        parts["encoding"].arrays = arrays | {"weights": arrays["weights"] / arrays["weights"].sum()}
    width = parts["encoding"](random_bag(0, [1])).shape[1] * (3 if classifier == "additive" else 1)
    parts["classifier"].arrays = {
        "weight": draw.normal(size=(3, width)).astype(np.float32),
        "bias": draw.normal(size=3).astype(np.float32),
    }
    return LocalModel(**parts, config=config, classes=["a", "b", "c"], class_names=["A", "B", "C"])


@pytest.mark.parametrize(
    ("encoding", "classifier"),
    [("bow", "linear"), ("bow", "logistic"), ("bow", "additive"), ("fisher", "linear"), ("fisher", "logistic")],
)
def test_the_shares_of_keypoints_and_the_bias_sum_to_the_scores(encoding, classifier):
    system, bag = model(encoding, classifier), random_bag(5, COUNTS)
    shares, scores, bias = keypoint_shares(system, bag), system.scores(bag), system.classifier.arrays["bias"]
    assert shares.shape == (sum(COUNTS), 3)
    for image, (start, stop) in enumerate(zip(bag.offsets, bag.offsets[1:], strict=False)):
        if start == stop:
            np.testing.assert_array_equal(scores[image], bias)
        else:
            np.testing.assert_allclose(shares[start:stop].sum(0) + bias, scores[image], atol=2e-4)


def test_keypoints_have_no_more_to_share_than_there_is():
    system = model("fisher", "linear")
    for name in ("mean", "means"):
        system.encoding.arrays[name][:] = 0
    half = random_bag(5, [20]).descriptors
    bag = bag_of(np.concatenate([half, 1e-4 - half]), [40])  # whose gradients by the means nearly cancel
    elements = system.classifier.contributions(system.encoding(bag)[0])
    shared = np.abs(keypoint_shares(system, bag)).sum(0)
    assert (shared <= np.abs(elements).sum(0) * (1 + 1e-3)).all()


@pytest.mark.parametrize(("encoding", "classifier"), [("bow", "additive"), ("fisher", "linear")])
def test_a_file_gives_the_same_system(tmp_path, encoding, classifier):
    system, bag = model(encoding, classifier), random_bag(5, COUNTS)
    save_local_model(system, tmp_path / "model.safetensors")
    loaded = load_local_model(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.scores(bag), system.scores(bag))
    assert (loaded.classes, loaded.class_names, loaded.config) == (system.classes, system.class_names, system.config)
    assert loaded.features == system.features


def test_what_is_no_system_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_local_model(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(UserError, match="cannot be read"):
        load_local_model(tmp_path / "cut.safetensors")
