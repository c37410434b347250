import signal

import pytest
import torch
from conftest import SMALL, composed
from test_acceleration import RUN, cuda, weights  # noqa: F401
from test_interrupts import before

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.errors import Interrupted
from bagnet_lightning.training.checkpoints import BestCheckpoint
from bagnet_lightning.training.classifier import Classifier
from bagnet_lightning.training.fit import fit
from bagnet_lightning.training.weight_average import WeightAverage

AVERAGED = [*SMALL, "weight_average=0.3", "checkpoint.every_n_steps=1", "optim.lr=0.05"]
NAME = "network.fc.weight"
STATISTICS = "network.layer4.2.bn3.running_var"


@pytest.fixture
def seen(monkeypatch):
    """The state dict after every training step, in order."""
    states, end = [], WeightAverage.on_train_batch_end

    def looked_at(self, trainer, module, *arguments):
        states.append({key: value.clone() for key, value in module.state_dict().items()})
        end(self, trainer, module, *arguments)

    monkeypatch.setattr(WeightAverage, "on_train_batch_end", looked_at)
    return states


def expected_averages(first, states, name, decay):
    """After each state."""
    average, averages = first, []
    for step, state in enumerate(states, start=1):
        share = min(decay, (1 + step) / (10 + step))
        average = share * average + (1 - share) * state[name]
        averages.append(average)
    return averages


def test_the_best_checkpoint_holds_the_averages_and_the_last_one_the_weights(tmp_path, seen, monkeypatch):
    starts, written, start = [], [], WeightAverage.on_train_start

    def started(self, trainer, module):
        starts.append({key: value.clone() for key, value in module.state_dict().items()})
        start(self, trainer, module)

    monkeypatch.setattr(WeightAverage, "on_train_start", started)
    monkeypatch.setattr(BestCheckpoint, "check_monitor_top_k", lambda *arguments: True)  # every epoch is the best
    save = BestCheckpoint._save_checkpoint

    def kept(self, trainer, path):
        save(self, trainer, path)
        written.append(torch.load(path, weights_only=True)["state_dict"])

    monkeypatch.setattr(BestCheckpoint, "_save_checkpoint", kept)
    fit(composed(*AVERAGED), tmp_path)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for name in (NAME, STATISTICS):
        averages = expected_averages(starts[0][name], seen, name, decay=0.3)
        for state, step in zip(written, (3, 6), strict=True):
            torch.testing.assert_close(state[name], averages[step - 1])
        torch.testing.assert_close(last["callbacks"]["WeightAverage"]["averages"][name], averages[-1])
        assert torch.equal(last["state_dict"][name], seen[-1][name])
        assert not torch.allclose(averages[-1], seen[-1][name])
    load_trained(tmp_path / "best.ckpt")


def test_validation_sees_the_averages_and_training_never_does(tmp_path, monkeypatch):
    validated = []

    def looked_at(self, *arguments):
        validated.append(self.network.fc.weight.clone())

    monkeypatch.setattr(Classifier, "on_validation_batch_start", looked_at, raising=False)
    fit(composed(*AVERAGED), tmp_path / "averaged")
    fit(composed(*AVERAGED, "weight_average=null"), tmp_path / "plain")
    averaged, plain = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("averaged", "plain"))
    assert all(torch.equal(value, plain["state_dict"][key]) for key, value in averaged["state_dict"].items())
    assert torch.equal(validated[1], averaged["callbacks"]["WeightAverage"]["averages"][NAME])
    assert torch.equal(validated[3], plain["state_dict"][NAME])


@pytest.mark.parametrize(("moment", "call"), [("training_step", 4), ("validation_step", 0)])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch, moment, call):
    fit(composed(*AVERAGED), tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        stopping = before(getattr(Classifier, moment), call, lambda: signal.raise_signal(signal.SIGTERM))
        patch.setattr(Classifier, moment, stopping)
        with pytest.raises(Interrupted):
            fit(composed(*AVERAGED), tmp_path / "broken")
    fit(composed(*AVERAGED), tmp_path / "broken")
    for name in ("last.ckpt", "best.ckpt"):
        unbroken, broken = (
            torch.load(tmp_path / run / name, weights_only=True)["state_dict"] for run in ("unbroken", "broken")
        )
        assert all(torch.equal(broken[key], value) for key, value in unbroken.items()), name


def test_accumulated_batches_are_one_step(tmp_path, seen):
    odd = ["data.train_images=30", "data.batch_size=6", "trainer.accumulate_grad_batches=2"]
    fit(composed(*AVERAGED, *odd), tmp_path)
    assert len(seen) == 10
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["WeightAverage"]["averages"]
    steps = [seen[batch] for batch in (1, 3, 4, 6, 8, 9)]  # the last batch of an epoch is a step by itself
    averages = expected_averages(seen[0][NAME], steps, NAME, decay=0.3)  # after half a step all is as it was
    torch.testing.assert_close(last[NAME], averages[-1])


@pytest.mark.usefixtures("cuda")
def test_with_a_recorded_step_the_averages_are_the_same(tmp_path):
    for name, graph in (("plain", "false"), ("graphed", "true")):
        fit(composed(*RUN, "weight_average=0.3", f"trainer.cuda_graph={graph}"), tmp_path / name)
    for expected, trained in zip(weights(tmp_path / "plain"), weights(tmp_path / "graphed"), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-5, atol=1e-6)
    best = [torch.load(tmp_path / name / "best.ckpt", weights_only=True) for name in ("plain", "graphed")]
    torch.testing.assert_close(best[1]["state_dict"], best[0]["state_dict"], rtol=1e-5, atol=1e-6)
