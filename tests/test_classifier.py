import math
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from bagnet_lightning.errors import UserError
from bagnet_lightning.models.bagnet import bagnet9
from bagnet_lightning.training.classifier import Classifier, top5, totals

BATCHES = 5
PLAIN = {"optimizer": partial(torch.optim.SGD, lr=1.0), "scheduler": StepLR, "interval": "epoch", "about": {}}


def rates(scheduler, interval, epochs, accumulate=1) -> list[float]:
    """The learning rate at every batch of a training on nothing in particular."""
    seen = []

    class Watched(Classifier):
        def training_step(self, batch):
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return super().training_step(batch)

    settings = {"optimizer": partial(torch.optim.SGD, lr=1.0), "scheduler": scheduler, "interval": interval}
    module = Watched(nn.Sequential(nn.Flatten(), nn.Linear(3, 4)), **PLAIN | settings)
    data = TensorDataset(torch.randn(BATCHES * 2, 3, 1, 1), torch.zeros(BATCHES * 2).long(), torch.arange(BATCHES * 2))
    trainer = Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
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


def test_step_lr_of_steps_is_gone_within_an_epoch():
    seen = rates(partial(StepLR, step_size=2, gamma=0.1), "step", epochs=1)
    assert seen == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])


def test_schedules_count_epochs_and_steps_where_batches_are_accumulated():
    by_epoch = rates(partial(StepLR, step_size=1, gamma=0.1), "epoch", epochs=2, accumulate=2)
    assert by_epoch == pytest.approx([1.0] * BATCHES + [0.1] * BATCHES)
    by_step = rates(partial(OneCycleLR, max_lr=2.0), "step", epochs=4, accumulate=2)  # 3 steps an epoch
    assert by_step[-1] < 0.001


def test_norms_and_biases_do_not_decay():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4))
    settings = {
        "optimizer": partial(torch.optim.SGD, lr=1.0, weight_decay=0.5),
        "scheduler": partial(StepLR, step_size=1),
    }
    module = Classifier(network, **PLAIN | settings)
    module._trainer = SimpleNamespace(estimated_stepping_batches=1, num_training_batches=1, max_epochs=1)
    decays = {
        p: group["weight_decay"]
        for group in module.configure_optimizers()["optimizer"].param_groups
        for p in group["params"]
    }
    assert [decays[p] for p in network.parameters()] == [0.5, 0, 0, 0, 0.5, 0]


def test_what_muon_takes_for_hidden():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.attention = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.MultiheadAttention(4, 2)
            self.fc, self.gate = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
            self.places = nn.Parameter(torch.zeros(7, 4))

    network = Network()
    Classifier(network, **PLAIN).make_optimizer()
    filters_and_matrices = {name: p.hidden for name, p in network.named_parameters() if p.ndim > 1}
    assert filters_and_matrices == {
        "places": False,
        "conv.weight": True,
        "attention.in_proj_weight": True,
        "attention.out_proj.weight": True,
        "fc.weight": False,
        "gate.weight": True,
    }


def test_onecycle_spans_the_whole_run_in_steps():
    seen = rates(partial(OneCycleLR, max_lr=2.0, pct_start=0.3), "step", epochs=4)
    assert len(seen) == 4 * BATCHES
    assert max(seen) == pytest.approx(2.0)
    assert 4 <= seen.index(max(seen)) <= 6  # at 30 % of 20 steps
    assert seen[-1] < 0.001
    with pytest.raises(UserError, match="a cycle of 10 steps that rises for one: change its pct_start"):
        rates(partial(OneCycleLR, max_lr=2.0, pct_start=0.1), "step", epochs=2)


