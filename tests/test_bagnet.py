import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bagnet_lightning.errors import UserError
from bagnet_lightning.models.bagnet import bagnet9, bagnet17, bagnet33
from bagnet_lightning.models.resnet import resnet18

BAGNETS = {9: bagnet9, 17: bagnet17, 33: bagnet33}


def randomized(network: nn.Module) -> nn.Module:
    """Batch norms that do something, as after training; in eval mode and float64."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return network.double().eval()


def published_forward(network, images):
    """The public implementation's forward pass: two first convolutions, residuals cropped by the difference."""
    x = F.relu(network.bn1(network.conv2(network.conv1(images))))
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in layer:
            out = F.relu(block.bn1(block.conv1(x)))
            out = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(out)))))
            residual = x if block.downsample is None else block.downsample(x)
            lost = residual.shape[-1] - out.shape[-1]
            if lost:
                residual = residual[:, :, :-lost, :-lost]
            x = F.relu(out + residual)
    return network.fc(x.mean((2, 3)))


@pytest.mark.parametrize(("q", "parameters"), [(9, 14_049_544), (17, 14_573_832), (33, 16_670_984)])
def test_size_field_and_names_are_those_of_the_public_bagnets(q, parameters):
    network = BAGNETS[q](200)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert (network.receptive_field, network.stride) == (q, 8)
    names = set(network.state_dict())
    assert {"conv1.weight", "conv2.weight", "bn1.running_var", "layer4.2.conv3.weight", "fc.bias"} <= names
    assert {"layer1.0.downsample.0.weight", "layer2.0.downsample.1.bias"} <= names
    assert network.bn1.momentum == 0.001
    assert network.layer1[0].bn1.momentum == 0.1


@pytest.mark.parametrize("q", BAGNETS)
def test_computes_what_the_public_implementation_computes(q):
    network = randomized(BAGNETS[q](5, width=0.25))
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(network(images), published_forward(network, images))


@pytest.mark.parametrize("q", BAGNETS)
@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("shape", [(64, 64), (50, 71), (33, 33)])
def test_logits_are_the_mean_of_the_patch_logits(q, pad, shape):
    network = randomized(BAGNETS[q](5, width=0.25, pad=pad))
    images = torch.randn(2, 3, *shape, dtype=torch.float64)
    patches = network.patch_logits(images)
    positions = [(size + pad - q) // 8 + 1 for size in shape]
    assert patches.shape == (2, *positions, 5)
    assert network.features(images).shape == (2, 512, *positions)
    torch.testing.assert_close(patches.mean((1, 2)), network(images))


@pytest.mark.parametrize("q", BAGNETS)
def test_a_patch_logit_sees_its_patch_and_nothing_else(q):
    network = randomized(BAGNETS[q](5, width=0.25))
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    network.patch_logits(images)[0, 1, 2].sum().backward()
    seen = images.grad.abs().sum((0, 1)) > 0
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[8 : 8 + q, 16 : 16 + q] = True
    assert not (seen & ~expected).any()
    assert seen[8, 16]
    assert seen[8 + q - 1, 16 + q - 1]


@pytest.mark.parametrize("q", BAGNETS)
def test_coverage_counts_the_pixels_that_reach_a_logit(q):
    for pad, shape in [(0, (64, 64)), (1, (64, 64)), (0, (48, 70))]:
        network = randomized(BAGNETS[q](5, width=0.25, pad=pad))
        images = torch.randn(1, 3, *shape, dtype=torch.float64, requires_grad=True)
        network(images).sum().backward()
        assert network.coverage(*shape) == pytest.approx((images.grad.abs().sum((0, 1)) > 0).double().mean().item())
    assert BAGNETS[q](5).coverage(64, 64) == pytest.approx(1 - 0.2068, abs=1e-3)


def test_composed_first_convolution_trains_both_weights():
    network = bagnet9(5, width=0.25).double()
    images = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    F.relu(network.bn1(network.conv2(network.conv1(images)))).square().sum().backward()
    apart = [network.conv1.weight.grad.clone(), network.conv2.weight.grad.clone()]
    network.zero_grad()
    network.stem(images).square().sum().backward()
    torch.testing.assert_close([network.conv1.weight.grad, network.conv2.weight.grad], apart)


def test_zero_init_makes_a_block_its_shortcut():
    x = torch.rand(2, 64, 9, 9)
    for block in (bagnet9(5, width=0.25, zero_init=True).layer1[1], resnet18(5, zero_init=True).layer1[0]):
        torch.testing.assert_close(block(x), x)


def test_gradients_keep_the_memory_format_of_the_activations():
    gradients = []

    def watch(_, inputs, output):
        output.register_hook(gradients.append)

    network = bagnet33(5, width=0.25).to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(watch)
    network(torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)).sum().backward()
    assert len(gradients) == 53
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in gradients)


def test_convolutions_start_as_kaimings_by_fan_out():
    torch.manual_seed(0)
    assert bagnet9(5).layer4[1].conv1.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)


def test_zero_init_is_of_every_blocks_last_norm_and_no_other():
    norms = {n: m for n, m in bagnet9(5, width=0.25, zero_init=True).named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert sum(name.endswith("bn3") for name in norms) == 16
    assert all(bool(norm.weight.any()) != name.endswith("bn3") for name, norm in norms.items())


def test_too_small_images_and_widths_are_refused():
    with pytest.raises(UserError, match=r"40 x 32 px are smaller than .* 33 px or more are needed"):
        bagnet33(5, width=0.25)(torch.zeros(1, 3, 32, 40))
    assert bagnet33(5, width=0.25, pad=1).eval()(torch.zeros(1, 3, 32, 40)).shape == (1, 5)
    with pytest.raises(UserError, match=r"at least 0\.25"):
        bagnet9(5, width=0.2)
