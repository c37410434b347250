"""Batch norm written out as sums and a scaling, which compilers fuse well and ranks can add up on CPUs too."""

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, distributed, nn


class WrittenOutBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d as two sums and a scaling, which Inductor fuses with adjacent operations, in float32 or better.

    Sums run over each image first and then over the images, in the backward pass too: an image in channels_last memory
    fits in a core's cache, through which its channels pass one after the other.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        images, _, height, width = x.shape
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        total, count = self.over_ranks(values.sum((2, 3)).sum(0), images * height * width)
        if isinstance(count, int) and count == 1:  # as torch's own batch norm does
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        mean = total / count
        # The gradient of the squares with respect to the mean is zero, since the differences from it add up to zero.
        differences = values - _per_image(mean.detach(), images)
        squares, count = self.over_ranks(differences.square().sum((2, 3)).sum(0), images * height * width)
        variance = squares / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        bias = self.bias - mean * scale
        return (values * _per_image(scale, images) + _per_image(bias, images)).to(x.dtype)

    def over_ranks(self, sums: Tensor, count: int) -> tuple[Tensor, int | Tensor]:
        """Returns the channels' sums, (C,), and the number of values in each; subclasses may add them up over ranks."""
        return sums, count


def _per_image(values: Tensor, images: int) -> Tensor:
    return values.expand(images, -1)[:, :, None, None]


class _CrossRankBatchNorm2d(WrittenOutBatchNorm2d):
    """Batch norm over the batches of all ranks, for CPUs: torch's own SyncBatchNorm refuses to run there."""

    def over_ranks(self, sums: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return _Sum.apply(torch.stack([sums, torch.full_like(sums, count)])).unbind()


class SyncBatchNorm(TorchSyncBatchNorm):
    """Lightning's plugin that shares batch norm statistics of ranks: torch's class on GPUs, the one above on CPUs."""

    def apply(self, model: LightningModule) -> LightningModule:
        if model.trainer.strategy.root_device.type != "cpu":
            return super().apply(model)
        return replace_batch_norms(model, nn.BatchNorm2d, _CrossRankBatchNorm2d)

    def revert(self, model: LightningModule) -> LightningModule:
        return super().revert(replace_batch_norms(model, _CrossRankBatchNorm2d, nn.BatchNorm2d))


def replace_batch_norms(model: nn.Module, old: type[nn.BatchNorm2d], new: type[nn.BatchNorm2d]) -> nn.Module:
    """Turns batch norms of class `old` in `model` into class `new`, keeping parameters and buffers; returns `model`.

    Those of a user's network that lack parameters, running statistics or a momentum stay as they are.
    """
    for module in model.modules():
        if type(module) is old and module.affine and module.track_running_stats and module.momentum is not None:
            module.__class__ = new
    return model


class _Sum(torch.autograd.Function):
    """The sum over the ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)
