"""The command as a user runs it: what a system leaves behind, what is skipped, what is refused."""

import json
import os

import pytest
from conftest import composed
from test_commands import one_line

from bagnet_lightning.local_features.model import load_local_model
from bagnet_lightning.predictions import read_predictions

SMALL = ["data=textures", "data.train_images=36", "data.val_images=12", "encoding.codebook.size=20", "workers=1"]


def test_a_sweep_is_run_once_and_reported(command, tmp_path):
    asked = ["-m", *SMALL, "sweep=s", "features=orb", "classifier=linear,additive"]
    first = command("classical", *asked)
    assert first.returncode == 0, first.stderr
    assert "[2/2] ORB, 20 words, SVM on a chi2 map: 0." in first.stdout
    runs = sorted(path for path in (tmp_path / "multirun_outputs/s").iterdir() if path.is_dir())
    assert len(runs) == 2
    for run in runs:
        assert {path.name for path in run.iterdir()} >= {"config.yaml", "model.safetensors", "predictions.npz"}
        done = json.loads((run / "result.json").read_text())
        assert (done["status"], done["kind"], done["encoding"]) == ("finished", "related", "bow")
        assert done["model_bytes"] == (run / "model.safetensors").stat().st_size
        assert set(done["without_keypoints"]) == {"train", "val"}
        predicted = read_predictions(run)
        assert done["best_val_accuracy"] == pytest.approx((predicted.labels == predicted.predicted).mean())
        assert load_local_model(run / "model.safetensors").classes == [
            f"{field}px_{direction}" for field in (9, 17, 33) for direction in ("rows", "columns")
        ]
    features = list((tmp_path / "data/features").iterdir())
    assert len(features) == 2  # of two splits

    again = command("classical", *asked)
    assert again.returncode == 0
    assert again.stdout.count("skipped: finished before") == 2
    assert json.loads((runs[-1] / "result.json").read_text()) == done


def test_a_second_run_gives_the_same_file(command, tmp_path):
    for sweep in ("one", "two"):
        assert command("classical", *SMALL, f"sweep={sweep}", f"cache={sweep}").returncode == 0
    one, two = sorted(tmp_path.glob("multirun_outputs/*/*/model.safetensors"))
    assert load_local_model(one).classifier.arrays["weight"].tobytes() == (
        load_local_model(two).classifier.arrays["weight"].tobytes()
    )


def test_what_cannot_be_done_is_one_line(command, tmp_path):
    assert "choices: " in one_line(command("classical", "features=surf"))
    (tmp_path / "without").mkdir()
    (tmp_path / "without/sitecustomize.py").write_text(
        "import sys; sys.modules['sklearn'] = None"  # as if it were not installed
    )
    path = os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")])
    refused = command("classical", *SMALL, PYTHONPATH=path)
    assert "pip install 'bagnet-lightning[classical]'" in one_line(refused)


def test_an_additive_kernel_is_of_plain_histograms():
    assert (composed("classifier=additive", name="classical").encoding.norm) == "l1"
    assert (composed("classifier=additive", "encoding.norm=l2", name="classical").encoding.norm) == "l2"
