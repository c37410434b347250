import tarfile
from functools import partial

import pytest
import torch

from bagnet_lightning.checkpoint import (
    adapt_head,
    load_backbone,
    load_trained,
    published,
    read_if_ours,
    read_network,
    write_backbone,
)
from bagnet_lightning.errors import UserError
from bagnet_lightning.models.bagnet import BagNet, bagnet9
from bagnet_lightning.models.pretrained import head_names, load_pretrained
from bagnet_lightning.models.resnet import resnet18
from bagnet_lightning.training.checkpoints import CheckpointWriter

IMAGES = {"image_size": 64, "train_digest": "0" * 64}


def about(classes=3):
    model = {"_target_": "bagnet_lightning.models.bagnet.bagnet9", "width": 0.25, "pretrained": True}
    return {
        "config": {"model": model, "data": {"name": "textures"}, **IMAGES},
        "classes": [f"n{i}" for i in range(classes)],
        "class_names": [f"name {i}" for i in range(classes)],
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
    }


def checkpoint(network):
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    return {"state_dict": {**weights, "val_accuracy.tp": torch.zeros(1)}, "bagnet_lightning": about()}


def test_a_network_comes_back_as_it_was(tmp_path):
    network = bagnet9(3, width=0.25).eval()
    CheckpointWriter().save_checkpoint(checkpoint(network), tmp_path / "best.ckpt")
    trained = load_trained(tmp_path / "best.ckpt")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(trained.network(images), network(images))
    assert not trained.network.training
    assert trained.class_names == ["name 0", "name 1", "name 2"]


def test_what_is_written_for_others_holds_no_path_of_the_users():
    data = {"name": "mine", "root": "/private", "holdout": 0.1, "fold": 0}
    config = {
        "model": {"_target_": "x", "pretrained": "/private/a.ckpt", "checkpoint_path": "/private/b"},
        "data": data,
        "sweep": "/private",
        **IMAGES,
    }
    for_others = published(config)
    assert "private" not in str(for_others)
    assert for_others["model"]["pretrained"] is True
    assert for_others["data"] == {"name": "mine", "holdout": 0.1, "fold": 0}


@pytest.mark.parametrize("make", [partial(bagnet9, width=0.25), resnet18])
def test_a_backbone_gives_the_features_and_a_new_head_for_any_classes(tmp_path, make):
    network = make(3).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_()
    options = {"width": 0.25} if make is not resnet18 else {}
    target = f"bagnet_lightning.models.{'bagnet.bagnet9' if options else 'resnet.resnet18'}"
    config = {"model": {"_target_": target, "pretrained": "x", **options}, "data": {"name": "textures", "root": "/a"}}
    config |= IMAGES
    path = tmp_path / "backbone.safetensors"
    write_backbone(network, {**about(), "config": config}, path)
    backbone = load_backbone(path)
    assert backbone.classes == []
    assert (backbone.mean, backbone.std, backbone.image_size) == ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 64)
    images = torch.randn(2, 3, 40, 40)
    features = backbone.network(images)
    torch.testing.assert_close(network.fc(features), network(images))
    if options:
        torch.testing.assert_close(backbone.network.features(images).mean((2, 3)), features)
    fine_tuned = make(5, pretrained=str(path)).eval()
    assert fine_tuned.fc.out_features == 5
    torch.testing.assert_close(fine_tuned(images), fine_tuned.fc(features))
    with pytest.raises(UserError, match=r"a backbone without a classifier; .* model\.pretrained="):
        load_trained(path)


