"""Every exported file is the network that it was made of, says what it is, and comes back."""

import json

import numpy as np
import pytest
import torch
from conftest import composed
from trained_checkpoints import CLASS_NAMES, CLASSES, write_checkpoint

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.data.of_config import data_of_run
from bagnet_lightning.errors import UserError
from bagnet_lightning.export import main
from bagnet_lightning.exporting.formats import difference
from bagnet_lightning.exporting.model_card import _to_be_published, write_card
from bagnet_lightning.exporting.portable import Portable
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.results import write_result


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: write_checkpoint(folder / name / "best.ckpt", name) for name in ("bagnet9", "resnet18")}


def export(checkpoint, *overrides):
    main.__wrapped__(composed(f"checkpoint={checkpoint}", *overrides, name="export"))


def test_onnx_without_torch_gives_logits_and_the_evidence_they_are_the_mean_of(checkpoints, tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export(checkpoints["bagnet9"], "format=onnx", f"out={tmp_path}/net.onnx")
    assert "of the largest logit" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    network = Portable(load_trained(checkpoints["bagnet9"]))
    for shape in ((1, 3, 9, 9), (4, 3, 33, 50)):  # one patch, and many
        images = np.random.default_rng(0).random(shape, dtype=np.float32)
        logits, evidence = session.run(["logits", "evidence"], {"images": images})
        np.testing.assert_allclose(evidence.mean((1, 2)), logits, atol=1e-6 * np.abs(evidence).max())
        with torch.no_grad():
            expected = network(torch.from_numpy(images))
        np.testing.assert_allclose(evidence, expected["evidence"], atol=1e-5 * np.abs(evidence).max())
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == CLASS_NAMES
    assert (about["receptive_field"], about["stride"], about["model"]) == ("9", "8", "bagnet9")


def test_the_evidence_is_that_of_normalised_images(checkpoints):
    trained = load_trained(checkpoints["bagnet9"])
    pixels = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8)
    outputs = Portable(trained)(pixels.permute(0, 3, 1, 2) / 255)
    expected = trained.network.patch_logits(normalize(pixels, trained.mean, trained.std))
    tolerance = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(outputs["evidence"], expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(outputs["logits"], expected.mean((1, 2)), rtol=0, atol=tolerance)


def test_onnx_of_a_resnet_has_logits_alone(checkpoints, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export(checkpoints["resnet18"], "format=onnx", f"out={tmp_path}/net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["logits"]
    images = torch.rand(2, 3, 70, 45)
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = Portable(load_trained(checkpoints["resnet18"]))(images)["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-5 * expected.abs().max())


@pytest.mark.xfail(torch.__version__ < "2.12", raises=UserError, reason="torch 2.11 exports it for some sizes only")
def test_torch_export_of_a_resnet_has_logits_alone(checkpoints, tmp_path):
    export(checkpoints["resnet18"], "format=torch_export", f"out={tmp_path}/net.pt2")
    extra = {"metadata.json": ""}
    network = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    assert network(torch.rand(1, 3, 70, 45))["logits"].shape == (1, len(CLASSES))
    assert json.loads(extra["metadata.json"])["classes"] == CLASSES


def test_a_hubs_folder_has_a_card_with_what_was_measured_and_comes_back(checkpoints, tmp_path):
    checkpoint = checkpoints["bagnet9"]
    measured = {"model": "bagnet9", "optimizer": "adam", "status": "finished", "best_val_accuracy": 0.4321}
    asked = ["optim=adam", "data.root=/private"]
    write_result(checkpoint.parent, {**measured, "val_images": 12, "overrides": asked})
    export(checkpoint, "format=hub", f"out={tmp_path}/hub")
    card = (tmp_path / "hub/README.md").read_text()
    assert "| top-1, best epoch | 0.4321 |" in card
    assert '"value": 0.4321' in card.split("---")[1]
    last = checkpoint.with_name("last.ckpt")
    last.write_bytes(checkpoint.read_bytes())
    export(last, "format=hub", f"out={tmp_path}/last")
    assert "0.4321" not in (tmp_path / "last/README.md").read_text()
    assert "private" not in card
    assert "None" not in card
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert config["architecture"] == "bagnet9"
    assert config["label_descriptions"]["n01"] == CLASS_NAMES[0]
    trained, before = load_trained(tmp_path / "hub"), load_trained(checkpoint)
    images = torch.rand(2, 3, 40, 40)
    torch.testing.assert_close(trained.network(images), before.network(images), rtol=0, atol=0)
    assert (trained.classes, trained.class_names, trained.mean) == (CLASSES, CLASS_NAMES, before.mean)
    assert trained.image_size == 40
    with pytest.raises(UserError, match="does not say where its data are"):
        data_of_run(trained.config, None)
    assert data_of_run(trained.config, composed("data=textures").data).name == "textures"


def test_a_card_has_what_was_asked_for_and_no_path_of_the_users():
    asked = ["optim=adam", "model.pretrained=true", "data.root=/private", "model.pretrained=/private/a.ckpt", "sweep=x"]
    asked += ["+model.checkpoint_path=/private/b.ckpt"]
    assert [override for override in asked if _to_be_published(override)] == asked[:2]


def test_what_timm_cannot_make_has_no_config_for_it(checkpoints, tmp_path):
    trained = load_trained(checkpoints["resnet18"])
    trained.config["model"]["stem"] = "small"
    write_card(tmp_path, trained, checkpoints["resnet18"])
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert "timm" not in (tmp_path / "README.md").read_text()


def test_a_file_that_is_not_the_network_is_refused(checkpoints):
    trained = load_trained(checkpoints["bagnet9"])
    other = Portable(load_trained(checkpoints["bagnet9"]))
    assert difference(trained, other) < 1e-6
    other.mean += 0.001
    with pytest.raises(UserError, match="differs from the network"):
        difference(trained, other)
    other.mean[:] = torch.nan
    with pytest.raises(UserError, match="differs from the network by nan"):
        difference(trained, other)


def test_a_file_that_is_the_network_at_one_size_alone_is_refused(checkpoints):
    trained = load_trained(checkpoints["bagnet9"])
    same = Portable(load_trained(checkpoints["bagnet9"]))

    def run(images):
        outputs = same(images)
        return outputs if images.shape[2] == images.shape[3] else {name: 2 * value for name, value in outputs.items()}

    with pytest.raises(UserError, match="differs from the network"):
        difference(trained, run)


def test_what_is_written_stays_as_it_was_if_it_cannot_be_checked(checkpoints, tmp_path, monkeypatch):
    (tmp_path / "net.safetensors").write_text("before")

    def refuse(*_):
        raise UserError("differs")

    monkeypatch.setattr("bagnet_lightning.exporting.formats.difference", refuse)
    with pytest.raises(UserError, match="differs"):
        export(checkpoints["bagnet9"], "format=safetensors", f"out={tmp_path}/net.safetensors")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_networks_that_are_not_ours_are_not_built(tmp_path):
    path = write_checkpoint(tmp_path / "best.ckpt", "bagnet9")
    content = torch.load(path, weights_only=True)
    content["bagnet_lightning"]["config"]["model"] = {"_target_": "os.system", "command": "touch ran"}
    torch.save(content, path)
    with pytest.raises(UserError, match=r"names the network os\.system, which is not part of"):
        load_trained(path)


class OneSize(torch.nn.Sequential):
    """A network of the user's own that takes images of 9 px alone."""

    def __init__(self, num_classes):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 9 * 9, num_classes))


def test_a_network_that_takes_one_size_goes_where_no_other_is_asked_of_it(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("BAGNET_NETWORKS", "test_export.OneSize")
    content = torch.load(checkpoints["bagnet9"], weights_only=True)
    content["bagnet_lightning"]["config"] |= {"model": {"_target_": "test_export.OneSize"}, "image_size": 9}
    network = OneSize(len(content["bagnet_lightning"]["classes"]))
    content["state_dict"] = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save(content, tmp_path / "best.ckpt")
    export(tmp_path / "best.ckpt", "format=safetensors")
    back = load_trained(tmp_path / "best.safetensors").network.state_dict()
    assert all(torch.equal(value, back[key]) for key, value in network.state_dict().items())
    for form in ("onnx", "torch_export"):
        with pytest.raises(UserError, match="takes images of 9 px alone: ask for format=safetensors or hub"):
            export(tmp_path / "best.ckpt", f"format={form}")


class Loudest(BagNet):
    def forward(self, images):
        return self.patch_logits(images).amax((1, 2))


def test_a_bagnet_that_is_none_is_told_so(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("BAGNET_NETWORKS", "test_export.Loudest")
    content = torch.load(checkpoints["bagnet9"], weights_only=True)
    model = {"_target_": "test_export.Loudest", "wide_stages": [True, True, False, False], "width": 0.25}
    content["bagnet_lightning"]["config"] |= {"model": model}
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="Loudest is a BagNet, but its logits are not the mean of its patches' logits"):
        export(tmp_path / "best.ckpt", "format=safetensors")


def test_a_hubs_folder_is_made_again_but_no_other_is_written_over(checkpoints, tmp_path):
    hub = tmp_path / "hub"
    export(checkpoints["bagnet9"], "format=hub", f"out={hub}")
    card = (hub / "README.md").read_text()
    (hub / "README.md").write_text("my own words on bagnet_lightning")
    with pytest.raises(UserError, match=r"hub/README\.md was not written by an earlier export"):
        export(checkpoints["bagnet9"], "format=hub", f"out={hub}")
    assert (hub / "README.md").read_text() == "my own words on bagnet_lightning"
    (hub / "README.md").write_text(card)
    settings = {"_target_": "bagnet_lightning.models.resnet.resnet18", "pretrained": False, "stem": "small"}
    small = write_checkpoint(tmp_path / "small.ckpt", "resnet18", settings=settings)
    export(small, "format=hub", f"out={hub}")
    assert not (hub / "config.json").exists()  # of the network before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["format=tflite"], "format must be onnx, safetensors, torch_export or hub"),
        (["format=onnx", "out=net.pt"], r"must end in \.onnx"),
        (["format=safetensors", "checkpoint=none.ckpt"], "does not exist"),
        (["format=safetensors", "out=/proc/no/net.safetensors"], "cannot write to /proc/no"),
    ],
)
def test_what_cannot_be_exported_is_said(checkpoints, overrides, words):
    with pytest.raises(UserError, match=words):
        export(checkpoints["bagnet9"], *overrides)
