"""Batch norm from sums of values and of squares: what a compiler fuses best, and what ranks can add up on a CPU too."""

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, distributed, nn


class BatchNormOfSums(nn.BatchNorm2d):
    """nn.BatchNorm2d with the variance as mean square less squared mean, in float32 or better.

    Inductor fuses each sum with what makes the values, and so reads them once. All goes over each image first and then
    over the images, as do the sums of the backward pass: an image of channels_last memory fits in a core's cache, which
    its channels cross one after the other.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        images, channels, height, width = x.shape
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = values.sum((2, 3)).sum(0), values.square().sum((2, 3)).sum(0)
        total, squares, count = self.over_ranks(*sums, images * height * width)
        mean = total / count
        variance = squares / count - mean.square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        bias = self.bias - mean * scale
        scale, bias = (vector.expand(images, channels)[:, :, None, None] for vector in (scale, bias))
        return (values * scale + bias).to(x.dtype)

    def over_ranks(self, total: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor, int | Tensor]:
        return total, squares, count


class _OfAllRanks(BatchNormOfSums):
    """torch's own SyncBatchNorm refuses to run on CPUs."""

    def over_ranks(self, total: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        return _Sum.apply(torch.stack([total, squares, torch.full_like(total, count)])).unbind()


class SyncBatchNorm(TorchSyncBatchNorm):
    """Lightning's plugin that has batch norms share their statistics: torch's own ones on GPUs, on CPUs those above."""

    def apply(self, model: LightningModule) -> LightningModule:
        if model.trainer.strategy.root_device.type != "cpu":
            return super().apply(model)
        return replaced(model, nn.BatchNorm2d, _OfAllRanks)

    def revert(self, model: LightningModule) -> LightningModule:
        return super().revert(replaced(model, _OfAllRanks, nn.BatchNorm2d))


def replaced(model: nn.Module, old: type[nn.BatchNorm2d], new: type[nn.BatchNorm2d]) -> nn.Module:
    """`model`, whose batch norms of class `old` are now of class `new`, with the same parameters and buffers."""
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
    return model


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
