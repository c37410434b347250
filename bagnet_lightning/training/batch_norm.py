"""Batch norm over the images of all ranks, on the CPU too, where torch's SyncBatchNorm refuses to run."""

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, distributed, nn


class SyncBatchNorm(TorchSyncBatchNorm):
    """Lightning's plugin that has batch norms share their statistics: torch's own ones on GPUs, on CPUs those below."""

    def apply(self, model: LightningModule) -> LightningModule:
        if model.trainer.strategy.root_device.type != "cpu":
            return super().apply(model)
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = _CPUSyncBatchNorm2d  # with the same parameters and buffers
        return model

    def revert(self, model: LightningModule) -> LightningModule:
        for module in model.modules():
            if type(module) is _CPUSyncBatchNorm2d:
                module.__class__ = nn.BatchNorm2d
        return super().revert(model)


class _CPUSyncBatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = _Sum.apply(torch.tensor(x.numel() / x.shape[1]))  # of a channel's values
        mean = _Sum.apply(x.sum((0, 2, 3))) / count
        x = x - mean[:, None, None]
        variance = _Sum.apply(x.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale[:, None, None] + self.bias[:, None, None]


class _Sum(torch.autograd.Function):
    """The sum over the ranks, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)
