import hashlib
import http.server
import pickle
import threading
from functools import partial

import pytest
import torch
import torchvision
from conftest import composed
from safetensors.torch import save_file

from bagnet_lightning.errors import UserError
from bagnet_lightning.models import pretrained
from bagnet_lightning.models.bagnet import bagnet9, bagnet17
from bagnet_lightning.models.resnet import resnet18
from bagnet_lightning.rules import check

small = partial(bagnet9, width=0.25)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path/www on 127.0.0.1; downloads are cached in tmp_path/hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    (tmp_path / "www").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www")))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def publish(folder, network) -> str:
    """Saves weights as the public ones are: named by the first digits of their sha256."""
    torch.save(network.state_dict(), folder / "weights")
    digest = hashlib.sha256((folder / "weights").read_bytes()).hexdigest()[:8]
    (folder / "weights").rename(folder / f"bagnet8-{digest}.pth.tar")
    return f"bagnet8-{digest}.pth.tar"


def test_public_weights_are_downloaded_checked_and_cached(server, tmp_path, monkeypatch):
    source = small(7)
    name = publish(tmp_path / "www", source)
    monkeypatch.setitem(pretrained.PUBLIC_WEIGHTS, "bagnet9", f"{server}/{name}")
    torch.testing.assert_close(small(7, pretrained=True).state_dict(), source.state_dict())
    (tmp_path / "www" / name).unlink()
    network = small(3, pretrained=True)  # from the cache, with a head of its own
    assert network.fc.weight.shape == (3, 512)
    torch.testing.assert_close(network.conv2.weight, source.conv2.weight)


def test_a_download_with_another_sha_is_refused(server, tmp_path, monkeypatch):
    (
        publish(tmp_path / "www", small(7)),
        next((tmp_path / "www").iterdir()).rename(tmp_path / "www/bagnet8-00000000.pth"),
    )
    monkeypatch.setitem(pretrained.PUBLIC_WEIGHTS, "bagnet9", f"{server}/bagnet8-00000000.pth")
    with pytest.raises(UserError, match=r"invalid hash value.*model\.pretrained=PATH"):
        small(7, pretrained=True)
    assert not list((tmp_path / "hub").rglob("*.pth"))


def test_no_network_says_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(pretrained.PUBLIC_WEIGHTS, "resnet18", "http://127.0.0.1:9/resnet18-00000000.pth")
    with pytest.raises(UserError, match=r"cannot download .* model\.pretrained=PATH"):
        resnet18(5, pretrained=True)


@pytest.mark.parametrize("form", ["state dict", "checkpoint", "model", "wrapped", "safetensors", "hub"])
def test_a_local_file_in_any_of_its_forms(form, tmp_path):
    source = small(5)
    weights = source.state_dict()
    path = tmp_path / {"safetensors": "w.safetensors", "hub": "model.safetensors"}.get(form, "w.pt")
    if path.suffix == ".safetensors":
        save_file(weights, path)
    elif form == "checkpoint":
        torch.save({"state_dict": {f"network.{k}": v for k, v in weights.items()}, "epoch": 3}, path)
    elif form == "model":
        torch.save({"model": weights, "epoch": 3}, path)
    else:
        torch.save({f"module.{k}": v for k, v in weights.items()} if form == "wrapped" else weights, path)
    given = tmp_path if form == "hub" else path
    check(composed("model=bagnet9", f"model.pretrained={given}"))
    torch.testing.assert_close(small(5, pretrained=str(given)).state_dict(), source.state_dict())


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(small(5).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"does not hold the weights of this bagnet17: .* layer3.0.conv2.weight"):
        bagnet17(5, width=0.25, pretrained=str(tmp_path / "w.pt"))
    with pytest.raises(UserError, match="does not hold the weights of this resnet18"):
        resnet18(5, pretrained=str(tmp_path / "w.pt"))
    torch.save(torchvision.models.resnet34(num_classes=5).state_dict(), tmp_path / "w.pt")  # has all of it, and more
    with pytest.raises(UserError, match="does not hold the weights of this resnet18"):
        resnet18(5, pretrained=str(tmp_path / "w.pt"))


def test_a_network_without_public_weights_needs_a_file():
    with pytest.raises(UserError, match="there are no public weights of mine; give the path of a file"):
        pretrained.load_pretrained(torch.nn.Linear(2, 2), "mine", True)


def test_half_a_head_is_no_backbone(tmp_path):
    weights = small(5).state_dict()
    del weights["fc.bias"]
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"1 tensors differ, the first is fc\.bias"):
        small(5, pretrained=str(tmp_path / "w.pt"))


class Payload:
    def __reduce__(self):
        return open, ("payload-ran", "w")


@pytest.mark.parametrize("content", [b"", b"no weights", b"junk", pickle.dumps({"a": 1})])
def test_damaged_files_are_refused(content, tmp_path):
    (tmp_path / "w.pt").write_bytes(content)
    (tmp_path / "w.safetensors").write_bytes(content)
    for name in ("w.pt", "w.safetensors"):
        with pytest.raises(UserError, match=name):
            small(5, pretrained=str(tmp_path / name))


def test_a_malicious_pickle_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Payload()}, "w.pt")
    with pytest.raises(UserError, match=r"w\.pt"):
        small(5, pretrained="w.pt")
    assert not (tmp_path / "payload-ran").exists()


def test_resnet_stems():
    images = torch.zeros(1, 3, 64, 64)
    assert resnet18(5).eval()(images).shape == (1, 5)
    network = resnet18(5, stem="small").eval()
    assert network.layer1(network.maxpool(network.conv1(images))).shape == (1, 64, 64, 64)
    with pytest.raises(UserError, match=r"model.stem"):
        resnet18(5, stem="big")
