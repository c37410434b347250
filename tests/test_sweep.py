"""What is told of the runs of a command, and how it ends, whatever a run or the report does."""

import io
from types import SimpleNamespace

import pytest
from conftest import composed
from omegaconf import OmegaConf
from rich.console import Console

from bagnet_lightning.config import plain
from bagnet_lightning.sweeps.callback import Sweep
from bagnet_lightning.train import Measured

CONFIG = OmegaConf.create({**plain(composed()), "hydra": {"sweep": {"dir": "nowhere"}}})


def ended(sweep: Sweep, monitor: str = "val_accuracy", **result) -> None:
    asked = {"model": "bagnet9", "optimizer": "sgd"}
    sweep.on_job_end(
        OmegaConf.merge(CONFIG, {"monitor": monitor}), SimpleNamespace(overrides=[], _return_value={**asked, **result})
    )


def test_brackets_in_a_runs_error_are_text():
    sweep, stream = Sweep(), io.StringIO()
    sweep.console = Console(file=stream, soft_wrap=True)
    ended(sweep, status="failed", error="pip install 'bagnet-lightning[tensorboard]' [/tmp]")
    assert stream.getvalue() == "[1/1] bagnet9 sgd: failed: pip install 'bagnet-lightning[tensorboard]' [/tmp]\n"


def test_a_line_has_all_of_a_runs_time_and_what_is_left_by_the_runs_that_were_not_skipped(monkeypatch):
    sweep, stream = Sweep(), io.StringIO()
    sweep.console, sweep.total, sweep.began = Console(file=stream, soft_wrap=True), 4, 0
    monkeypatch.setattr("bagnet_lightning.sweeps.callback.time", SimpleNamespace(monotonic=lambda: 120))
    finished = {"status": "finished", "best_val_accuracy": 0.5, "train_seconds": 20}
    ended(sweep, **finished, skipped=True)
    ended(sweep, **finished, feature_seconds=90)
    ended(sweep, "val_balanced_accuracy", **finished, val_balanced_accuracy=0.25)
    ended(sweep, "val_f1", **finished, val_f1=None)  # it was nan
    assert stream.getvalue().splitlines() == [
        "[1/4] bagnet9 sgd: 0.5000 in 20 s, skipped: finished before; 3 left",
        "[2/4] bagnet9 sgd: 0.5000 in 110 s; 2 left, about 4 min",
        "[3/4] bagnet9 sgd: 0.5000 (balanced 0.2500) in 20 s; 1 left, about 1 min",
        "[4/4] bagnet9 sgd: 0.5000 in 20 s",
    ]


def test_a_report_that_fails_does_not_end_the_command_as_if_all_were_well(monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("bagnet_lightning.reporting.report.write_report", broken)
    with pytest.raises(SystemExit, match="1"):
        Sweep().on_multirun_end(CONFIG)
    assert "RuntimeError: out of memory" in capsys.readouterr().err


def test_sweepers_that_optimise_get_the_monitored_accuracy_and_no_number_of_a_failed_run():
    finished = {"status": "finished", "best_val_accuracy": 0.5, "val_balanced_accuracy": 0.4}
    assert float(Measured(finished, "val_accuracy")) == 0.5
    assert float(Measured(finished, "val_balanced_accuracy")) == 0.4
    with pytest.raises(TypeError):
        float(Measured({"status": "failed"}, "val_accuracy"))


def test_the_jobs_of_such_a_sweeper_are_not_known_before():
    sweep, stream = Sweep(), io.StringIO()
    sweep.console = Console(file=stream, soft_wrap=True)
    hydra = {
        "sweeper": {"_target_": "hydra_plugins.hydra_optuna_sweeper.OptunaSweeper"},
        "overrides": {"task": ["a=1"]},
    }
    config = OmegaConf.create({**plain(composed()), "hydra": hydra})
    sweep.on_multirun_start(config)
    trial = OmegaConf.merge(config, {"optim": {"lr": -1}})
    with pytest.raises(SystemExit, match=r"optim\.lr=-1: optim\.lr must be"):
        sweep.on_job_start(trial)
    ended(sweep, status="finished", best_val_accuracy=0.5, train_seconds=20)
    assert stream.getvalue() == "[1/?] bagnet9 sgd: 0.5000 in 20 s\n"
    config.dry_run = True
    with pytest.raises(SystemExit, match="chooses its jobs one after the other"):
        sweep.on_multirun_start(config)
