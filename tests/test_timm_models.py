"""BagNets as timm and torch.hub give them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import composed
from trained_checkpoints import CLASSES, write_checkpoint

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.evidence import patch_evidence
from bagnet_lightning.export import main
from bagnet_lightning.exporting.formats import FORMATS, difference, load_by_timm
from bagnet_lightning.exporting.model_card import write_card
from bagnet_lightning.models import bagnet

timm = pytest.importorskip("timm", reason="timm is an optional dependency")
NAMES = ("bagnet9", "bagnet17", "bagnet33")


@pytest.fixture(autouse=True)
def registered():
    import bagnet_lightning.timm_models  # noqa: F401


@pytest.mark.parametrize("name", NAMES)
def test_timms_bagnets_are_ours(name, tmp_path):
    torch.manual_seed(0)
    ours = getattr(bagnet, name)(5, width=0.25).eval()
    torch.save(ours.state_dict(), tmp_path / "weights.pt")
    file = {"file": str(tmp_path / "weights.pt"), "num_classes": 5}
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=file, num_classes=5, width=0.25).eval()
    images = torch.rand(2, 3, 49, 40)
    torch.testing.assert_close(network(images), ours(images))
    features = network.forward_features(images)
    torch.testing.assert_close(network.forward_head(features), ours(images))
    assert network.forward_head(features, pre_logits=True).shape == (2, network.num_features)
    torch.testing.assert_close(patch_evidence(network, images), ours.patch_logits(images), rtol=1e-4, atol=1e-3)
    assert network.default_cfg["classifier"] == "fc"
    network.reset_classifier(7)
    assert network(images).shape == (2, 7)
    network.reset_classifier(0)
    assert network(images).shape == (2, network.num_features)


def test_features_only_and_other_options():
    make = {"width": 0.25, "pad": 1}
    network = timm.create_model("bagnet17", features_only=True, out_indices=(1, 3), **make).eval()
    images = torch.rand(1, 3, 64, 64)
    middle, last = network(images)
    assert network.feature_info.reduction() == [4, 8]
    assert [middle.shape[1], last.shape[1]] == network.feature_info.channels() == [128, 512]
    torch.testing.assert_close(last, network.model.features(images))
    grey = timm.create_model("bagnet9", in_chans=1, num_classes=0, global_pool="", **make).eval()
    assert grey(torch.rand(1, 1, 64, 64)).shape == (1, 512, 8, 8)
    with pytest.raises(ValueError, match="mean over patches"):
        timm.create_model("bagnet9", global_pool="max", **make)


BAGNET13 = {"_target_": "bagnet_lightning.models.bagnet.BagNet", "wide_stages": [1, 0, 1, 0], "width": 0.25}
BAGNET13 |= {"pad": 0, "stem_momentum": 0.1, "zero_init": False}  # as in docs/using.md
TIMMS = {"_target_": "timm.create_model", "model_name": "test_vit.r160_in1k", "img_size": 40, "patch_size": 8}


@pytest.mark.parametrize(
    ("model", "settings"), [("bagnet17", None), ("bagnet17", BAGNET13), ("resnet18", None), ("resnet18", TIMMS)]
)
def test_timm_reads_the_hubs_folder(model, settings, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", model, settings=settings)
    main.__wrapped__(composed(f"checkpoint={checkpoint}", "format=hub", name="export"))
    network = timm.create_model(f"local-dir:{tmp_path}/hub", pretrained=True).eval()
    images = torch.rand(2, 3, 40, 40)
    torch.testing.assert_close(network(images), load_trained(checkpoint).network(images))
    assert network.pretrained_cfg["mean"] == [0.5, 0.4, 0.3]
    features = json.loads((tmp_path / "hub/config.json").read_text())["num_features"]
    assert features == network.num_features


def test_timm_builds_a_network_of_a_fixed_size_as_it_was(tmp_path):
    trained = load_trained(write_checkpoint(tmp_path / "best.ckpt", "resnet18"))
    settings = {"_target_": "timm.create_model", "model_name": "test_vit_relpos"}  # for 160 px, where timm says so
    network = timm.create_model("test_vit_relpos", num_classes=len(CLASSES)).eval()
    config = {**trained.config, "model": settings, "image_size": 160}
    trained = replace(trained, network=network, config=config)
    FORMATS["safetensors"].write(trained, tmp_path / "model.safetensors")
    write_card(tmp_path, trained, tmp_path / "best.ckpt")
    assert difference(trained, load_by_timm(tmp_path, trained)) == 0


def test_torch_hub_loads(tmp_path):
    root = str(Path(__file__).parents[1])
    assert torch.hub.load(root, "bagnet9", source="local", num_classes=3, width=0.25).fc.out_features == 3
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", "bagnet9")
    network = torch.hub.load(root, "from_checkpoint", str(checkpoint), source="local")
    outputs = network(torch.rand(1, 3, 33, 33))
    assert outputs["evidence"].shape == (1, 4, 4, len(CLASSES))
    assert network.classes == CLASSES
