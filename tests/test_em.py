import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, composed
from pytorch_lightning import Callback
from torch.nn import functional as F

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.data.module import Textures
from bagnet_lightning.errors import Interrupted, UserError
from bagnet_lightning.local_features.em import ExpectationMaximization, fine_tuned, smoothed, thresholds
from bagnet_lightning.training.fit import fit

SETTINGS = [*SMALL, "optim=adam", "bagnet.stem_momentum=0.1"]


def em():
    return ExpectationMaximization(image_percentile=40, class_percentile=30, sigma=0.7)


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_smoothing_is_by_a_gaussian_whose_weights_within_the_map_sum_to_one():
    near, far = np.exp(-0.5), np.exp(-2)  # at 1 and 2 positions, for sigma 1
    maps = torch.tensor([[[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.5]]], dtype=torch.float64)
    expected = [1 / (1 + near + far), near / (near + 1 + near), far / (far + near + 1)]
    assert smoothed(maps, 1.0)[0, 0].tolist() == pytest.approx(expected)
    assert smoothed(maps, 1.0)[1, 0].tolist() == pytest.approx([0.5] * 3)
    corner = torch.zeros(1, 3, 3, dtype=torch.float64)
    corner[0, 0, 2] = 1
    assert smoothed(corner, 1.0)[0].flatten().tolist() == pytest.approx(
        [a * b for a in expected for b in expected[::-1]]
    )
    assert torch.equal(smoothed(corner, 0), corner)


