"""The project to copy does what its README says, in a copy."""

import csv
import re
import shlex
import shutil
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "examples/own_project"
LESS = ["trainer=cpu", "trainer.max_epochs=1", "data.train_counts=[20,10,10]", "data.val_count=10"]


def test_the_commands_of_the_project_run(command, tmp_path):
    shutil.copytree(PROJECT, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("multirun_outputs", "__*"))
    told = (PROJECT / "README.md").read_text(encoding="utf-8")
    exported = dict(setting.split("=") for setting in re.search(r"^    export (.*)", told, re.MULTILINE)[1].split())
    for line in re.findall(r"^    python -m bagnet_lightning\.(.*)", told, re.MULTILINE):
        name, *arguments = shlex.split(line)
        if name == "train":
            arguments += [*LESS, f"hydra.run.dir={tmp_path}/multirun_outputs/shapes/experiment-shapes"]
        done = command(name, *arguments, **exported)
        assert done.returncode == 0, done.stderr
    with (tmp_path / "multirun_outputs/shapes/table.csv").open() as file:
        lines = [*csv.DictReader(file)]
    assert [(line["optimizer"], line["n"]) for line in lines] == [("sgd", "3"), ("nadam", "3"), ("nadam", "1")]
    assert all(0 < float(line["val_f1"]) < 1 for line in lines)
    assert (tmp_path / "multirun_outputs/shapes/experiment-shapes/evaluation_shapes.json").exists()
