"""One run on two processes: real ones, on the CPU, that talk by gloo."""

import csv
import json
import signal
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, composed
from hydra.utils import instantiate

from bagnet_lightning.errors import UserError
from bagnet_lightning.training import ranks

# Batches of 7, 7 and 4 images for two devices; float64 and a small learning rate, since rounding errors grow a
# hundredfold with every step of such a small network. 13 validation images are batches of 5, 4 and 4.
ASKED = [word for word in SMALL if not any(key in word for key in ("images=", "batch_size", "trainer="))]
ASKED += ["data.train_images=18", "data.batch_size=7", "data.val_images=13", "data.eval_batch_size=5"]
ASKED += ["trainer.accelerator=cpu", "trainer.precision=64-true", "optim=adam", "optim.lr=1e-06"]
# The loss is of the whole batch, although it is no mean over images.
ASKED += ["weight_average=0.9", "+loss._target_=torch.nn.CrossEntropyLoss", "+loss.reduction=sum"]


def only(paths) -> Path:
    (path,) = filter(Path.is_dir, paths)  # before Python 3.11 glob("*/") finds files too
    return path


def state(run_folder: Path, name: str = "last.ckpt") -> dict:
    return torch.load(run_folder / name, weights_only=True)["state_dict"]


def rows(run_folder: Path) -> list[dict]:
    with (run_folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def result(run_folder: Path) -> dict:
    return json.loads((run_folder / "result.json").read_text())


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory, command_in) -> tuple[Path, Path, str]:
    """The folders of the same run on one and on two devices, and what the second printed."""
    cwd = tmp_path_factory.mktemp("runs")
    for sweep, asked in (("one", []), ("two", ["-m", "trainer=ddp"])):
        done = command_in("train", *asked, f"sweep={sweep}", *ASKED, cwd=cwd)
        assert done.returncode == 0, done.stderr
    return *(only((cwd / "multirun_outputs" / sweep).glob("*/")) for sweep in ("one", "two")), done.stdout


def test_two_devices_train_as_one_does(one_and_two):
    one, two, _ = one_and_two
    for name in ("last.ckpt", "best.ckpt"):
        a, b = state(one, name), state(two, name)
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[key], b[key], rtol=1e-6, atol=1e-9) for key in a)
    assert len(rows(one)) == 2
    for x, y in zip(rows(one), rows(two), strict=True):
        for exact in ("epoch", "step", "train_accuracy", "val_accuracy", "val_top5_accuracy", "learning_rate"):
            assert float(x[exact]) == pytest.approx(float(y[exact]), rel=1e-7)
        for near in ("train_loss", "val_loss"):
            assert float(x[near]) == pytest.approx(float(y[near]), rel=1e-6)


def test_one_process_leaves_the_files_and_prints_the_lines(one_and_two):
    one, two, printed = one_and_two
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert printed.count("parameters; patches of 9 px") == 1
    assert printed.count("[1/1] bagnet9 adam: 0.") == 1
    assert (two / "train.log").read_text().count("epoch 1: train loss") == 1
    a, b = result(one), result(two)
    assert a.keys() == b.keys()
    assert (a["devices"], b["devices"], b["num_nodes"]) == (1, 2, 1)
    assert a["config_digest"] == b["config_digest"]
    assert one.name == two.name


def test_every_image_is_one_ranks_once_an_epoch_whatever_their_number():
    data = instantiate(composed(*SMALL, "data.batch_size=8", "data.eval_batch_size=5").data, _convert_="all")
    data.setup()
    data._position = lambda: (0, 0)
    whole = [batch[2] for batch in data.train_dataloader()]
    for ranks_ in (2, 3):
        loaders = []
        for rank in range(ranks_):
            data.trainer = SimpleNamespace(world_size=ranks_, global_rank=rank)
            loaders.append((data.train_dataloader(), data.val_dataloader()))
        for batch, *shares in zip(whole, *(train for train, _ in loaders), strict=True):
            assert torch.equal(torch.cat([share[2] for share in shares]).sort().values, batch.sort().values)
        seen = torch.cat([share[2] for _, validation in loaders for share in validation])
        assert torch.equal(seen.sort().values, torch.arange(12))
        assert len({len(validation) for _, validation in loaders}) == 1
    data.trainer = SimpleNamespace(world_size=3, global_rank=0)
    data.batch_size = 17  # leaves two images of 36
    with pytest.raises(UserError, match=r"a batch of 2 images cannot be divided among 3 devices; change data\.batch"):
        data.train_dataloader()


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "4"}
SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_processes_that_torchrun_or_srun_started_are_the_ranks(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for asked in (["trainer.devices=4"], ["trainer.devices=2", "trainer.num_nodes=2"]):
        config = composed("trainer=ddp", *asked)
        ranks.check(config)
        assert ranks.rank(config) == 1
        assert not ranks.must_start(config)
        with pytest.raises(UserError, match="start it once, without torchrun or srun"):
            ranks.check(config, sweep=True)
    with pytest.raises(UserError, match="are 2 processes, but torchrun or srun started 4"):
        ranks.check(composed("trainer=ddp"))
    assert ranks.rank(composed()) == 0  # one device each: nothing to do with one another


def test_one_machines_ranks_are_started_and_several_machines_are_asked_for(monkeypatch):
    for name in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(name, raising=False)
    for sweep in (False, True):
        ranks.check(composed("trainer=ddp"), sweep)
        with pytest.raises(UserError, match="start the command 2 times on every node, with torchrun or srun"):
            ranks.check(composed("trainer=ddp", "trainer.num_nodes=2"), sweep)
    assert ranks.must_start(composed("trainer=ddp"))
    assert not ranks.must_start(composed())


def ended(*messages) -> tuple:
    """The connection and the process of a rank that sends these, and then is killed, ends or waits for the others."""
    ours, theirs = Pipe()
    for message in messages:
        theirs.send(message) if message not in ("killed", "ends") else theirs.close()
    return ours, SimpleNamespace(wait=lambda: -signal.SIGKILL if "killed" in messages else 0, other_end=theirs)


@pytest.mark.parametrize(
    ("messages", "end"),
    [
        ([["waits"], ["killed"]], "rank 1 of 2 was killed by SIGKILL; go on"),
        ([["waits"], ["ends"]], "rank 1 of 2 ended with exit code 0; go on"),
        ([[{"status": "failed", "error": "rank 1 is gone"}], ["killed"]], "rank 1 of 2 was killed by SIGKILL; go on"),
        ([["waits"], [{"status": "failed", "error": "no"}]], {"status": "failed", "error": "no"}),
        ([[{"status": "finished", "seed": 0}], ["waits"]], {"status": "finished", "seed": 0}),
        ([["killed"], [{"status": "finished", "seed": 0}]], "rank 0 of 2 was killed by SIGKILL; go on"),
        ([[15], [15]], 15),
    ],
)
def test_the_end_of_a_run_is_what_the_rank_that_failed_says_or_how_it_died(monkeypatch, messages, end):
    def wait_for_a_while(connections, timeout):
        ready = wait(connections, 5 if timeout is None else timeout)
        assert ready or timeout is not None, "it would wait forever"
        return ready

    monkeypatch.setattr(ranks, "GRACE_S", 0.2)
    monkeypatch.setattr(ranks, "wait", wait_for_a_while)
    both = [ended(*(message for message in sent if message != "waits")) for sent in messages]
    assert ranks._wait_for_end(both, "go on") == end
