"""The demo as a program asks it, over HTTP on this machine."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image
from trained_checkpoints import write_checkpoint

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.data.images import load_image
from bagnet_lightning.demo import main
from bagnet_lightning.errors import UserError


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, checkpoint) of a demo that refuses files above 1 MiB and images above 1 megapixel."""
    pytest.importorskip("gradio", reason="gradio is an optional dependency")
    folder = tmp_path_factory.mktemp("demo")
    checkpoint = write_checkpoint(folder / "best.ckpt", "bagnet9")
    arguments = [f"checkpoint={checkpoint}", "port=null", "max_mib=1", "max_megapixels=1"]
    with open(folder / "said", "w+") as said:
        environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "uploads"), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "bagnet_lightning.demo", *arguments]
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            while "http://127.0.0.1:" not in (text := (folder / "said").read_text()):
                assert process.poll() is None, text
                time.sleep(0.1)
            port = text.partition("http://127.0.0.1:")[2].split()[0]
            yield f"http://127.0.0.1:{port}/gradio_api", checkpoint
        finally:
            process.terminate()
            process.wait()


def post(address, content, kind):
    request = urllib.request.Request(address, content, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def upload(api, path):
    body = b"--x\r\nContent-Disposition: form-data; name=files; filename=%s\r\n\r\n%s\r\n--x--\r\n"
    return post(f"{api}/upload", body % (path.name.encode(), path.read_bytes()), "multipart/form-data; boundary=x")[0]


def ask(api, path, index=-1, **also):
    """(event, data) of the last event that the demo answers with."""
    image = {"path": path, **(also or {"meta": {"_type": "gradio.FileData"}})}
    event = post(f"{api}/call/explain", json.dumps({"data": [image, index]}).encode(), "application/json")["event_id"]
    with urllib.request.urlopen(f"{api}/call/explain/{event}", timeout=60) as response:
        *_, last = response.read().decode().strip().split("\n\n")
    event, data = last.split("\n")
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_an_image_gets_its_prediction_and_its_evidence(served, tmp_path):
    api, checkpoint = served
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    event, (said, shown, caption) = ask(api, upload(api, tmp_path / "photo.png"))
    assert event == "complete"
    trained = load_trained(checkpoint)
    image = torch.tensor(load_image(tmp_path / "photo.png", 40))[None]
    with torch.no_grad():
        logits = trained.network(normalize(image, trained.mean, trained.std))[0]
    assert said["confidences"][0]["confidence"] == pytest.approx(logits.softmax(0).max().item(), rel=1e-3)
    assert f"is {logits.max().item():.2f}." in caption
    with urllib.request.urlopen(f"{api}/file={shown['path']}") as response:
        assert Image.open(response).size == (448, 448)
    _, (_, _, caption) = ask(api, upload(api, tmp_path / "photo.png"), index=3)
    assert "speak for **crane (n04)**" in caption  # two classes are called crane
    assert f"is {logits[3].item():.2f}." in caption


def test_what_is_too_large_or_no_image_is_refused_with_a_message(served, tmp_path):
    api, _ = served
    (tmp_path / "broken.png").write_text("no image")
    assert ask(api, upload(api, tmp_path / "broken.png"))[1]["error"].startswith("broken.png is no image")
    Image.new("L", (1001, 1000)).save(tmp_path / "wide.png")
    assert "1001 x 1000 px; 1 megapixels are allowed" in ask(api, upload(api, tmp_path / "wide.png"))[1]["error"]
    (tmp_path / "heavy.png").write_bytes(bytes(2**20 + 1))
    with pytest.raises(HTTPError, match="413"):
        upload(api, tmp_path / "heavy.png")
    for path in (tmp_path / "wide.png", tmp_path / "none.png"):  # of this machine, and nobody uploaded it
        assert ask(api, str(path))[0] == "error"
        event, data = ask(api, str(path), url=None)  # without what makes Gradio check where it lies
        assert (event, data["error"]) == ("error", "this file was not uploaded")


def test_the_demo_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr("bagnet_lightning.demo.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'bagnet-lightning\[demo\]'"):
        main.__wrapped__(composed("checkpoint=best.ckpt", name="demo"))
    with pytest.raises(UserError, match="max_mib must be a whole number"):
        main.__wrapped__(composed("checkpoint=best.ckpt", "max_mib=0", name="demo"))
