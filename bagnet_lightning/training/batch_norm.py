"""Batch norm written out: what a compiler fuses best, and what ranks can add up on a CPU too."""

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, distributed, nn


class WrittenOutBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d as two sums and a scaling, which Inductor fuses with what is around them, in float32 or better.

    All goes over each image first and then over the images, as do the sums of the backward pass: an image of
    channels_last memory fits in a core's cache, which its channels cross one after the other.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        images, _, height, width = x.shape
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        total, count = self.over_ranks(values.sum((2, 3)).sum(0), images * height * width)
        mean = total / count
        # The squares' gradient in the mean is zero, since the differences from it add up to that.
        differences = values - _of_each_image(mean.detach(), images)
        squares, count = self.over_ranks(differences.square().sum((2, 3)).sum(0), images * height * width)
        variance = squares / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        bias = self.bias - mean * scale
        return (values * _of_each_image(scale, images) + _of_each_image(bias, images)).to(x.dtype)

    def over_ranks(self, sums: Tensor, count: int) -> tuple[Tensor, int | Tensor]:
        """Of the channels' values, and how many they are."""
        return sums, count


def _of_each_image(values: Tensor, images: int) -> Tensor:
    return values.expand(images, -1)[:, :, None, None]


class _OfAllRanks(WrittenOutBatchNorm2d):
    """torch's own SyncBatchNorm refuses to run on CPUs."""

    def over_ranks(self, sums: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return _Sum.apply(torch.stack([sums, torch.full_like(sums, count)])).unbind()


class SyncBatchNorm(TorchSyncBatchNorm):
    """Lightning's plugin that has batch norms share their statistics: torch's own ones on GPUs, on CPUs those above."""

    def apply(self, model: LightningModule) -> LightningModule:
        if model.trainer.strategy.root_device.type != "cpu":
            return super().apply(model)
        return replaced(model, nn.BatchNorm2d, _OfAllRanks)

    def revert(self, model: LightningModule) -> LightningModule:
        return super().revert(replaced(model, _OfAllRanks, nn.BatchNorm2d))


def replaced(model: nn.Module, old: type[nn.BatchNorm2d], new: type[nn.BatchNorm2d]) -> nn.Module:
    """`model`, whose batch norms of class `old` are now of class `new`, with the same parameters and buffers.

    Those of a user's network that lack parameters, running statistics or a momentum stay as they are.
    """
    for module in model.modules():
        if type(module) is old and module.affine and module.track_running_stats and module.momentum is not None:
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
