"""What the page is told, from files: states, neighbours, confusions, what is missing."""

import json
import os
import socket
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from sweep_folders import write_related, write_run
from trained_checkpoints import CLASS_NAMES, write_checkpoint

from bagnet_lightning.errors import UserError
from bagnet_lightning.predictions import write_predictions
from bagnet_lightning.reporting.page.data import page_data
from bagnet_lightning.reporting.page.page import results_page
from bagnet_lightning.reporting.page.server import Server
from bagnet_lightning.reporting.table import read_table
from bagnet_lightning.results import note_jobs


def data_of(*folders, gallery=False) -> dict:
    return page_data([read_table(folder) for folder in folders], {}, gallery, live=False)


def keep_predictions(folder, side=40, wrong=(4, 8)):
    """Twelve images, ten of them right, one of class 1 and one of class 2 taken for class 0. wrong: other ones."""
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    predicted = np.where(np.isin(np.arange(12), wrong), 0, labels)
    pixels = np.random.default_rng(0).integers(0, 256, (12, side, side, 3), dtype=np.uint8)
    write_predictions(folder, CLASS_NAMES, labels, predicted, lambda places: pixels[places])


def test_a_title_leaves_out_what_a_run_has_not(tmp_path):
    write_run(tmp_path / "a", config={"weight_average": None})
    write_run(tmp_path / "b", config={"weight_average": 0.9})
    titles = [run["title"] for run in data_of(tmp_path)["runs"].values()]
    assert titles == ["BagNet-17, Adam, 15 epochs, seed 0", "BagNet-17, Adam, 15 epochs, weight_average 0.9, seed 0"]


def test_every_state_is_told(tmp_path):
    write_run(tmp_path / "done")
    write_run(tmp_path / "failed", "bagnet9", status="failed", error="ValueError: no", done=3)
    (tmp_path / "failed/train.log").write_text("first\n" * 100 + "ValueError: no\n")
    going = write_run(tmp_path / "going", "bagnet33", status=None, done=2)
    progress = {"epoch": 3, "epochs": 15, "step": 250, "steps": 1500, "seconds_left": 90.0, "pid": os.getpid()}
    (going / "progress.json").write_text(json.dumps(progress | {"host": socket.gethostname()}))
    write_run(tmp_path / "stopped", "resnet18", "sgd", status=None, done=1)
    (write_run(tmp_path / "cut", "bagnet33", "sgd") / "result.json").write_text('{"model": "bag')
    note_jobs(tmp_path, {"done": ["model=bagnet17"], "stopped": ["model=resnet18", "optim=sgd"], "next": ["seed=1"]})
    data = data_of(tmp_path)
    states = {name: run["state"] for name, run in data["runs"].items()}
    assert states == {
        "done": "finished",
        "failed": "failed",
        "going": "running",
        "stopped": "stopped",
        "cut": "unreadable",
        "next": "waiting",
    }
    assert data["runs"]["going"]["progress"]["seconds_left"] == 90
    assert data["runs"]["failed"]["log"].endswith("first\nValueError: no")
    assert data["runs"]["failed"]["log"].count("\n") < 50
    assert data["runs"]["stopped"]["command"] == "python -m bagnet_lightning.train model=resnet18 optim=sgd"
    assert data["runs"]["done"]["log"] is None
    assert "cut or damaged" in data["runs"]["cut"]["error"]


def test_confusions_and_what_is_missing(tmp_path):
    keep_predictions(write_run(tmp_path / "a"))
    (write_run(tmp_path / "b", "bagnet9") / "predictions.npz").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "b/metrics.csv").unlink()
    data = data_of(tmp_path)
    confusion = data["runs"]["a"]["confusion"]
    assert confusion["pairs"] == [[1, 0, 1], [2, 0, 1]]
    assert confusion["right"][:3] == [4, 3, 3]
    assert confusion["among"] == [1, 0, 2]
    assert confusion["matrix"] == [[3, 1, 0], [0, 4, 0], [0, 1, 3]]
    assert data["classes"] == [CLASS_NAMES]
    missing = " ".join(data["runs"]["b"]["missing"])
    for words in ("metrics.csv is missing", "best.ckpt is missing", "predictions.npz is cut or damaged"):
        assert words in missing


