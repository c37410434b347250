"""A run is made once, whatever command makes it."""

import json

from conftest import composed

from bagnet_lightning.errors import Diverged, UserError
from bagnet_lightning.results import describe, write_result
from bagnet_lightning.runs import begin, outcome

FILES = ("config.yaml", "model.safetensors", "result.json")


def asked(*overrides: str) -> tuple:
    config = composed("data=textures", *overrides, name="classical")
    return config, describe(config, list(overrides))


def test_a_finished_run_is_told_again_and_another_configuration_refused(tmp_path):
    config, described = asked()
    assert begin(config, tmp_path, described, FILES, lead=True) is None
    assert begin(config, tmp_path, described, FILES, lead=True) is None  # begun is not finished
    write_result(tmp_path, {**described, "status": "finished", "best_val_accuracy": 0.5})
    earlier = begin(config, tmp_path, described, FILES, lead=True)
    assert (earlier["skipped"], earlier["best_val_accuracy"]) == (True, 0.5)
    other, described_other = asked("encoding.codebook.size=7")
    refused = begin(other, tmp_path, described_other, FILES, lead=True)
    assert (refused["status"], "another configuration" in refused["error"]) == ("failed", True)
    assert (
        "configuration (encoding.codebook.size); name another sweep=NAME, or start over with fresh=true"
        in refused["error"]
    )
    assert (tmp_path / "result.json").exists()


def test_what_failed_before_it_had_anything_to_keep_gives_way(tmp_path):
    config, described = asked()
    other, described_other = asked("encoding.codebook.size=7")
    assert begin(config, tmp_path, described, FILES, lead=True) is None
    write_result(tmp_path, {**described, "status": "failed", "error": "no GPU"})
    assert begin(other, tmp_path, described_other, FILES, lead=True) is None
    write_result(tmp_path, {**described_other, "status": "failed", "error": "the disk is full"})
    (tmp_path / "em").mkdir()
    (tmp_path / "em/last.ckpt").touch()
    assert "another configuration" in begin(config, tmp_path, described, FILES, lead=True)["error"]


def test_fresh_removes_what_a_run_leaves_and_nothing_else(tmp_path):
    config, described = asked("fresh=true")
    for name in (*FILES, "notes.txt"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/events").touch()
    assert begin(config, tmp_path, described, (*FILES, "tensorboard"), lead=True) is None
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "notes.txt"}


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
