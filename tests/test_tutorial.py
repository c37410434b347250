"""The tutorial does what it says, from an empty folder."""

import json
import re
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tutorial_runs_as_it_stands(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs/tutorial.md").read_text(), re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "sh", "sh", "python"]
    names: dict = {}
    for language, block in blocks:
        if language == "python":
            exec(block, names)
            continue
        for line in block.splitlines():
            python, _, name, *arguments = shlex.split(line)
            if python == "python":
                done = command(name.removeprefix("bagnet_lightning."), *arguments)
            else:
                done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    run = tmp_path / "multirun_outputs/tutorial/run"
    assert json.loads((run / "result.json").read_text())["best_val_accuracy"] > 0.9
    assert len(json.loads((run / "predictions.json").read_text())) == 10
    assert (run / "explain/index.html").exists()