def test_a_head_follows_its_classes(tmp_path):
    source = bagnet9(3, width=0.25)
    weights = {f"network.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": weights, "bagnet_lightning": about()}, tmp_path / "best.ckpt")
    described, read = read_network(tmp_path / "best.ckpt")
    start = described["classes"], read
    for classes in (["n2", "new", "n0"], ["n1", "n2", "n0", "new"]):
        network = bagnet9(len(classes), width=0.25, pretrained=str(tmp_path / "best.ckpt"))
        said = adapt_head(network, classes, *start)
        assert f"but for {len(classes) - 1} of {len(classes)} classes" in said
        for row, name in enumerate(classes):
            same = [torch.equal(network.fc.weight[row], source.fc.weight[place]) for place in range(3)]
            assert same == [name == f"n{place}" for place in range(3)]
            assert name == "new" or network.fc.bias[row] == source.fc.bias[int(name[1])]
    for own in (torch.nn.Sequential(), torch.nn.Linear(4, 2)):  # without a head, and with one that the file lacks
        assert adapt_head(own, ["n2", "n0"], *start).startswith(
            "note: which layer tells its classes apart is not known"
        )
    network = bagnet9(3, width=0.25, pretrained=str(tmp_path / "best.ckpt"))
    assert adapt_head(network, ["n0", "n1", "n2"], *start) is None
    assert adapt_head(network, ["n2", "n1", "n0"], [], read) is None  # a backbone's
    assert torch.equal(network.fc.weight, source.fc.weight)


@pytest.mark.parametrize(
    ("name", "heads"), [("deit_tiny_distilled_patch16_224", ["head", "head_dist"]), ("resnetv2_18", ["head.fc"])]
)
def test_all_heads_of_a_network_of_timm_follow_their_classes(tmp_path, name, heads):
    timm = pytest.importorskip("timm", reason="timm is an optional dependency: pip install 'bagnet-lightning[timm]'")
    options = {"img_size": 64, "depth": 1} if "deit" in name else {}
    source = timm.create_model(name, num_classes=3, **options)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    assert head_names(source) == heads
    for classes in (["n1", "n2", "n0"], ["n2", "new"]):
        network = timm.create_model(name, num_classes=len(classes), **options)
        load_pretrained(network, name, str(tmp_path / "weights.pt"))
        adapt_head(network, classes, ["n0", "n1", "n2"], source.state_dict())
        for head in heads:
            rows, known = network.get_submodule(head).weight, source.get_submodule(head).weight
            for row, label in zip(rows, classes, strict=True):
                same = [torch.equal(row, other) for other in known]
                assert same == [label == f"n{place}" for place in range(3)]


def test_the_head_is_fc_or_the_last_linear_layer():
    gate, fc = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert head_names(torch.nn.ModuleDict({"fc": fc, "gate": gate})) == ["fc"]
    assert head_names(torch.nn.ModuleDict({"gate": gate, "out": fc})) == ["out"]
    network = torch.nn.ModuleDict({"gate": gate, "out": fc})
    network.pretrained_cfg = None
    assert head_names(network) == ["out"]
    assert head_names(torch.nn.Sequential()) == []


def test_a_bagnet_of_other_patches_is_this_packages_too(tmp_path):
    network = BagNet((1, 0, 1, 0), 3, width=0.25)
    content = checkpoint(network)
    content["bagnet_lightning"]["config"]["model"] |= {
        "_target_": "bagnet_lightning.models.bagnet.BagNet",
        "wide_stages": [1, 0, 1, 0],
    }
    torch.save(content, tmp_path / "best.ckpt")
    assert load_trained(tmp_path / "best.ckpt").network.receptive_field == 13


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"model_name": "hf-hub:a/b"}, "is of hf-hub:a/b, which is no network of this timm"),
        ({"model_name": 5}, "does not fit the network it names"),
        ({"model_name": "test_resnet", "global_pool": "nosuch"}, "does not fit the network it names: Invalid pool"),
        ({"model_name": "test_resnet", "features_only": True}, "does not fit the network it names"),
    ],
)
def test_a_checkpoint_has_timm_build_classifiers_alone_and_load_nothing(tmp_path, options, refusal):
    timm = pytest.importorskip("timm", reason="timm is an optional dependency: pip install 'bagnet-lightning[timm]'")
    content = checkpoint(timm.create_model("test_resnet", num_classes=3))
    content["bagnet_lightning"]["config"]["model"] = {"_target_": "timm.create_model", **options}
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=refusal):
        load_trained(tmp_path / "best.ckpt")


