"""The losses by hand, and pretrainings of seconds on textures."""

import math
import signal
from dataclasses import replace

import pytest
import torch
from conftest import PowerCut, composed
from hydra.utils import instantiate
from PIL import Image
from safetensors.torch import load_file
from test_interrupts import assert_equal_runs, before

from bagnet_lightning.checkpoint import load_backbone, read_checkpoint
from bagnet_lightning.errors import Interrupted, UserError
from bagnet_lightning.models.bagnet import bagnet9
from bagnet_lightning.pretraining.fit import _add_test_images, _cut_into_tiles, fit
from bagnet_lightning.pretraining.pretrainer import Pretrainer, neighbour_is_nearer
from bagnet_lightning.pretraining.simclr import SimCLR
from bagnet_lightning.pretraining.tile2vec import Tile2Vec
from bagnet_lightning.pretraining.tiles import Tiles
from bagnet_lightning.results import read_metrics

SMALL = [
    "data=textures",
    "data.image_size=33",
    "data.train_images=36",
    "data.val_images=12",
    "data.batch_size=12",
    "model=bagnet9",
    "model.width=0.25",
    "tiles.size=17",
    "tiles.radius=8",
    "trainer=cpu",
    "trainer.max_epochs=2",
]


def small(*overrides: str):
    return composed(*SMALL, *overrides, name="pretrain")


def test_tile2vecs_loss_by_hand():
    anchor = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    neighbour = torch.tensor([[3.0, 4.0], [3.0, 4.0]])  # 5 and 0 away
    distant = torch.tensor([[0.0, 1.0], [3.0, 16.0]])  # 1 and 12 away
    embeddings = torch.cat([anchor, neighbour, distant])
    assert Tile2Vec("", margin=10, l2=0).loss(embeddings).item() == pytest.approx((14 + 0) / 2)
    lengths = (0 + 5 + 1) + (5 + 5 + math.hypot(3, 16))
    assert Tile2Vec("", margin=10, l2=0.01).loss(embeddings).item() == pytest.approx(7 + 0.01 * lengths / 2)
    assert neighbour_is_nearer(embeddings).tolist() == [False, True]


def test_tile2vecs_gradient_is_finite_where_two_tiles_are_the_same():
    embeddings = torch.ones(3, 4).requires_grad_()
    Tile2Vec("", margin=10, l2=0.01).loss(embeddings).backward()
    assert embeddings.grad.isfinite().all()


def test_nt_xent_is_its_definition():
    torch.manual_seed(0)
    embeddings, temperature, count = torch.randn(10, 6, dtype=torch.float64), 0.3, 5
    similarity = torch.nn.functional.cosine_similarity(embeddings[:, None], embeddings[None], dim=-1)
    expected = 0.0
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        others = sum(math.exp(similarity[i, k] / temperature) for k in range(2 * count) if k != i)
        expected -= math.log(math.exp(similarity[i, j] / temperature) / others)
    assert SimCLR("", temperature, 128).loss(embeddings).item() == pytest.approx(expected / (2 * count))


def test_tile2vecs_loss_falls_and_held_out_neighbours_are_nearer(tmp_path):
    asked = ["data.train_images=120", "data.val_images=120", "data.image_size=48", "data.normalize=true"]
    result = fit(small(*asked, "trainer.max_epochs=5"), tmp_path)
    rows = read_metrics(tmp_path)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["val_loss"] < 0.9 * rows[0]["val_loss"]
    assert max(0.8, rows[0]["val_triplet_accuracy"]) < result["val_triplet_accuracy"]
    assert result["loss"] == rows[-1]["train_loss"]
    assert 0.9 < result["colour_triplet_accuracy"] <= 1  # a texture's ground has one colour


@pytest.mark.parametrize("by", ["a signal", "a power cut"])
def test_a_pretraining_that_broke_off_goes_on_as_if_it_had_not(tmp_path, monkeypatch, by):
    def stop():
        if by == "a signal":
            signal.raise_signal(signal.SIGTERM)
        else:
            raise PowerCut

    asked = small("method=simclr", "checkpoint.every_n_steps=1")  # 2 epochs of 3 steps
    fit(asked, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "training_step", before(Pretrainer.training_step, 4, stop))
        with pytest.raises((Interrupted, PowerCut)):
            fit(asked, tmp_path / "broken")
    assert not (tmp_path / "broken/backbone.safetensors").exists()
    fit(asked, tmp_path / "broken")
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "broken")
    expected, continued = (load_file(tmp_path / name / "backbone.safetensors") for name in ("unbroken", "broken"))
    assert all(torch.equal(value, continued[name]) for name, value in expected.items())


def test_a_start_from_weights_that_have_seen_the_held_out_images_is_refused(tmp_path):
    fit(small(), tmp_path)
    with pytest.raises(UserError, match="held out nothing, and its network has seen these images"):
        fit(small(f"model.pretrained={tmp_path}/backbone.safetensors", "data.holdout=0.5"), tmp_path / "other")


