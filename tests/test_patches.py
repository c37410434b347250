from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trained_checkpoints import write_checkpoint

from bagnet_lightning.checkpoint import load_trained, write_backbone
from bagnet_lightning.config import weights_sha256
from bagnet_lightning.data.batches import Images
from bagnet_lightning.data.image_data import ImageData
from bagnet_lightning.data.store import Split
from bagnet_lightning.errors import UserError
from bagnet_lightning.inference import logits as inference
from bagnet_lightning.inference.logits import predict
from bagnet_lightning.local_features.patches import BagNetFeatures, Patches


def some_images(count=7, side=40):
    pixels = torch.randint(256, (count + 2, side, side, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    chosen = torch.arange(count + 1, 1, -1)  # not the split's order
    return Images(Split(pixels, torch.zeros(count + 2).long(), torch.zeros(count + 2, 4)), chosen, torch.zeros(count))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt", "bagnet17")


def features_of(path, output):
    return BagNetFeatures(str(path), weights_sha256(str(path)), output)


def bags(path, output, images):
    return Patches(features_of(path, output), images)


def means(bag):
    return np.stack([part.mean(0) for part in np.split(bag.descriptors, bag.offsets[1:-1])])


def test_patches_mean_what_the_network_means(checkpoint):
    images, trained = some_images(), load_trained(checkpoint)
    features, logits = (bags(checkpoint, output, images).read(0, 7) for output in ("features", "logits"))
    assert features.descriptors.shape == (7 * 9, 512)
    assert features.descriptors.dtype == logits.descriptors.dtype == np.float32
    pixels = images.split.images[images.chosen]
    assert np.allclose(means(logits), predict(trained, pixels).numpy(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        expected = trained.network.fc(torch.from_numpy(features.descriptors)).numpy()
    assert np.allclose(logits.descriptors, expected, rtol=1e-4, atol=1e-4)


def test_any_images_are_read_alike(checkpoint, monkeypatch):
    source = bags(checkpoint, "features", some_images())
    whole = source.read(0, 7)
    monkeypatch.setattr(inference, "PIXELS", 2 * 40 * 40)
    part = source.read(2, 5)
    assert (len(source), len(part)) == (7, 3)
    assert part.offsets.tolist() == [0, 9, 18, 27]
    assert np.allclose(part.descriptors, whole.descriptors[18:45], rtol=1e-4, atol=1e-3)


def test_a_keypoint_is_the_middle_and_the_size_of_what_its_descriptor_sees(checkpoint):
    images = some_images(1)
    source, pixels = bags(checkpoint, "logits", images), images.split.images[2]
    before, keypoints = source.features.describe(pixels[None].numpy())
    x, y, size, angle = keypoints[5]  # of 3 x 3: second row, last column
    assert (x, y, size, angle) == (24, 16, 17, 0)
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[8:25, 16:33] = True
    pixels[~inside] = 255 - pixels[~inside]
    assert np.allclose(source.read(0, 1).descriptors[5], before.descriptors[5], atol=1e-3)
    assert (
        np.abs(source.read(0, 1).descriptors - before.descriptors).max(1).min(initial=1, where=np.arange(9) != 5) > 0.1
    )
    for row, column in [(8, 16), (24, 32)]:
        kept = pixels[row, column].clone()
        pixels[row, column] = 255 - kept
        assert np.abs(source.read(0, 1).descriptors[5] - before.descriptors[5]).max() > 1e-3
        pixels[row, column] = kept


def test_a_backbone_has_features_and_no_logits(checkpoint, tmp_path):
    trained = load_trained(checkpoint)
    about = {"config": trained.config, "mean": trained.mean, "std": trained.std}
    write_backbone(trained.network, about, tmp_path / "backbone.safetensors")
    images = some_images(2)
    same = bags(tmp_path / "backbone.safetensors", "features", images).read(0, 2).descriptors
    assert np.array_equal(same, bags(checkpoint, "features", images).read(0, 2).descriptors)
    with pytest.raises(UserError, match="no classifier"):
        bags(tmp_path / "backbone.safetensors", "logits", images)


class Data(SimpleNamespace):
    """What `check` needs to know of data."""

    group = None
    store = SimpleNamespace(side=33)  # px; not of the network's images, so that names tell whether they are the same
    check_unseen = ImageData.check_unseen


def test_a_backbone_tells_what_it_has_not_seen(checkpoint, tmp_path):
    trained, path = load_trained(checkpoint), tmp_path / "backbone.safetensors"
    config = {**trained.config, "data": {**trained.config["data"], "holdout": 0.2}}
    write_backbone(trained.network, {"config": config, "mean": trained.mean, "std": trained.std}, path)
    features = features_of(path, "features")
    for name, holdout, classes, refused in (
        ("textures", 0.2, None, None),
        ("textures", 0.1, None, r"held out 0\.2, and its network has seen"),
        ("textures", 0.2, 3, r"held out 0\.2 of other classes"),
        ("other", 0.1, 3, None),
    ):
        with pytest.raises(UserError, match=refused) if refused else nullcontext():
            features.check(Data(name=name, holdout=holdout, fold=0, classes=classes))


def test_logits_are_of_the_datas_own_classes(checkpoint):
    classes = load_trained(checkpoint).classes
    data = Data(class_ids=classes, holdout=0.0, fold=0, name="other", classes=None)
    features_of(checkpoint, "logits").check(data)
    data.class_ids = classes[::-1]
    with pytest.raises(UserError, match="or others: choose the same ones"):
        features_of(checkpoint, "logits").check(data)


def test_what_is_no_bagnet_or_too_small_is_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match="a BagNet, not ResNet"):
        bags(write_checkpoint(tmp_path / "best.ckpt", "resnet18"), "features", some_images())
    with pytest.raises(UserError, match="16 x 16 px are smaller than this network's patches: 17 px"):
        bags(checkpoint, "features", some_images(side=16))
    with pytest.raises(UserError, match="4 x 4 px are smaller than this network's patches"):
        features_of(checkpoint, "features").describe(np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="checkpoint=PATH"):
        BagNetFeatures(None, None, "features")