def test_what_is_for_other_programs_is_told_so(tmp_path):
    for name in ("best.onnx", "best.pt2"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match=r"is for other programs; give best\.ckpt"):
            load_trained(tmp_path / name)


def test_a_run_is_a_backbone_too(tmp_path):
    network = bagnet9(3, width=0.25)
    CheckpointWriter().save_checkpoint(checkpoint(network), tmp_path / "best.ckpt")
    backbone = load_backbone(tmp_path / "best.ckpt")
    assert len(backbone.classes) == 3
    torch.testing.assert_close(backbone.network.fc.weight, network.fc.weight)


class Payload:
    def __reduce__(self):
        return open, ("payload-ran", "w")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**checkpoint(bagnet9(3, width=0.25)), "callbacks": Payload()}, "evil.ckpt")
    with pytest.raises(UserError, match=r"evil\.ckpt is refused: .* plain types \((_io|io)\.open\)$"):
        load_trained("evil.ckpt")
    with pytest.raises(UserError, match="refused"):
        CheckpointWriter().load_checkpoint("evil.ckpt", weights_only=False)
    assert not (tmp_path / "payload-ran").exists()


def test_kinds_of_files_that_got_past_weights_only_in_old_torch_are_refused(tmp_path):
    with tarfile.open(tmp_path / "legacy.ckpt", "w") as archive:
        archive.add(__file__, "pickle")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "scripted.ckpt")
    for name in ("legacy.ckpt", "scripted.ckpt"):
        with pytest.raises(UserError, match=f"{name} is refused"):
            load_trained(tmp_path / name)


def test_a_checkpoint_whose_numbers_have_changed_is_refused(tmp_path):
    path = tmp_path / "best.ckpt"
    torch.save(checkpoint(bagnet9(3, width=0.25)), path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"changed")
    with pytest.raises(UserError, match=r"best\.ckpt cannot be read: .* is not what was written"):
        load_trained(path)


def test_other_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "text").write_text("not a checkpoint")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign")
    torch.save([1, 2], tmp_path / "list")
    torch.save({"bagnet_lightning": {"config": IMAGES}, "state_dict": {}}, tmp_path / "no_model")
    strange = about()["config"] | {"seen": [{"data": {}}]}
    torch.save({"bagnet_lightning": about() | {"config": strange}, "state_dict": {}}, tmp_path / "strange")
    torch.save({"bagnet_lightning": {}}, tmp_path / "no_weights")
    torch.save({"bagnet_lightning": {"config": {"image_size": 64}}, "state_dict": {}}, tmp_path / "old")
    torch.save({"bagnet_lightning": {"config": None}, "state_dict": {}}, tmp_path / "no_config")
    torch.save(checkpoint(bagnet9(3, width=0.25)), tmp_path / "whole")
    (tmp_path / "config.yaml").write_text("seed: 0\nsweep: s\n")  # which torch tries to unpickle
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/best.ckpt").touch()
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:100_000])
    for name, reason in {
        "none": "does not exist",
        "text": "",
        "foreign": "not of a",
        "list": "not of a",
        "no_model": "is not whole: KeyError: 'model'",
        "no_weights": "is not whole: KeyError: 'state_dict'",
        "no_config": "is not whole",
        "strange": "is not whole: KeyError: 'seen'",
        "old": "written by an earlier version .* without train_digest",
        "config.yaml": "cannot be read",
        "folder": "is a folder: give .*folder/best.ckpt",
        "cut": "",
    }.items():
        with pytest.raises(UserError, match=f"{name} .*{reason}") as caught:
            load_trained(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert read_if_ours(tmp_path / "foreign") is None
    with pytest.raises(UserError, match="earlier version"):  # and not taken for another program's
        read_if_ours(tmp_path / "old")


def test_weights_of_another_size_are_refused(tmp_path):
    torch.save(checkpoint(bagnet9(5, width=0.25)), tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt"):
        load_trained(tmp_path / "x.ckpt")
