"""Batch norm written out is torch's own, compiled and not, in its statistics and gradients too."""

import shutil

import pytest
import torch
from torch import nn

from bagnet_lightning.training.batch_norm import WrittenOutBatchNorm2d, replace_batch_norms

COMPILER = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=COMPILER)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.01)]
)
def test_two_steps_and_an_evaluation_are_those_of_torch(compiled, dtype, tolerance):
    torch.manual_seed(0)
    batches = [(2 + torch.randn(6, 8, 5, 4)).to(dtype, memory_format=torch.channels_last) for _ in range(3)]
    gradient = torch.randn(6, 8, 5, 4).to(dtype)
    found = []
    for kind in (nn.BatchNorm2d, WrittenOutBatchNorm2d):
        torch.manual_seed(1)
        norm = nn.BatchNorm2d(8, momentum=0.3, dtype=dtype if dtype == torch.float64 else None)
        nn.init.normal_(norm.weight)
        network = replace_batch_norms(nn.Sequential(norm, nn.ReLU()), nn.BatchNorm2d, kind)
        assert type(norm) is kind
        function = torch.compile(network) if compiled and kind is WrittenOutBatchNorm2d else network
        for batch in batches[:2]:
            norm.zero_grad()
            images = batch.clone().requires_grad_()
            outputs = function(images)
            outputs.backward(gradient)
        evaluated = network.eval()(batches[2])
        found.append([outputs, evaluated, images.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()])
    for ours, torchs in zip(*found, strict=True):
        assert ours.dtype == torchs.dtype
        torch.testing.assert_close(ours, torchs, rtol=tolerance, atol=tolerance)


def test_norms_of_another_kind_stay_as_they_are():
    kinds = ({"affine": False}, {"track_running_stats": False}, {"momentum": None})
    network = nn.Sequential(*(nn.BatchNorm2d(3, **kind) for kind in kinds))
    assert {type(norm) for norm in replace_batch_norms(network, nn.BatchNorm2d, WrittenOutBatchNorm2d)} == {
        nn.BatchNorm2d
    }


def test_one_value_has_no_variance():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        WrittenOutBatchNorm2d(4)(torch.zeros(1, 4, 1, 1))


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0])
def test_what_is_far_from_zero_keeps_its_variance(spread):
    values = 30 + spread * torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for ours, torchs in zip(WrittenOutBatchNorm2d(4)(values), nn.BatchNorm2d(4)(values), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-3, atol=1e-3)