def test_folds_are_told_apart(tmp_path):
    for fold in (0, 1):
        write_run(tmp_path / str(fold), config={"data.holdout": 0.2, "data.fold": fold}, validated_on="holdout")
    runs = data_of(tmp_path)["runs"]
    assert [run["title"] for run in runs.values()] == [f"BagNet-17, Adam, 15 epochs, fold {n}, seed 0" for n in (0, 1)]
    assert runs["1"]["neighbours"][0]["differs"] == [["fold", "0", "1"]]
    assert ["Fold", "1"] in runs["1"]["facts"]


def test_folds_and_settings_of_related_systems_are_told_apart(tmp_path):
    for fold in (0, 1):
        write_related(tmp_path / f"fold {fold}", config={"data.holdout": 0.2, "data.fold": fold})
    assert [run["title"] for run in data_of(tmp_path)["runs"].values()] == [
        f"SIFT, 1,000 words, linear SVM, fold {fold}, seed 0" for fold in (0, 1)
    ]
    for power in (0.5, 1.0):
        write_related(tmp_path / f"power {power}", config={"encoding.power": power})
    write_related(tmp_path / "orb", "orb", config={"encoding.power": 1.0})
    near = data_of(tmp_path)["runs"]["orb"]["neighbours"]
    assert {"power"} <= {key for other in near for key, *_ in other["differs"]}


def test_neighbours_differ_in_the_fewest_things(tmp_path):
    write_run(tmp_path / "a", "bagnet17", "adam", 0.4)
    write_run(tmp_path / "b", "bagnet17", "sgd", 0.1)
    write_run(tmp_path / "c", "bagnet9", "adam", 0.3, config={"model.width": 0.5})
    write_run(tmp_path / "d", "bagnet17", "adam", 0.35, config={"model.width": 0.5})
    keep_predictions(tmp_path / "a")
    keep_predictions(tmp_path / "b", wrong=(4, 8, 9, 10))
    keep_predictions(tmp_path / "d", side=41)  # of other images
    error = np.std([1] * 2 + [0] * 10, ddof=1) / 12**0.5  # two images that "b" alone has wrong
    near = {name: run["neighbours"] for name, run in data_of(tmp_path)["runs"].items()}
    assert near["a"] == [
        {
            "run": "b",
            "differs": [["optimizer", "SGD", "Adam"]],
            "accuracy": 0.1,
            "error": pytest.approx(error),
        },
        {"run": "d", "differs": [["width", "0.5", "1.0"]], "accuracy": 0.35, "error": None},
    ]
    assert [other["run"] for other in near["c"]] == ["d"]


def test_a_configuration_is_its_own_values_over_the_common_ones(tmp_path):
    write_run(tmp_path / "a", "bagnet9")
    for name, model in (("b", "bagnet17"), ("c", "resnet18")):
        write_run(tmp_path / name, model, config={"optim.clip": None})
    write_run(tmp_path / "d", "bagnet9", config={"model.width": 0.5, "optim.clip": None})
    data = data_of(tmp_path)
    assert data["common"]["trainer.max_epochs"] == 15
    assert "model._target_" not in data["common"]
    assert data["runs"]["d"]["config"]["model.width"] == 0.5
    assert "model.pad" in data["common"]
    assert data["runs"]["c"]["without"] == ["model.pad"]
    assert data["common"]["optim.clip"] is None
    assert data["runs"]["a"]["without"] == ["optim.clip"]


def test_two_sweeps_stand_side_by_side(tmp_path):
    for name, accuracy, lr in (("old", 0.30, 0.001), ("new", 0.35, 0.01)):
        write_run(tmp_path / name / "a", "bagnet17", "adam", accuracy, config={"optim.lr": lr})
    write_run(tmp_path / "old/b", "bagnet9", "adam", 0.2)
    data = data_of(tmp_path / "old", tmp_path / "new")
    both, one = sorted(data["rows"], key=lambda row: row["entries"][1] is None)
    assert [entry["accuracy"] for entry in both["entries"]] == [0.30, 0.35]
    assert both["entries"][1]["runs"] == ["new/a"]
    assert [entry and entry["accuracy"] for entry in one["entries"]] == [0.2, None]
    assert set(data["runs"]) == {"old/a", "old/b", "new/a"}
    assert ["optim.lr", "0.001", "0.01"] in data["between"]


