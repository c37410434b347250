"""The command as a user runs it: several models, the same again, a fine-tuning, what is refused."""

import json

import pytest
from test_commands import one_line
from test_pretraining import SMALL

from bagnet_lightning.reporting.table import read_table

SWEEP = [word for word in SMALL if not word.startswith("model=")]


def test_backbones_of_several_models_are_made_once_and_fine_tuned(command, tmp_path):
    asked = [*SWEEP, "trainer.max_epochs=1", "method=tile2vec", "model=bagnet9,bagnet17"]
    first = command("pretrain", *asked)
    assert first.returncode == 0, first.stderr
    assert "[1/2] bagnet9 tile2vec: loss " in first.stdout
    assert "% of held-out neighbours nearer in " in first.stdout
    runs = sorted(path for path in (tmp_path / "multirun_outputs/textures_pretraining").iterdir() if path.is_dir())
    assert len(runs) == 2
    for run in runs:
        names = {"config.yaml", "metrics.csv", "last.ckpt", "backbone.safetensors", "result.json", "train.log"}
        assert {path.name for path in run.iterdir()} == names
        done = json.loads((run / "result.json").read_text())
        assert (done["status"], done["kind"], done["method"]) == ("finished", "pretraining", "tile2vec")
        assert 0 <= done["val_triplet_accuracy"] <= 1
        assert done["train_seconds"] > 0
        assert done["row"] is None
    again = command("pretrain", *asked, "dry_run=true")
    assert [line.rpartition(": ")[2] for line in again.stdout.splitlines()] == ["finished", "finished"]

    asked = [word for word in SWEEP if not word.startswith("tiles.")] + ["trainer.max_epochs=1", "model=bagnet9"]
    tuned = command("train", *asked, f"model.pretrained={runs[1] / 'backbone.safetensors'}", "sweep=tuned")
    assert tuned.returncode == 0, tuned.stderr
    table = read_table(tmp_path / "multirun_outputs")
    assert [line.pretrained for line in table.lines] == [runs[1].name]
    assert [run["model"] for run in table.pretrainings] == ["bagnet9", "bagnet17"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=word2vec"], "choices: random, simclr, tile2vec"),
        (["tiles.size=3"], "tiles.size must be a whole number from 9"),
        (["trainer.devices=2"], "trainer.devices and trainer.num_nodes are 1 in a pretraining"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line_before_anything_is_made(command, tmp_path, arguments, words):
    assert words in one_line(command("pretrain", *SMALL, *arguments))
    assert not any(tmp_path.iterdir())
