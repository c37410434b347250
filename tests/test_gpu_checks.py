"""The checks of gpu_table1.sh that need no GPU."""

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "gpu_checks.py"))


@pytest.mark.parametrize(("loss", "agree"), [("1.25", True), ("1.6", False), ("nan", False)])
def test_runs_of_one_optimizer_must_end_with_about_the_same_losses(tmp_path, monkeypatch, capsys, loss, agree):
    monkeypatch.chdir(tmp_path)
    for run in ("false/bagnet9_adam", "true/bagnet9_adam", "false/a_muon", "true/a_muon", "stopped/a_muon"):
        folder = tmp_path / "multirun_outputs" / f"smoke_{run}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        (folder / "metrics.csv").write_text(
            f"epoch,train_loss,val_loss\n1,9,9\n2,1.2,{loss if 'stopped' in run else '1.2'}\n"
        )
    assert SCRIPT["losses_agree"]() == agree
    assert "muon, val_loss: smoke_false 1.2000, smoke_stopped" in capsys.readouterr().out
    SCRIPT["show"]("smoke_stopped")
    assert capsys.readouterr().out.startswith("a_muon: unfinished, best_val_accuracy None")