def test_sweeps_are_paired_by_settings_and_else_by_cell(tmp_path):
    """One learning rate against two: the equal one is its partner; where none is equal, the only ones are partners."""
    write_run(tmp_path / "old/a", "bagnet17", "adam", 0.30, config={"optim.lr": 0.001})
    write_run(tmp_path / "old/b", "bagnet9", "adam", 0.20, config={"optim.lr": 0.001})
    write_run(tmp_path / "new/a", "bagnet17", "adam", 0.31, config={"optim.lr": 0.001})
    write_run(tmp_path / "new/c", "bagnet17", "adam", 0.35, config={"optim.lr": 0.01})
    write_run(tmp_path / "new/b", "bagnet9", "adam", 0.25, config={"optim.lr": 0.01})
    rows = data_of(tmp_path / "old", tmp_path / "new")["rows"]
    found = [
        (row["model"], row["settings"]["optim.lr"], *(entry and entry["accuracy"] for entry in row["entries"]))
        for row in rows
    ]
    assert found == [
        ("bagnet9", "0.001 / 0.01", 0.20, 0.25),
        ("bagnet17", 0.001, 0.30, 0.31),
        ("bagnet17", 0.01, None, 0.35),
    ]


def test_related_systems_have_rows_and_runs_of_their_own(tmp_path):
    write_related(tmp_path / "sift", accuracy=0.2)
    write_related(tmp_path / "sift_1", accuracy=0.3, seed=1)
    (write_related(tmp_path / "additive", classifier="additive", accuracy=0.25) / "model.safetensors").touch()
    write_run(tmp_path / "network")
    data = data_of(tmp_path, gallery=True)
    assert [row["model"] for row in data["rows"]] == ["bagnet17"]
    linear = data["related"][1]
    assert (linear["system"], linear["n"]) == ("SIFT, 1,000 words, linear SVM", 2)
    assert linear["accuracy"] == pytest.approx(0.25)
    assert (linear["without_keypoints"], linear["explains"]) == ("12 val, 103 train", "keypoints")
    run = data["runs"]["additive"]
    assert run["title"] == "SIFT, 1,000 words, additive SVM, seed 0"
    assert run["command"] == "python -m bagnet_lightning.classical features=sift classifier=additive"
    assert run["explain"]["words"] == "which keypoint spoke for which class"
    assert run["explain"]["command"].endswith("additive/model.safetensors split=val")
    assert run["neighbours"] == [
        {"run": "sift", "differs": [["classifier", "linear SVM", "additive SVM"]], "accuracy": 0.2, "error": None}
    ]
    assert run["missing"] == []
    assert run["curves"]["epoch"] == []
    assert ["Images without keypoints", "12 val, 103 train"] in run["facts"]
    assert data["runs"]["sift"]["missing"] == ["model.safetensors is missing: this system cannot be explained any more"]
    assert data["without_gallery"] == "best.ckpt of the best BagNet, network, is missing."
    results_page(data)


def test_a_page_without_networks_has_no_gallery(tmp_path):
    write_related(tmp_path / "bagnet", "bagnet", accuracy=0.9)
    data = data_of(tmp_path, gallery=True)
    assert (data["rows"], data["gallery"], data["without_gallery"]) == ([], None, None)
    assert data["runs"]["bagnet"]["model"] == "bagnet17"


def test_related_systems_of_two_sweeps_are_listed_one_after_the_other(tmp_path):
    for name in ("old", "new"):
        write_related(tmp_path / name / "a")
    data = data_of(tmp_path / "old", tmp_path / "new")
    assert [(row["sweep"], row["runs"]) for row in data["related"]] == [("old", ["old/a"]), ("new", ["new/a"])]


def test_runs_of_different_versions_are_noted(tmp_path):
    write_run(tmp_path / "a", versions={"torch": "2.9.0", "bagnet_lightning": "0.1.0"})
    write_run(tmp_path / "b", "bagnet9", versions={"torch": "2.13.0", "bagnet_lightning": "0.1.0"})
    (sweep,) = data_of(tmp_path)["sweeps"]
    assert "Runs were made by different versions: torch 2.13.0, 2.9.0." in sweep["notes"]


