"""The commands as a user runs them: processes, exit codes, what is printed and what is left behind."""

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, wait_for
from PIL import Image
from sweep_folders import write_run

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.data import textures
from bagnet_lightning.data.image_folder import open_store
from bagnet_lightning.files import locked
from bagnet_lightning.sweeps.runs import RUN_FILES

USING = Path(__file__).parent.parent / "docs/using.md"
SWEEP = ["-m", *[word for word in SMALL if word != "model=bagnet9"], "sweep=s"]


def result(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


def one_line(process) -> str:
    """What a refused command says: a single line on stderr, exit code 1."""
    assert process.returncode == 1, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_sweep_with_a_failing_run_then_evaluate_report_and_the_same_again(command, tmp_path):
    first = command("train", *SWEEP, "model=bagnet9", "optim=sgd,adam", "trainer.max_epochs=1")
    assert first.returncode == 0, first.stderr
    assert "[1/2] bagnet9 sgd: " in first.stdout
    assert "; 1 left, about " in first.stdout  # some minutes
    assert "2 of 2 runs finished" in first.stdout
    sweep = tmp_path / "multirun_outputs/s"
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert len(runs) == 2
    for run in runs:
        names = {path.name for path in run.iterdir()}
        assert names > {"config.yaml", "metrics.csv", "best.ckpt", "last.ckpt", "predictions.npz", "result.json"}
        assert names == {*RUN_FILES} & names | {"train.log"}  # fresh=true replaces all of them
        done = result(run)
        assert done["status"] == "finished"
        assert (done["model"], done["epochs"], done["data"]) == ("bagnet9", 1, "textures")
        assert set(done["versions"]) >= {"python", "torch", "torchvision", "pytorch_lightning"}
        assert 0 <= done["best_val_accuracy"] <= done["val_top5_accuracy"] <= 1
        for key in ("images_per_second", "peak_memory_mib", "train_seconds"):
            assert done[key] > 0
    assert {path.name for path in sweep.iterdir() if path.is_file()} >= {
        "table.csv",
        "table.md",
        "figure2.png",
        "curves.png",
        "sweep.json",
    }

    written = result(runs[0])
    more = command("train", *SWEEP, "model=bagnet9", "optim=sgd,adam,adadelta", "trainer.max_epochs=1")
    assert more.returncode == 0
    assert more.stdout.count("skipped: finished before") == 2
    assert result(runs[0]) == written

    failing = [*SWEEP, "model=bagnet9", "optim=adam", "trainer.max_epochs=1", "data.classes=100,2"]
    broken = command("train", *failing)
    assert broken.returncode == 1
    assert "Traceback" not in broken.stderr
    assert "[1/2] bagnet9 adam data.classes=100: failed: data.classes=100: textures has 6 classes" in broken.stdout
    assert "[2/2] bagnet9 adam data.classes=2: 0." in broken.stdout
    assert "data.classes=100: textures has 6 classes" in (sweep / "table.md").read_text()

    evaluated = command("evaluate", f"checkpoint={runs[0] / 'best.ckpt'}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"top-1 {result(runs[0])['best_val_accuracy']:.4f}" in evaluated.stdout
    evaluation = json.loads((runs[0] / "evaluation.json").read_text())
    assert evaluation["accuracy"] == pytest.approx(result(runs[0])["best_val_accuracy"])
    assert evaluation["top5_accuracy"] == pytest.approx(result(runs[0])["val_top5_accuracy"])
    with (runs[0] / "confusion.csv").open(newline="") as file:
        (_, *classes), *rows = csv.reader(file)
    confusion = {name: [int(count) for count in counts] for name, *counts in rows}
    assert list(confusion) == classes
    assert sum(map(sum, confusion.values())) == evaluation["images"] == 12
    by_class = {one["class"]: one["accuracy"] for one in evaluation["accuracy_by_class"]}
    assert evaluation["balanced_accuracy"] == pytest.approx(np.mean([*by_class.values()]))
    ranked = evaluated.stdout.splitlines()[1].removeprefix("by class: ").split(", ")
    assert [float(one.split()[-1]) for one in ranked] == sorted(by_class.values(), reverse=True)
    assert by_class == {name: row[place] / sum(row) for place, (name, row) in enumerate(confusion.items())}

    assert command("evaluate", f"checkpoint={runs[0] / 'best.ckpt'}", "split=train", "data.classes=2").returncode == 0
    of_others = json.loads((runs[0] / "evaluation_textures_train.json").read_text())
    assert (of_others["images"], of_others["data_settings"]) == (12, {"classes": 2})
    assert json.loads((runs[0] / "evaluation.json").read_text()) == evaluation

    reported = command("report", f"runs={sweep}")
    assert reported.returncode == 0
    assert "bagnet9" in reported.stdout.lower().replace("-", "")


def test_a_killed_sweep_is_completed_by_the_same_command(tmp_path, command):
    arguments = [*SWEEP, "model=bagnet9", "optim=sgd,adam", "trainer.max_epochs=8", "checkpoint.every_n_steps=1"]
    sweep = tmp_path / "multirun_outputs/s"

    def kill(process):
        wait_for(process, sweep, "*adam*/last.ckpt")
        process.kill()

    assert command("train", *arguments, meanwhile=kill).returncode == -signal.SIGKILL
    partial = command("report", f"runs={sweep}")
    assert "1 of 2 runs finished" in partial.stdout
    again = command("train", *arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("skipped: finished before") == 1
    assert "2 of 2 runs finished" in again.stdout
    assert [len(run.read_text().splitlines()) for run in sweep.glob("*/metrics.csv")] == [9, 9]


def test_a_run_that_is_stopped_ends_with_the_signals_exit_code_and_no_result(command, tmp_path):
    def terminate(process):
        wait_for(process, tmp_path, "multirun_outputs/textures/*/last.ckpt")
        process.terminate()

    arguments = [*SMALL, "trainer.max_epochs=1000", "checkpoint.every_n_steps=1"]
    stopped = command("train", *arguments, meanwhile=terminate)
    assert "stopped by SIGTERM; the same command again goes on" in stopped.stderr
    assert stopped.returncode == 128 + signal.SIGTERM
    (run,) = (tmp_path / "multirun_outputs/textures").iterdir()
    assert (run / "last.ckpt").exists()
    assert not (run / "result.json").exists()


def test_another_configuration_in_the_same_folder_is_refused_and_fresh_starts_over(command, tmp_path):
    arguments = [*SMALL, "trainer.max_epochs=1"]
    assert command("train", *arguments).returncode == 0
    (run,) = (tmp_path / "multirun_outputs/textures").iterdir()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("flip: true", "flip: false"))
    before = result(run)
    refused = command("train", *arguments)
    assert refused.returncode == 1
    assert "holds a run of another configuration" in refused.stdout
    assert result(run) == before
    assert command("train", *arguments, "fresh=true").returncode == 0
    assert "flip: true" in config.read_text()


def test_a_fault_of_ours_leaves_its_traceback_and_its_line(command, tmp_path):
    failed = command("train", *SMALL, "+optim.no_such_argument=1")
    assert failed.returncode == 1
    assert "failed: TypeError" in failed.stdout
    (run,) = (tmp_path / "multirun_outputs/textures").iterdir()
    assert "Traceback" in (run / "train.log").read_text()
    assert result(run)["status"] == "failed"


def test_a_diverging_run_is_told_apart_from_a_failed_one(command, tmp_path):
    diverged = command("train", *SMALL, "optim.lr=1e30")
    assert diverged.returncode == 1
    assert "bagnet9 adam: diverged: the loss is " in diverged.stdout
    (run,) = (tmp_path / "multirun_outputs/textures").iterdir()
    assert result(run)["status"] == "diverged"


def test_a_dry_run_prints_the_jobs_and_makes_nothing(command, tmp_path):
    asked = [*SWEEP, "model=bagnet9,bagnet17", "optim=sgd,adam", "dry_run=true"]
    dry = command("train", *asked)
    assert dry.returncode == 0, dry.stderr
    lines = dry.stdout.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["to do, with the whole device, one after the other"] * 4
    assert "multirun_outputs/s/bagnet17_adam_" in lines[3]
    assert not any(tmp_path.iterdir())
    folder = Path(lines[0].partition("] ")[2].partition(": ")[0])
    write_run(tmp_path / folder, "bagnet9", "sgd", done=2)
    for fresh, words in (("false", "refused, since it holds a run of another config"), ("true", "to do, with")):
        dry = command("train", *asked, f"fresh={fresh}")
        assert dry.stdout.splitlines()[0].split(": ")[1].startswith(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=bagnet10"], "choices: bagnet17, bagnet33, bagnet9, resnet18"),
        (["trainer.max_epoch=3"], "did you mean max_epochs?"),
        (["trainer.max_epochs=three"], "must be a whole number from 1"),
        (["-m", "optim=adam", "optim.lr=0.1,-1"], "optim.lr must be a number above 0"),
        (["data=image_folder"], "add data.root=..."),
        (["data=image_folder", "data.root=nowhere"], "data.root=nowhere must be a folder that holds train/<class>/*"),
        (["-m", "trainer=auto,cpu"], "2 jobs would share the folder defaults"),
        (["model=bagnet9,bagnet17"], "for a run of each add -m"),
        (["hydra/launcher=ray"], "hydra/launcher applies to sweeps only: add -m"),
        (["lr=0.1"], "there is no key lr; did you mean optim.lr?"),
        (["trainer.limit_train_batches=2"], "+trainer.limit_train_batches=..."),
        (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run cannot be set here"),
        (["+trainer.val_check_interval=0.5"], "trainer.val_check_interval cannot be set here"),
        (["+trainer.max_steps=11"], "trainer.max_steps cannot be set here"),
        (["-m", "++trainer.foo=1,2"], "Lightning's Trainer takes no foo: leave trainer.foo out"),
        (["batches.batch_size=7"], "batches.batch_size is for recipes; ask for data.batch_size"),
        (["scheduler=onecycle", "scheduler.pct_start=1.0"], "a share from 0.0 to below 1"),
        (["epochs=3"], "did you mean trainer.max_epochs?"),
        (["+epochs=3"], "there is no key epochs"),
        (["-m", "+seeds=0,1"], "there is no key seeds"),
        (["+my.key=3"], "there is no key my.key"),
        (["checkpoint=best.ckpt"], "a run goes on from its own last.ckpt; weights to start from are model.pretrained="),
        (["batches=3"], "batches must be set by keys below it, such as data.batch_size=50"),
        (["method=random"], "this command has no key method"),
        (["data.root="], "data.root must be a path"),
        (["data.name=my images"], "it is data.name unless you say another"),
        (["model=timm"], "model.model_name is needed: add model.model_name=..."),
        (["model=timm", "model.model_name=hf-hub:a/b"], "weights is model.pretrained=PATH"),
        (["model=timm", "model.model_name=resnet18", "model.pretrained=nowhere"], "the path of an existing file"),
        (["model=17"], "choices: bagnet17, bagnet33, bagnet9, resnet18"),
        (["--epochs", "3"], "there is no option --epochs"),
        (["best.ckpt"], "best.ckpt has no key"),
        (["data.name=a(1)/ö"], "put the value in quotes of its own: \"data.name='a(1)/ö'\""),
        (["data.name=it's (1)"], "put the value in quotes of its own: \"data.name='it\\'s (1)'\""),
    ],
)
def test_wrong_arguments_are_refused_in_one_line_before_anything_is_made(command, tmp_path, arguments, words):
    assert words in one_line(command("train", *arguments))
    assert not any(tmp_path.iterdir())


def test_what_bagnets_alone_have_is_set_for_them_in_a_sweep_of_others_too(command):
    asked = ["data=textures", "bagnet.stem_momentum=0.1", "dry_run=true"]
    assert "ask for model.stem_momentum" in one_line(command("train", "model=bagnet9", *asked))
    planned = command("train", "-m", "model=bagnet9,resnet18", *asked).stdout.splitlines()
    assert [line.partition("]")[0] for line in planned] == ["[1/2", "[2/2"]


def test_a_configuration_of_the_users_own_is_checked_as_ours(command, tmp_path):
    (tmp_path / "my").mkdir()
    logger = "logger: {save_dir: '${hydra:runtime.output_dir}'}"  # which Hydra knows when the job has begun
    (tmp_path / "my/mine.yaml").write_text(f"defaults: [config, _self_]\nlabel_smoothing: 0.2\n{logger}\n")
    asked = ["--config-dir", "my", "--config-name", "mine", "data=textures", "dry_run=true"]
    planned = "[1/1] multirun_outputs/textures/textures: to do, with the whole device, one after the other\n"
    assert command("train", *asked).stdout == command("train", "-m", *asked).stdout == planned
    assert "there is no key epochs" in one_line(command("train", *asked, "+epochs=3"))


def test_help_and_wrong_arguments_need_no_torch(command, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    helped = command("train", "--help", anew=True, PYTHONPATH=str(tmp_path))
    assert helped.returncode == 0
    assert "model: bagnet17 (default), bagnet33, bagnet9, resnet18" in helped.stdout
    assert "did you mean" in one_line(command("train", "optim.lrr=1", anew=True, PYTHONPATH=str(tmp_path)))


def test_a_network_an_optimizer_and_a_schedule_of_the_users_own(command, tmp_path):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "class SmallNet(nn.Sequential):\n"
        "    def __init__(self, num_classes, width, stem):\n"
        "        parts = nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)\n"
        "        super().__init__(*parts)\n"
    )
    for name, text in {
        "model/smallnet": "_target_: mynet.SmallNet\nwidth: 4\nstem: patchify\n",
        "optim/nadam": "_target_: torch.optim.NAdam\n_partial_: true\nlr: 0.001\n",
        "optim/whole": "_target_: torch.optim.NAdam\nlr: 0.001\n",
        "scheduler/plateau": "_target_: torch.optim.lr_scheduler.ReduceLROnPlateau\n_partial_: true\n",
        "scheduler/exp": "_target_: torch.optim.lr_scheduler.ExponentialLR\n_partial_: true\ngamma: 0.9\n",
    }.items():
        path = tmp_path / f"my/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    own = ["--config-dir", "my", *SMALL[:5], "trainer=cpu", "trainer.max_epochs=1", "model=smallnet", "scheduler=exp"]
    assert command("train", *own, "optim=nadam").returncode == 0
    (checkpoint,) = tmp_path.glob("multirun_outputs/*/*/best.ckpt")
    refused = one_line(command("evaluate", f"checkpoint={checkpoint}"))
    assert "if it is yours, say so by the environment variable BAGNET_NETWORKS=mynet.SmallNet" in refused
    for name, arguments in (("evaluate", ["split=train"]), ("explain", ["split=val", "count=1"])):
        done = command(name, f"checkpoint={checkpoint}", *arguments, BAGNET_NETWORKS="mynet.Other,mynet.SmallNet")
        assert done.returncode == 0, done.stderr
    exported = command("export", f"checkpoint={checkpoint}", "format=hub", "out=hub", BAGNET_NETWORKS="mynet.SmallNet")
    assert exported.returncode == 0, exported.stderr
    assert not (tmp_path / "hub/config.json").exists()  # timm could not make it
    card = (tmp_path / "hub/README.md").read_text()
    assert "timm" not in card
    assert "BAGNET_NETWORKS=mynet.SmallNet" in card
    assert "waits for a metric" in command("train", *own, "optim=nadam", "scheduler=plateau").stdout
    failed = command("train", *own, "optim=whole")
    assert "NAdam.__init__() missing 1 required positional argument: 'params'; see train.log" in failed.stdout


def test_data_of_the_users_own_say_what_holds_under_any_recipe_and_callbacks_are_added(command, tmp_path):
    told = USING.read_text(encoding="utf-8")
    (tmp_path / "my/data").mkdir(parents=True)
    (tmp_path / "my/callbacks").mkdir()
    (tmp_path / "mydata.py").write_text(
        block(told, "    import numpy as np\n    from bagnet_lightning.data.image_data")
    )
    (tmp_path / "my/data/arrays.yaml").write_text(block(told, "    defaults: [/data_options@_here_"))
    stop = "stop: {_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val_loss, patience: 1, min_delta: 9}"
    (tmp_path / "my/callbacks/stop.yaml").write_text(stop)
    store = textures.open_store(0, 24, 12, 33)
    arrays = {f"{name}_images": split.images.numpy()[:12] for name, split in store.splits.items()}
    labels = {f"{name}_labels": np.arange(12) % 2 for name in store.splits}
    np.savez(
        tmp_path / "cells.npz", **arrays, **labels, test_images=arrays["val_images"], test_labels=np.zeros(12, int)
    )
    training = block(told, "    import torch\n    from torch.nn").replace("(ImageFolder)", "(Arrays)")
    (tmp_path / "mytraining.py").write_text(f"from mydata import Arrays\n{training}")
    (tmp_path / "my/data/darkened.yaml").write_text("defaults: [arrays, _self_]\n_target_: mytraining.Darkened\n")
    weights = ["+loss._target_=mytraining.Weighted", "+loss.weights=[0.0,0.0]"]
    own = ["--config-dir", "my", "data=arrays"]
    asked = [*own, "recipe=modern", "model=bagnet9", "model.width=0.25", "trainer=cpu", "+callbacks=stop"]
    done = command("train", *asked)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("multirun_outputs/arrays/*")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert [config["data"][key] for key in ("flip", "crop_padding", "batch_size")] == ["alternating", 4, 128]
    assert result(run)["classes"] == 2
    assert len((run / "metrics.csv").read_text().splitlines()) == 3  # of 15 epochs, the second was no better by 9
    assert result(run)["config_dir"] == "my"
    assert load_trained(run / "best.ckpt").image_size == 33  # of the arrays: the configuration does not say
    assert f"before their last epoch: {run.name} 2 of 15" in command("report", f"runs={run.parent}").stdout
    assert "bagnet_lightning.train --config-dir my data=arrays" in (run.parent / "index.html").read_text()
    assert "the data mydata.Arrays, which are not of this package" in one_line(
        command("evaluate", f"checkpoint={run}/best.ckpt")
    )
    assert "is of a source: add data=SOURCE" in one_line(
        command("evaluate", f"checkpoint={run}/best.ckpt", "data._target_=mydata.Arrays")
    )
    darkened = [*asked[:2], "data=darkened", *asked[3:7], *weights, "trainer.max_epochs=1", "sweep=weighted"]
    command("train", *darkened)
    (weighted,) = tmp_path.glob("multirun_outputs/weighted/*")
    assert result(weighted)["status"] == "diverged"  # as a mean of no weight is not finite
    tested = command("evaluate", f"checkpoint={run}/best.ckpt", *own, "split=test")
    assert "on 12 images" in tested.stdout, tested.stderr


def test_a_reader_that_ends_early_is_no_fault(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    asked = [sys.executable, "-m", "bagnet_lightning.prepare", "data=textures"]
    ended = subprocess.run(asked, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


def block(text: str, start: str) -> str:
    """The indented lines of a Markdown text that begin so, without their indentation."""
    lines = text[text.index(start) :].splitlines()
    end = next(i for i, line in enumerate(lines) if line and not line.startswith("    "))
    return textwrap.dedent("\n".join(lines[:end]))


def test_missing_data_without_a_network_says_the_ways_out(command, tmp_path):
    asked = ["data.root=nowhere", "data.url=http://127.0.0.1:9/tiny-imagenet-200.zip"]
    line = one_line(command("prepare", *asked))
    failed = command("train", *asked)
    assert failed.returncode == 1
    for said in (line, failed.stdout):
        assert "data.root=" in said
        assert "data=textures" in said


def test_checkpoints_that_cannot_be_evaluated(command, tmp_path):
    assert "checkpoint=" in one_line(command("evaluate"))
    assert "does not exist" in one_line(command("evaluate", "checkpoint=none.ckpt"))
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert "not of a bagnet_lightning run" in one_line(command("evaluate", "checkpoint=foreign.ckpt"))


def test_prepare_tells_what_there_is(command):
    prepared = command("prepare", "data=textures", "data.train_images=12", "data.val_images=6")
    assert prepared.returncode == 0
    assert "12 images of 64 x 64 px" in prepared.stdout


def test_prepare_notices_a_packed_store_that_has_changed(command, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "mine" / split / "red").mkdir(parents=True)
        Image.new("RGB", (16, 16), "red").save(tmp_path / "mine" / split / "red/1.png")
    open_store(tmp_path / "mine", 16, workers=1)
    packed = tmp_path / "mine/.bagnet_store-16/train_images.npy"
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    packed.write_bytes(content)
    asked = ["data=image_folder", "data.root=mine", "data.image_size=16"]
    assert "have changed since they were packed" in one_line(command("prepare", *asked))


def test_a_folder_without_val_is_trained_on_with_a_holdout_alone(command, tmp_path):
    for name in ("red", "blue"):
        (tmp_path / "mine/train" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (16, 16), name).save(tmp_path / f"mine/train/{name}/{number}.png")
    asked = ["data=image_folder", "data.root=mine", "data.name=mine", "data.image_size=16", "data.batch_size=3"]
    asked += ["model=bagnet9", "model.width=0.25", "trainer.max_epochs=1"]
    assert "or train alone, with data.holdout=0.1" in command("train", *asked).stdout
    done = command("train", *asked, "data.holdout=0.25")
    assert done.returncode == 0, done.stderr
    assert "6 train and 2 validation images" in done.stdout


def test_a_run_that_another_process_trains_is_left_to_it(command, tmp_path):
    folder = tmp_path / "multirun_outputs/mine/bagnet9"
    with locked(folder, wait=False) as free:
        assert free
        done = command("train", "-m", *SMALL, "sweep=mine", f"hydra.sweep.subdir={folder.name}")
    assert done.returncode == 1
    assert "another process trains in" in done.stdout
    assert not (folder / "config.yaml").exists()
    assert not (folder / "result.json").exists()
