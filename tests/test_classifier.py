from functools import partial

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from bagnet_lightning.classifier import Classifier

BATCHES = 5


def rates(scheduler, interval, epochs) -> list[float]:
    """The learning rate of every step of a training on nothing in particular."""
    seen = []

    class Watched(Classifier):
        def training_step(self, batch):
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return super().training_step(batch)

    module = Watched(
        nn.Sequential(nn.Flatten(), nn.Linear(3, 4)),
        partial(torch.optim.SGD, lr=1.0),
        scheduler,
        interval,
        num_classes=4,
        label_smoothing=0.0,
        about={},
    )
    data = TensorDataset(torch.randn(BATCHES * 2, 3, 1, 1), torch.zeros(BATCHES * 2).long(), torch.arange(BATCHES * 2))
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=2))
    return seen


def test_step_lr_of_seven_means_seven_epochs():
    seen = rates(partial(StepLR, step_size=7, gamma=0.1), "epoch", epochs=15)
    expected = [1.0] * 7 * BATCHES + [0.1] * 7 * BATCHES + [0.01] * BATCHES
    assert seen == pytest.approx(expected)


def test_onecycle_spans_the_whole_run_in_steps():
    seen = rates(partial(OneCycleLR, max_lr=2.0, pct_start=0.3), "step", epochs=4)
    assert len(seen) == 4 * BATCHES
    assert max(seen) == pytest.approx(2.0)
    assert 4 <= seen.index(max(seen)) <= 6  # at 30 % of 20 steps
    assert seen[-1] < 0.001


def test_smoothing_metrics_and_checkpoint_contents():
    module = Classifier(
        nn.Linear(4, 4), torch.optim.SGD, StepLR, "epoch", num_classes=4, label_smoothing=0.1, about={"classes": ["a"]}
    )
    logits, labels = torch.eye(4)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 3])
    assert module.val_accuracy(logits, labels) == 0.75
    assert module.val_top5_accuracy(logits, labels) == 1.0
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["bagnet_lightning"] == {"classes": ["a"]}
