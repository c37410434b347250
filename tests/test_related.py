"""Related systems and pretrainings in the report: a table of their own, in every output, alone or beside networks."""

import csv
import io
import json

import pytest
import yaml
from PIL import Image
from rich.console import Console
from sweep_folders import write_related, write_run

from bagnet_lightning.reporting.columns import size
from bagnet_lightning.reporting.notes import notes
from bagnet_lightning.reporting.report import write_report
from bagnet_lightning.reporting.table import read_table
from bagnet_lightning.reporting.text import markdown, print_table, related_csv_text
from bagnet_lightning.results import read_run


def write_pretraining(folder, model="bagnet17", status: str | None = "finished"):
    write_run(
        folder,
        model,
        accuracy=None,
        status=status,
        done=3,
        kind="pretraining",
        method="tile2vec",
        loss=0.2310,
        val_triplet_accuracy=0.93,
        colour_triplet_accuracy=0.85,
    )
    config = yaml.safe_load((folder / "config.yaml").read_text()) | {"method": {"name": "tile2vec", "margin": 10}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.csv").write_text("epoch,step,train_loss\n1,10,0.9\n2,20,0.5\n3,30,0.2\n")
    if status == "finished":
        (folder / "backbone.safetensors").write_bytes(b"")
    return folder


def printed(folder, width=120) -> str:
    stream = io.StringIO()
    print_table(read_table(folder), Console(file=stream, width=width, force_terminal=True, color_system=None))
    return stream.getvalue()


def test_sizes_are_in_mib_from_a_tenth_of_one():
    assert [size(count) for count in (None, 104_857, 104_858, 1_600_000)] == ["", "102.4 KiB", "0.1 MiB", "1.5 MiB"]


def test_seeds_of_a_system_are_one_line(tmp_path):
    for seed, accuracy in enumerate((0.20, 0.22, 0.24)):
        write_related(tmp_path / str(seed), accuracy=accuracy, seed=seed, train_seconds=10.0 * (seed + 1))
    write_related(tmp_path / "other", classifier="additive")
    table = read_table(tmp_path)
    assert table.lines == []
    other, line = table.related
    assert other.system == "SIFT, 1,000 words, additive SVM"
    assert (line.accuracy, line.std, len(line.runs)) == (pytest.approx(0.22), pytest.approx(0.02), 3)
    assert (line.train_seconds, line.feature_seconds, line.model_bytes) == (20, 312.4, 1_600_000)
    assert line.without_keypoints == {"train": 103, "val": 12}


def test_the_same_system_in_two_folders_is_no_other_seed(tmp_path):
    for name, digest in (("mean", "1"), ("bagnet_averaging", "1"), ("other", "2")):
        write_related(tmp_path / name, config_digest=digest)
    assert sorted(len(line.runs) for line in read_table(tmp_path).related) == [1, 2]


def test_systems_of_two_networks_have_the_names_of_their_runs(tmp_path):
    for name in ("bagnet17_adam", "bagnet17_sgd"):
        checkpoint = f"multirun_outputs/tiny_imagenet/{name}/best.ckpt"
        write_related(tmp_path / name, "bagnet", config={"features.checkpoint": checkpoint})
    names = [line.name.rpartition(", ")[2] for line in read_table(tmp_path).related]
    assert names == ["checkpoint bagnet17_adam", "checkpoint bagnet17_sgd"]


def test_what_is_called_the_same_but_is_not_is_told_apart(tmp_path):
    write_related(tmp_path / "a", config={"encoding.power": 1.0})
    write_related(tmp_path / "b", config={"encoding.power": 0.5})
    write_related(tmp_path / "c", "orb", config={"features.threshold": 20})
    assert [line.name for line in read_table(tmp_path).related] == [
        "SIFT, 1,000 words, linear SVM, power 0.5",
        "SIFT, 1,000 words, linear SVM, power 1.0",
        "ORB, 1,000 words, linear SVM",
    ]
    write_related(tmp_path / "d", "orb", words=500, config={"data.classes": 10})
    assert read_table(tmp_path).related[2].name == "ORB, 500 words, linear SVM, classes 10"


def test_the_order_is_that_of_features_then_of_numbers(tmp_path):
    for words in (1000, 256):
        for features in ("orb", "bagnet", "sift"):
            write_related(tmp_path / f"{features}{words}", features, words=words)
    assert [line.name.rpartition(",")[0] for line in read_table(tmp_path).related] == [
        f"{features}, {words} words" for features in ("SIFT", "ORB", "BagNet-17") for words in ("256", "1,000")
    ]


def test_a_failed_seed_is_not_hidden_and_an_unfinished_run_is_known_by_its_config(tmp_path):
    write_related(tmp_path / "a")
    write_related(tmp_path / "b", seed=1, status="failed", error="UserError: no\nroom")
    write_related(tmp_path / "c", seed=2, status=None)
    table = read_table(tmp_path)
    assert sorted((line.status, line.name) for line in table.related) == [
        ("failed", "SIFT, 1,000 words, linear SVM"),
        ("finished", "SIFT, 1,000 words, linear SVM"),
        ("unfinished", "SIFT, 1,000 words, linear SVM"),
    ]
    told = notes(table)
    assert told[0] == "1 of 3 runs finished."
    assert "failed: SIFT, 1,000 words, linear SVM (b): UserError: no room" in told
    assert "unfinished: SIFT, 1,000 words, linear SVM (c): no result yet" in told
    run = read_run(tmp_path / "c")
    assert (run["kind"], run["model"], run["optimizer"]) == ("related", "sift", "linear")


def test_the_csv_has_a_record_a_line_and_pandas_numbers(tmp_path):
    write_related(tmp_path / "a", accuracy=1 / 3, seed=0)
    write_related(tmp_path / "b", accuracy=2 / 3, seed=1)
    write_related(tmp_path / "c", "bagnet", "logistic", config={"encoding.power": 1.0}, model_bytes=None)
    write_related(tmp_path / "d", "bagnet", "logistic")
    sift, *bagnets = csv.DictReader(io.StringIO(related_csv_text(read_table(tmp_path))))
    assert float(sift["accuracy"]) == 0.5
    assert (sift["n"], sift["seed"], sift["folders"], sift["features"]) == ("2", "0; 1", "a; b", "sift")
    assert (sift["train_without_keypoints"], sift["val_without_keypoints"], sift["explains"]) == (
        "103",
        "12",
        "keypoints",
    )
    assert [bagnet["encoding.power"] for bagnet in bagnets] == ["0.5", "1.0"]
    assert sift["encoding.power"] == "0.5"
    assert bagnets[1]["model_bytes"] == ""


def test_the_terminal_has_a_heading_and_only_columns_that_say_something(tmp_path):
    write_related(tmp_path / "a")
    write_run(tmp_path / "b", "bagnet9")
    text = printed(tmp_path)
    networks, systems = text.split("Related systems", 1)
    assert "BagNet-9" in networks
    assert "12 val, 103 train" in systems
    for words in ("SIFT, 1,000 words, linear SVM", "0.2000", "5 min", "45 s", "1.5 MiB", "keypoints"):
        assert words in systems
    assert "Images without keypoints are classified all the same" in " ".join(text.split())
    write_related(tmp_path / "dense/a", "dense_sift")
    assert "without keypoints" not in printed(tmp_path / "dense")
    assert "Related systems" not in printed(tmp_path / "b")
    narrow = printed(tmp_path, width=64)
    assert max(map(len, narrow.splitlines())) <= 64
    assert "0.2000" in narrow


def test_the_markdown_has_a_rectangular_table_for_each_part(tmp_path):
    write_related(tmp_path / "a", accuracy=0.2, seed=0)
    write_related(tmp_path / "b", accuracy=0.3, seed=1)
    write_run(tmp_path / "c")
    write_pretraining(tmp_path / "d")
    text = markdown(read_table(tmp_path))
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [f"# {tmp_path.name}", "## Related systems", "## Pretraining"]
    parts = [[line for line in part.splitlines() if line.startswith("|")] for part in text.split("\n## ")]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert all(len({len(line) for line in part}) == 1 for part in parts)
    assert "0.2500 ± 0.0707 (n=2)" in text
    assert f"{tmp_path.as_posix()}/d/backbone.safetensors" in text
    assert "| tile2vec | BagNet-17 |     15 | 0.2310 |           0.9300 |    0.8500 |" in text


def test_where_parts_were_measured_is_said_once_if_it_is_the_same(tmp_path):
    same = {"device": "NVIDIA H200", "precision": "bf16-mixed"}
    write_run(tmp_path / "a")
    write_related(tmp_path / "b", **same)
    assert sum("NVIDIA H200" in note for note in notes(read_table(tmp_path))) == 1
    write_related(tmp_path / "c", train_images=500, device="2 CPU cores")
    table1, related = notes(read_table(tmp_path))[-2:]
    assert table1.startswith("Table 1: Data: tiny_imagenet, 200 classes, 100,000 train")
    assert related.startswith("Related systems: Data: tiny_imagenet, 200 classes, 100,000 / 500 train")


def test_every_file_of_a_mixed_sweep_and_of_one_without_networks(tmp_path):
    write_related(tmp_path / "only/a")
    write_related(tmp_path / "mixed/a")
    write_run(tmp_path / "mixed/b", "bagnet9")
    write_run(tmp_path / "mixed/going", status=None, done=2)
    write_pretraining(tmp_path / "mixed/c")
    write_pretraining(tmp_path / "mixed/d", status=None)
    write_pretraining(tmp_path / "backbones/c")
    found = {}
    for name in ("only", "mixed", "backbones"):
        stream = io.StringIO()
        write_report([tmp_path / name], Console(file=stream, width=100), gallery=False)
        found[name] = sorted(path.name for path in (tmp_path / name).iterdir() if path.is_file())
        assert all(str(tmp_path / name / file) in stream.getvalue() for file in found[name])
    assert found == {
        "only": ["index.html", "related.csv", "table.md"],
        "mixed": ["curves.png", "figure2.png", "index.html", "related.csv", "table.csv", "table.md"],
        "backbones": ["index.html", "table.md"],
    }
    with (tmp_path / "mixed/table.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["bagnet9", "bagnet17"]
    with Image.open(tmp_path / "mixed/curves.png") as picture:
        assert picture.size[0] > 500


def test_wandb_gets_what_there_is(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    logged = {}

    class Run:
        def log(self, content):
            logged.update(content)

        def finish(self):
            pass

    monkeypatch.setattr(wandb, "init", lambda **options: Run())
    write_related(tmp_path / "a", accuracy=0.25)
    write_report([tmp_path], Console(file=io.StringIO()), gallery=False, project="p")
    assert sorted(logged) == ["page", "related"]
    assert logged["related"].get_column("accuracy") == [0.25]


def test_a_row_of_table_1_is_only_of_tiny_imagenet(tmp_path):
    write_run(tmp_path / "a", "bagnet9", "sgd", epochs=5)
    write_run(tmp_path / "b", "bagnet9", "sgd", epochs=5, data="textures", config={"data.name": "textures"})
    write_run(tmp_path / "c", "bagnet17", "adam", status=None, config={"data.name": "textures"})
    found = {line.runs[0]["folder"].name: line.row for line in read_table(tmp_path).lines}
    assert found == {"a": 3, "b": None, "c": None}


def test_rubbish_in_the_fields_is_a_line_and_no_exception(tmp_path):
    for name, value in (("without_keypoints", 12), ("model_bytes", "big"), ("system", ["SIFT"])):
        folder = write_related(tmp_path / name)
        result = json.loads((folder / "result.json").read_text()) | {name: value}
        (folder / "result.json").write_text(json.dumps(result))
    assert [line.status for line in read_table(tmp_path).related] == ["unreadable"] * 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("features: {label: 3, name: sift}\n")
    assert [line.name for line in read_table(tmp_path / "other").related] == ["3"]
    (tmp_path / "other/config.yaml").write_text("features: sift\nclassifier: 3\n")
    (line,) = read_table(tmp_path / "other").lines  # of which kind, it does not say
    assert line.status == "unfinished"