def test_the_threshold_is_the_lesser_of_the_images_and_the_classs_percentile():
    maps = np.array([[[0.0, 0.1], [0.2, 0.3]], [[0.4, 0.6], [0.8, 1.0]], [[0.5, 0.5], [0.6, 0.9]]])
    labels = np.array([0, 0, 1])
    # Medians of the images: 0.15, 0.7, 0.55. Of class 0, [0 .1 .2 .3 .4 .6 .8 1], a quarter is below 0.175; of class 1,
    # that is the third image, below 0.5.
    assert thresholds(maps, labels, 50, 25).tolist() == pytest.approx([0.15, 0.175, 0.5])
    assert thresholds(maps, labels, 50, 100).tolist() == pytest.approx([0.15, 0.7, 0.55])
    assert thresholds(maps, labels, 0, 100).tolist() == pytest.approx([0.0, 0.4, 0.5])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a short training, from whose weights EM starts."""
    folder = tmp_path_factory.mktemp("trained")
    fit(composed(*SETTINGS, "trainer.max_epochs=8"), folder)
    return folder / "last.ckpt"


def from_(trained, *overrides):
    config = composed(*SETTINGS, "trainer.max_epochs=3", "optim.lr=0.0001", "scheduler=constant", *overrides)
    config.model.pretrained = str(trained)
    return config


@pytest.fixture(scope="module")
def unbroken(trained, tmp_path_factory):
    """The callback and last.ckpt of a run of EM."""
    folder, callback = tmp_path_factory.mktemp("unbroken"), em()
    fit(from_(trained), folder, added_callbacks=[callback])
    return callback, folder / "last.ckpt"


def test_em_raises_the_likelihood_of_the_train_images(unbroken):
    likelihoods = [stage["log_likelihood"] for stage in unbroken[0].rounds]
    assert len(likelihoods) == 4  # before each of three epochs, and after them
    assert likelihoods[-1] > likelihoods[0] + 0.1


def test_the_e_step_keeps_the_patches_whose_smoothed_probability_reaches_the_threshold(trained, tmp_path):
    callback = em()
    fit(from_(trained, "data.flip=false"), tmp_path, added_callbacks=[callback])
    after = load_trained(tmp_path / "last.ckpt")
    data = Textures(**{key: value for key, value in after.config["data"].items() if key != "_target_"})
    data.setup()
    images, labels, _ = data.train_images[torch.arange(36)]
    with torch.no_grad():
        probabilities = after.network.patch_logits(normalize(images, after.mean, after.std)).softmax(-1)
    maps = torch.stack([smoothed(p[None, ..., label], 0.7)[0] for p, label in zip(probabilities, labels, strict=True)])
    least = torch.from_numpy(thresholds(maps.numpy(), labels.numpy(), 40, 30))[:, None, None]
    clear = (maps - least).abs() > 1e-6
    assert torch.equal(callback.discriminative[clear], (maps >= least)[clear])
    assert callback.discriminative.flatten(1).float().mean(1).min() >= 0.6
    assert 0.6 <= callback.rounds[-1]["discriminative"] < 0.9
    true = torch.stack([p[..., label] for p, label in zip(probabilities, labels, strict=True)])
    guess = torch.tensor(1 / len(after.classes))
    expected = true.where(callback.discriminative, guess).log().mean().item()
    assert callback.rounds[-1]["log_likelihood"] == pytest.approx(expected, rel=1e-5)


def test_the_m_step_is_cross_entropy_of_the_discriminative_patches_alone(trained):
    callback = em()
    callback.network, callback.module = load_trained(trained).network, SimpleNamespace(criterion=F.cross_entropy)
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 33, 33), torch.tensor([2, 0])
    callback.chosen = torch.zeros(2, 4, 4, dtype=torch.bool)
    for patch in [(0, 0, 0), (0, 1, 3), (1, 2, 2)]:
        callback.chosen[patch] = True
    logits, loss = callback.logits_and_patch_loss(images.requires_grad_(), labels)
    loss.backward()
    patches = callback.network.patch_logits(images)
    by_hand = [F.cross_entropy(patches[i, r, c], labels[i]) for i, r, c in [(0, 0, 0), (0, 1, 3), (1, 2, 2)]]
    assert loss.item() == pytest.approx(sum(by_hand).item() / 3)
    assert torch.allclose(logits, callback.network(images), atol=1e-5)
    seen = torch.zeros(2, 33, 33, dtype=torch.bool)
    for image, row, column in [(0, 0, 0), (0, 8, 24), (1, 16, 16)]:
        seen[image, row : row + 9, column : column + 9] = True
    assert images.grad.abs().sum(1)[~seen].max() == 0
    assert images.grad.abs().sum(1)[seen].max() > 0


def test_both_steps_see_the_epochs_augmentation_and_the_m_step_alone_counts_in_the_batch_norms(
    trained, tmp_path, monkeypatch
):
    seen, augmented = [], Textures.augmented

    def noted(self, images, indices, keys):
        seen.append((len(images), keys[2].item()))
        return augmented(self, images, indices, keys)

    monkeypatch.setattr(Textures, "augmented", noted)
    fit(from_(trained, "trainer.max_epochs=2"), tmp_path, added_callbacks=[em()])
    epochs = [[(36, epoch), *[(12, epoch)] * 3] for epoch in (0, 1)]
    assert seen == [*epochs[0], *epochs[1], (36, 1)]
    before, after = (weights(path)["network.bn1.num_batches_tracked"] for path in (trained, tmp_path / "last.ckpt"))
    assert after - before == 6


class Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_em_that_is_killed_goes_on_as_if_it_had_not_been(trained, unbroken, tmp_path):
    continued = em()
    with pytest.raises(Interrupted):
        fit(from_(trained), tmp_path, added_callbacks=[em(), Kill(4)])  # in the second of three epochs of three steps
    fit(from_(trained), tmp_path, added_callbacks=[continued])
    assert continued.rounds == unbroken[0].rounds
    a, b = weights(tmp_path / "last.ckpt"), weights(unbroken[1])
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_em_makes_nothing_that_a_checkpoint_names(trained, tmp_path):
    made = tmp_path / "made"
    call = {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": [str(made)]}]}
    for part, key in (("model", "zero_init"), ("data", "flip")):
        content = torch.load(trained, weights_only=True)
        content["bagnet_lightning"]["config"][part][key] = call
        torch.save(content, tmp_path / "best.ckpt")
        config = composed("head=em", f"checkpoint={tmp_path / 'best.ckpt'}", "data=textures", name="classical")
        with pytest.raises(UserError, match="more than a value"):
            fine_tuned(config, tmp_path / "em")
    assert not made.exists()


def test_em_needs_patches(tmp_path):
    with pytest.raises(UserError, match="a BagNet, and not ResNet"):
        fit(composed(*SETTINGS[:5], "model=resnet18", "trainer=cpu"), tmp_path, added_callbacks=[em()])
