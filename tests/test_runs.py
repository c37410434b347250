"""A run is made once, whatever command makes it."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import composed
from hydra.errors import InstantiationException

from bagnet_lightning.errors import Diverged, UserError
from bagnet_lightning.reporting.page.runs import state
from bagnet_lightning.results import describe, read_run, write_result
from bagnet_lightning.sweeps.runs import at_work, outcome, put_aside, restore_or_discard, skip_or_refuse


def asked(*overrides: str) -> tuple:
    config = composed("data=textures", *overrides, name="classical")
    return config, describe(config, list(overrides))


def test_a_finished_run_is_told_again_and_another_configuration_refused(tmp_path):
    config, described = asked()
    assert skip_or_refuse(config, tmp_path, described, lead=True) is None
    assert skip_or_refuse(config, tmp_path, described, lead=True) is None  # begun is not finished
    write_result(tmp_path, {**described, "status": "finished", "best_val_accuracy": 0.5})
    earlier = skip_or_refuse(config, tmp_path, described, lead=True)
    assert (earlier["skipped"], earlier["best_val_accuracy"]) == (True, 0.5)
    other, described_other = asked("encoding.codebook.size=7")
    refused = skip_or_refuse(other, tmp_path, described_other, lead=True)
    assert (refused["status"], "another configuration" in refused["error"]) == ("failed", True)
    assert (
        "configuration (encoding.codebook.size); name another folder, by sweep=NAME or hydra.run.dir=PATH, or start "
        "over with fresh=true" in refused["error"]
    )
    assert (tmp_path / "result.json").exists()
    text = (tmp_path / "config.yaml").read_text()  # as of a version that had no such key
    (tmp_path / "config.yaml").write_text(
        "".join(line for line in text.splitlines(True) if "  classes: null" not in line)
    )
    assert skip_or_refuse(config, tmp_path, described, lead=True)["skipped"]
    two, described_two = asked("data.classes=2")
    assert "configuration (data.classes)" in skip_or_refuse(two, tmp_path, described_two, lead=True)["error"]


def test_what_failed_before_it_had_anything_to_keep_gives_way(tmp_path):
    config, described = asked()
    other, described_other = asked("encoding.codebook.size=7")
    assert skip_or_refuse(config, tmp_path, described, lead=True) is None
    write_result(tmp_path, {**described, "status": "failed", "error": "no GPU"})
    assert skip_or_refuse(other, tmp_path, described_other, lead=True) is None
    assert read_run(tmp_path)["status"] == "unfinished"  # and failed no longer
    write_result(tmp_path, {**described_other, "status": "failed", "error": "the disk is full"})
    (tmp_path / "em").mkdir()
    (tmp_path / "em/last.ckpt").touch()
    assert "another configuration" in skip_or_refuse(config, tmp_path, described, lead=True)["error"]


def leave(folder, described, epoch, **result):
    """A run's files, one of them a folder, and two of the user's."""
    for name in ("notes.txt", "copy.ckpt", "model.safetensors"):
        (folder / name).write_text(epoch)
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard/events").write_text(epoch)
    write_result(folder, {**described, **result})


def content(folder):
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file() and path.name != "result.json"}


OLD = {"notes.txt": "old", "copy.ckpt": "old", "model.safetensors": "old", "events": "old"}


@pytest.mark.parametrize(
    ("old", "new", "back"),
    [
        ({"status": "finished"}, {"status": "failed", "error": "no GPU"}, True),
        ({"status": "finished"}, {"status": "finished"}, False),
        ({"status": "failed", "error": "no data"}, {"status": "failed", "error": "no GPU"}, False),
    ],
)
def test_fresh_replaces_a_run_unless_the_new_one_comes_to_nothing(tmp_path, caplog, old, new, back):
    folder, (_, described) = tmp_path / "run", asked()
    folder.mkdir()
    leave(folder, described, "old", **old)
    put_aside(folder)
    assert content(folder) == {"notes.txt": "old", "copy.ckpt": "old"}
    assert "not replaced by fresh=true: copy.ckpt, notes.txt" in caplog.text
    leave(folder, described, "new", **new)
    assert restore_or_discard(folder) == back
    assert content(folder) == (OLD if back else dict.fromkeys(OLD, "new")) | {"notes.txt": "new", "copy.ckpt": "new"}
    assert read_run(folder)["status"] == (old if back else new)["status"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("renames", range(9))
def test_a_process_killed_while_files_are_moved_loses_none(tmp_path, monkeypatch, renames):
    folder, (_, described) = tmp_path / "run", asked()
    folder.mkdir()
    leave(folder, described, "old", status="finished")
    done, rename = [], Path.rename

    def killed(path, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(rename(path, target))

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        put_aside(folder)
        restore_or_discard(folder)
    restore_or_discard(folder)
    assert content(folder) == OLD
    assert read_run(folder)["status"] == "finished"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_is_seen_to_go_on_before_it_trains_and_from_other_machines(tmp_path, monkeypatch):
    monkeypatch.setattr("bagnet_lightning.sweeps.runs.TOUCHED", 0.01)
    config, described = asked()
    skip_or_refuse(config, tmp_path, described, lead=True)
    progress = tmp_path / "progress.json"
    with at_work(tmp_path):
        assert state(read_run(tmp_path)) == "running"
        progress.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
        os.utime(progress, (0, 0))
        deadline = time.monotonic() + 30
        while state(read_run(tmp_path)) == "stopped" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state(read_run(tmp_path)) == "running"
    assert state(read_run(tmp_path)) == "stopped"
    assert not progress.exists()


def test_what_ends_a_run_is_its_result(tmp_path):
    _, described = asked()

    def raising(error):
        def work():
            raise error

        return outcome(described, tmp_path, work)

    assert outcome(described, tmp_path, lambda: {"train_seconds": 1})["status"] == "finished"
    assert raising(UserError("a line")) == {**described, "status": "failed", "error": "a line"}
    assert raising(Diverged("the loss is nan"))["status"] == "diverged"
    fault = raising(ZeroDivisionError("division by zero"))
    assert fault["error"].startswith("ZeroDivisionError: division by zero; see train.log in")
    assert json.dumps(fault)
    refused = InstantiationException("Error in call to target 'my.Callback':")
    refused.__cause__ = AssertionError()
    assert raising(refused)["error"].startswith("Error in call to target 'my.Callback': AssertionError; see train.log")