def test_a_backbone_is_what_the_last_checkpoint_holds_and_is_fine_tuned(tmp_path):
    result = fit(small("data.normalize=true"), tmp_path)
    assert (result["train_images"], result["val_images"]) == (36, 12)
    backbone = load_backbone(tmp_path / "backbone.safetensors")
    weights = read_checkpoint(tmp_path / "last.ckpt")["state_dict"]
    for name, value in backbone.network.state_dict().items():
        assert torch.equal(value, weights[f"network.{name}"])
    assert backbone.config["model"]["width"] == 0.25
    assert 0 < backbone.mean[0] < 1
    fine_tuned = bagnet9(6, width=0.25, pretrained=str(tmp_path / "backbone.safetensors"))
    assert torch.equal(fine_tuned.layer4[2].conv3.weight, backbone.network.layer4[2].conv3.weight)
    assert fine_tuned.fc.out_features == 6


def test_the_projection_head_is_trained_and_not_in_the_backbone(tmp_path):
    fit(small("method=simclr"), tmp_path)
    first = read_checkpoint(tmp_path / "last.ckpt")["state_dict"]
    assert first["head.2.weight"].shape == (128, 512)
    assert not any("head" in name for name in load_backbone(tmp_path / "backbone.safetensors").network.state_dict())


def test_random_weights_stay_as_they_were_and_get_statistics_of_tiles(tmp_path):
    result = fit(small("method=random", "trainer.max_epochs=1"), tmp_path / "one")
    assert result["loss"] == 0
    fit(small("method=random", "seed=0"), tmp_path / "two")
    one, two = (load_file(tmp_path / name / "backbone.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        if name.endswith(("running_mean", "num_batches_tracked")):
            assert not torch.equal(value, two[name])
        elif not name.endswith("running_var"):
            assert torch.equal(value, two[name])


def test_unlabelled_test_images_are_trained_on_too(tmp_path):
    for folder, count in {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2, "test": 4}.items():
        (tmp_path / "mine" / folder).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((20, 20), 50).save(tmp_path / "mine" / folder / f"{number}.png")
    asked = ["data=image_folder", f"data.root={tmp_path / 'mine'}", "data.image_size=20", "data.batch_size=5"]
    asked += ["model=bagnet9", "model.width=0.25", "tiles.size=11", "tiles.radius=8", "trainer=cpu"]
    asked += ["trainer.max_epochs=1", "splits=train+test"]
    result = fit(composed(*asked, name="pretrain"), tmp_path / "run")
    assert result["train_images"] == 10
    assert read_checkpoint(tmp_path / "run/last.ckpt")["ImageFolder"].keys() == {"train", "val", "test"}
    with pytest.raises(UserError, match="groups of images are held out and in test, such as '"):
        fit(composed(*asked, "data.group='[0-9]'", "data.holdout=0.5", name="pretrain"), tmp_path / "groups")
    with pytest.raises(UserError, match=r"splits=train\+test: textures has no test images"):
        fit(small("splits=train+test"), tmp_path / "other")


def pretraining_data(*overrides: str):
    """The data of a pretraining, whose validation images are unlabelled test images, too."""
    data = instantiate(small(*overrides).data, _convert_="all")
    store = data.open_store()
    splits, digests = {**store.splits, "test": store.splits["val"]}, {**store.digests, "test": "0"}
    data.open_store = lambda: replace(store, splits=splits, digests=digests)
    data.setup()
    return data


def test_images_that_are_held_out_are_not_trained_on_beside_the_test_images():
    data = pretraining_data("data.holdout=0.5")
    held_out = data.val_images.split.images[data.val_images.chosen]
    _add_test_images(data)
    trained = data.train_images.split.images[data.train_images.chosen]
    assert len(trained) == 18 + 12
    assert not (trained[:, None] == held_out).flatten(2).all(2).any()


def test_held_out_tiles_are_compared_with_those_of_other_classes():
    data = pretraining_data()
    _cut_into_tiles(data, Tiles(17, 8, flip=True, colour=0.0), kinds=3)
    labels, images = data.val_images.labels.tolist(), data.val_images
    assert labels == images.split.labels[images.chosen].tolist() != sorted(labels)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tiles.size=40", r"tiles\.size=40: the images have 33 x 33 px"),
        ("model=bagnet33", "tiles of 17 x 17 px are smaller than .* 33 px or more"),
        ("data.batch_size=1", r"data\.batch_size=1: a batch of the 36 images would have 1,"),
        ("data.flip=dihedral", r"data.flip=dihedral: tiles are mirrored at random or not at all"),
        ("data.flip=alternating", r"data\.flip=alternating: tiles are mirrored at random or not at all"),
        ("data.eval_batch_size=1", r"data\.eval_batch_size=1: a batch of the 12 images would have 1,"),
        ("data.eval_batch_size=2,data.val_images=9", r"eval_batch_size=2: a batch of the 9 images"),  # 2, 2, 2, 2, 1
    ],
)
def test_what_cannot_be_cut_into_tiles_and_triplets_is_refused(tmp_path, override, words):
    with pytest.raises(UserError, match=words):
        fit(small(*override.split(",")), tmp_path)
