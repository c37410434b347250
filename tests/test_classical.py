"""The command as a user runs it: what a system leaves behind, what is skipped, what is refused."""

import json
import sys

import numpy as np
import pytest
from conftest import composed
from PIL import Image
from test_commands import one_line

from bagnet_lightning.data.of_config import data_of
from bagnet_lightning.errors import UserError
from bagnet_lightning.local_features.model import check_installed, load_local_model
from bagnet_lightning.local_features.pipeline import run
from bagnet_lightning.predictions import read_predictions
from bagnet_lightning.sweeps.runs import RUN_FILES

SMALL = ["data=textures", "data.train_images=36", "data.val_images=12", "encoding.codebook.size=20", "workers=1"]


def test_a_sweep_is_run_once_and_reported(command, tmp_path):
    asked = ["-m", *SMALL, "sweep=s", "features=orb", "classifier=linear,additive", "cache=features"]
    dry = command("classical", *asked, "dry_run=true")
    assert [line.split(": ")[1] for line in dry.stdout.splitlines()] == [
        "to do, with the whole device, one after the other"
    ] * 2
    assert not any(tmp_path.iterdir())

    first = command("classical", *asked, "encoding.codebook.size=20,1000000")
    assert first.returncode == 1  # there are not so many local features
    assert "encoding.codebook.size=1000000: a word needs a local feature" in first.stdout
    assert "] ORB, 20 words, SVM on a chi2 map encoding.codebook.size=20: 0." in first.stdout
    assert "Traceback" not in first.stdout + first.stderr
    runs = sorted((tmp_path / "multirun_outputs/s").glob("*size-20"))
    assert len(runs) == 2
    for folder in runs:
        names = {path.name for path in folder.iterdir()}
        assert {"config.yaml", "model.safetensors", "predictions.npz"} < names < {*RUN_FILES}
        done = json.loads((folder / "result.json").read_text())
        assert (done["status"], done["kind"], done["encoding"]) == ("finished", "related", "bow")
        assert done["model_bytes"] == (folder / "model.safetensors").stat().st_size
        assert set(done["versions"]) >= {"opencv", "scikit_learn", "torch"}
        predicted = read_predictions(folder)
        assert done["best_val_accuracy"] == pytest.approx((predicted.labels == predicted.predicted).mean())
    assert len(list((tmp_path / "features").iterdir())) == 2  # one for each split, whatever becomes of them

    again = command("classical", *asked)
    assert again.returncode == 0
    assert again.stdout.count("skipped: finished before") == 2
    assert json.loads((runs[-1] / "result.json").read_text()) == done


@pytest.mark.parametrize("features", ["sift", "orb"])
def test_a_second_run_gives_the_same_file(tmp_path, features):
    files = []
    for name in ("one", "two"):
        config = composed(*SMALL, f"features={features}", f"cache={tmp_path / name}", name="classical")
        (tmp_path / name).mkdir()
        result = run(config, tmp_path / name)
        files.append((tmp_path / name / "model.safetensors").read_bytes().replace(f"/{name}".encode(), b""))
    assert files[0] == files[1]
    model, data = load_local_model(tmp_path / "two/model.safetensors"), data_of(config.data)
    data.setup()
    images = data.val_images
    scores = model.scores(model.features.describe(images.split.images[images.chosen].numpy())[0])
    ranks = (scores > scores[np.arange(12), images.labels.numpy()][:, None]).sum(1)
    assert result["best_val_accuracy"] == pytest.approx((ranks == 0).mean())
    assert result["val_top5_accuracy"] == pytest.approx((ranks < 5).mean())


def test_features_that_are_used_again_cost_what_they_did(tmp_path):
    results = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        results.append(run(composed(*SMALL, f"cache={tmp_path / 'features'}", name="classical"), tmp_path / name))
        for manifest in (tmp_path / "features").glob("*/manifest.json"):  # as if they had taken two hours
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seconds": 3600.0}))
    assert 0 < results[0]["feature_seconds"] < 3600
    assert results[1]["feature_seconds"] == 7200
    assert 0 < results[1]["train_seconds"] < 3600  # nothing that this run did not do is taken from it


def test_images_without_a_keypoint_are_counted_told_and_classified(tmp_path, capsys):
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for label in ("blank", "noise"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((32, 32, 3), 10 * number, np.uint8)
                if label == "noise":
                    pixels = draw.integers(0, 256, pixels.shape, np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{number}.png")
    data = ["data=image_folder", f"data.root={tmp_path}", "data.image_size=32", "data.name=mine"]
    config = composed(*SMALL[3:], *data, f"cache={tmp_path / 'features'}", name="classical")
    (tmp_path / "run").mkdir()
    result = run(config, tmp_path / "run")
    assert result["without_keypoints"] == {"train": 6, "val": 3}
    assert "6 of the train images without a keypoint; 3 of the val images without a keypoint" in capsys.readouterr().out
    assert result["best_val_accuracy"] == 1  # what has no keypoint is blank: the bias says so
    model = load_local_model(tmp_path / "run/model.safetensors")
    assert model.class_names == ["blank", "noise"]
    assert result["parameters"] == 20 * 128 + 2 * 20 + 2


@pytest.mark.parametrize("features", ["sift", "fast_brief", "orb", "dense_sift"])
def test_ten_real_classes_are_told_apart_better_than_by_chance(ten_real_classes, tmp_path, features):
    data = [f"data.root={ten_real_classes}", "data.images_per_class=30", "data.holdout=0.06", "workers=1"]
    data += ["encoding.codebook.size=100", "encoding.codebook.sample=20000"]
    config = composed(f"features={features}", *data, f"cache={tmp_path}", name="classical")
    assert run(config, tmp_path)["best_val_accuracy"] > 0.1 + 4 * 0.0173  # standard errors of 300 guesses


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (["features=orb", "encoding=fisher"], "use encoding=bow"),
        (["features=fast_brief", "encoding=mean"], "use encoding=bow"),
        (["features=sift", "encoding=fisher", "classifier=additive"], "use classifier=linear"),
        (["features=sift", "encoding=decisions"], "add features=bagnet features.output=logits"),
        (["features=sift", "encoding=mean", "classifier=argmax"], "use head=mean"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_the_work(tmp_path, choices, words):
    config = composed(*SMALL[:3], *choices, f"cache={tmp_path / 'features'}", name="classical")
    with pytest.raises(UserError, match=words):
        run(config, tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_done_is_one_line(command, tmp_path):
    assert "choices: " in one_line(command("classical", "features=surf"))
    (tmp_path / "sklearn.py").write_text("raise ModuleNotFoundError('sklearn')")  # as if it were not installed
    assert "pip install 'bagnet-lightning[classical]'" in one_line(command("classical", *SMALL))


def test_an_additive_kernel_is_of_plain_histograms():
    assert (composed("classifier=additive", name="classical").encoding.norm) == "l1"
    assert (composed("classifier=additive", "encoding.norm=l2", name="classical").encoding.norm) == "l2"


def test_an_opencv_that_does_not_load_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "cv2")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"pip install 'bagnet-lightning\[classical\]' \(libGL\.so\.1"):
        check_installed()