def test_the_gallery_needs_no_data_and_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr("bagnet_lightning.reporting.page.gallery.COUNT", 2)
    data = data_of(tmp_path / write_run(tmp_path / "a", status="failed").parent, gallery=True)
    assert data["without_gallery"] == "There is no finished BagNet."
    best = write_run(tmp_path / "b", "bagnet9", accuracy=0.5)
    write_run(tmp_path / "c", "resnet18", "sgd", accuracy=0.9)
    assert data_of(tmp_path, gallery=True)["without_gallery"] == "best.ckpt of the best BagNet, b, is missing."
    write_checkpoint(best / "best.ckpt", "bagnet9")
    assert "predictions.npz of the best" in data_of(tmp_path, gallery=True)["without_gallery"]
    keep_predictions(best, side=12)
    gallery = data_of(tmp_path, gallery=True)["gallery"]
    assert gallery["run"] == "b"
    assert len(gallery["items"]) == 2
    for item in gallery["items"]:
        assert len(item["maps"]) == (1 if item["right"] else 2)
        assert all(one["png"].startswith("data:image/png;base64,") for one in item["maps"])
    (best / "best.ckpt").write_bytes(b"no checkpoint")
    assert "best.ckpt is refused" in data_of(tmp_path, gallery=True)["without_gallery"]


def test_a_sweep_that_chose_by_balanced_accuracy_shows_it_and_the_best_by_it(tmp_path):
    for name, accuracy, balanced in (("a", 0.5, 0.3), ("b", 0.4, 0.35)):
        chosen = {"monitor": "val_balanced_accuracy", "model.width": accuracy}
        write_run(tmp_path / name, accuracy=accuracy, val_balanced_accuracy=balanced, config=chosen)
    data = data_of(tmp_path, gallery=True)
    assert [row["entries"][0]["measures"] for row in data["rows"]] == [{"balanced": 0.35}, {"balanced": 0.3}]
    assert data["without_gallery"] == "best.ckpt of the best BagNet, b, is missing."
    write_run(tmp_path / "c", accuracy=0.45, config={"monitor": "val_accuracy"})
    assert "the best BagNet, a," in data_of(tmp_path, gallery=True)["without_gallery"]
    write_run(tmp_path / "other/d", accuracy=0.45, val_balanced_accuracy=0.3)
    assert [row["entries"][0]["measures"] for row in data_of(tmp_path / "other")["rows"]] == [{}]


def test_the_page_is_one_file_and_its_data_cannot_end_their_element(tmp_path):
    write_run(tmp_path / "a", status="failed", error="</script><script>alert(1)")
    (tmp_path / "a/progress.json").write_text('{"seconds_left": NaN}')
    (tmp_path / "a/result.json").unlink()
    write_run(tmp_path / "b", status="failed", error="</script>", config={"optim.lr": float("inf")})
    data = data_of(tmp_path)
    json.dumps(data, allow_nan=False)
    html = results_page(data)
    assert html.count("</script>") == 2
    assert html.count("Chart.js v") == 1
    assert "{{" not in html.split("<main")[0]
    assert 'src="http' not in html
    assert "sourceMappingURL" not in html


@pytest.fixture
def served(tmp_path):
    write_run(tmp_path / "a", status=None, done=1)
    with Server(0, lambda: data_of(tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_server_answers_this_machine_alone(served):
    def get(path, **headers):
        connection = HTTPConnection("127.0.0.1", served.server_port, timeout=20)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()

    answer, content = get("/")
    assert (answer.status, content[:15]) == (200, b"<!doctype html>")
    answer, content = get("/data.json")
    assert json.loads(content)["runs"]["a"]["done"] == 1
    assert get("/data.json", **{"If-None-Match": answer.headers["ETag"]})[0].status == 304
    assert get("/a/config.yaml")[0].status == 404
    assert get("/", Host="elsewhere.example")[0].status == 403
    served._read, served._until = lambda: read_table(Path("gone")), 0  # raises
    answer, content = get("/data.json")
    assert (answer.status, b"there is no such folder" in content) == (503, True)
    with pytest.raises(UserError, match="port=0 takes any free one"):
        Server(served.server_port, dict)