@pytest.mark.parametrize(("interval", "length"), [("epoch", 4), ("step", 4 * BATCHES)])
def test_a_cycle_and_a_cosine_end_with_the_run_however_they_are_stepped(interval, length):
    cycle = rates(partial(OneCycleLR, max_lr=2.0, pct_start=0.5), interval, epochs=4)
    assert max(cycle) > 1.5
    cosine = rates(partial(CosineAnnealingLR, eta_min=0.0), interval, epochs=4)
    steps = [step if interval == "step" else step // BATCHES for step in range(4 * BATCHES)]
    assert cosine == pytest.approx([(1 + math.cos(math.pi * step / length)) / 2 for step in steps])
    asked = rates(partial(CosineAnnealingLR, T_max=2 * length), interval, epochs=4)
    assert asked[-1] > 0.5


def test_a_share_of_the_loss_is_of_every_patchs_own_logits():
    torch.manual_seed(0)
    network, images, labels = bagnet9(5, width=0.25).eval(), torch.randn(2, 3, 33, 33), torch.tensor([1, 3])

    def trained(patch_loss):
        criterion = partial(F.cross_entropy, label_smoothing=0.1)
        module = Classifier(network, criterion, patch_loss, **PLAIN)
        return module.logits_and_loss(images, labels)

    evidence = network.patch_logits(images)  # (2, h, w, 5)
    own = [
        F.cross_entropy(evidence[i, y, x], labels[i], label_smoothing=0.1)
        for i, y, x in product(*map(range, evidence.shape[:3]))
    ]
    logits, loss = trained(0.25)
    torch.testing.assert_close(logits, trained(0.0)[0])
    torch.testing.assert_close(loss, 0.75 * trained(0.0)[1] + 0.25 * torch.stack(own).mean())
    with pytest.raises(UserError, match=r"patch_loss=0\.5 needs a BagNet's patches, and Linear has none"):
        Classifier(nn.Linear(4, 4), patch_loss=0.5, **PLAIN)


def test_totals_are_of_losses_hits_and_images():
    logits, labels = torch.eye(7)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 3])
    logits[3] = torch.arange(7.0)  # label 3 is the fourth of seven
    assert totals(top5(logits), labels, torch.tensor(0.5)).tolist() == [2.0, 3.0, 4.0, 4.0]
    few = top5(logits[:, :3])
    assert totals(few, torch.tensor([1, 1, 2, 0]), torch.tensor(1.0)).tolist() == [4.0, 2.0, 4.0, 4.0]


def test_the_classes_that_are_kept_are_those_that_count_as_hits():
    class Equal(nn.Module):  # logits
        def forward(self, images):
            return torch.zeros(len(images), 200)

    module = Classifier(Equal(), **PLAIN)
    module.on_validation_epoch_start()
    labels = torch.arange(200)
    predicted = module.validation_step((torch.randn(200, 4), labels, labels))["predicted"]
    assert (predicted == labels).sum() == module.val_totals[1] == module.val_classes[:, 1].sum() == 1
    assert module.val_classes[:, 0].tolist() == [1] * 200


def test_checkpoints_carry_what_the_epoch_has_come_to():
    def module():
        return Classifier(nn.Linear(4, 4), **PLAIN | {"about": {"classes": ["a"]}})

    saved, continued = module(), module()
    checkpoint = {"lr_schedulers": [{"last_epoch": 3, "anneal_func": max}]}  # as of torch 2.0's OneCycleLR
    saved.trainer = continued.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    saved.on_train_epoch_start()
    saved.loss(torch.randn(5, 4), torch.zeros(5).long())
    saved.rate = 0.1
    saved.on_save_checkpoint(checkpoint)
    assert checkpoint["lr_schedulers"] == [{"last_epoch": 3}]
    assert checkpoint["bagnet_lightning"] == {"classes": ["a"]}
    assert not any("totals" in name for name in saved.state_dict())
    del checkpoint["random"], checkpoint["should_stop"]  # as of earlier versions
    continued.on_load_checkpoint(checkpoint)
    continued.on_train_epoch_start()  # as before Lightning 2.5
    assert torch.equal(continued.train_totals, saved.train_totals)
    assert saved.train_totals[3] == 5
    assert continued.rate == 0.1
    continued.trainer.fit_loop.epoch_progress.current.completed = 1
    continued.on_train_epoch_start()
    assert not continued.train_totals.any()
