"""captum's methods against what they must equal where that is known."""

import sys

import pytest
import torch

from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import contributions
from bagnet_lightning.explanation.attribution import grad_cam, integrated_gradients, methods_for
from bagnet_lightning.models.bagnet import bagnet9, bagnet33
from bagnet_lightning.models.resnet import resnet18

pytest.importorskip("captum", reason="captum is an optional dependency: pip install 'bagnet-lightning[explain]'")


def network(make, **options):
    torch.manual_seed(0)
    model = make(5, **options).double().eval()
    torch.nn.init.normal_(model.fc.bias)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, 0, 0.3)  # without biases, gradients along the path would not change
    return model


@pytest.mark.parametrize("pad", [0, 3])
def test_grad_cam_of_a_bagnet_is_the_exact_contributions_at_the_patches_centres_without_the_bias(pad):
    model = network(bagnet9, width=0.25, pad=pad)
    images, classes = torch.randn(3, 3, 41, 50, dtype=torch.float64), torch.tensor([4, 0, 4])
    exact = contributions(model, images)  # (3, h, w, 5)
    own = exact[torch.arange(3), ..., classes] - (model.fc.bias / exact[0, ..., 0].numel())[classes, None, None]
    maps = grad_cam(model, images, classes)
    before = (model.receptive_field - 1) // 2 - pad // 2
    assert torch.allclose(maps[:, before::8, before::8][:, : own.shape[1], : own.shape[2]], own, atol=1e-12)
    between = maps[:, before + 2, before : before + 9]  # a quarter of the way down, from one column to the next
    corners = 0.75 * own[:, 0, :2] + 0.25 * own[:, 1, :2]
    expected = torch.lerp(corners[:, :1], corners[:, 1:], torch.arange(9).double() / 8)
    assert torch.allclose(between, expected, atol=1e-12)
    assert torch.allclose(maps[:, 0, 0], own[:, 0, 0], atol=1e-12)
    assert torch.allclose(maps[:, -1, -1], own[:, -1, -1], atol=1e-12)


@pytest.mark.parametrize(
    ("make", "options"), [(bagnet33, {"width": 0.25}), (resnet18, {}), (resnet18, {"stem": "small"})]
)
def test_shapes_signs_and_an_untouched_network(make, options):
    model = network(make, **options)
    images, classes = torch.randn(2, 3, 41, 36, dtype=torch.float64), torch.tensor([1, 3])
    for method, steps in ((grad_cam, {}), (integrated_gradients, {"steps": 4})):
        maps = method(model, images, classes, **steps)
        assert maps.shape == (2, 41, 36)
        assert not maps.requires_grad
        assert maps.abs().max() > 0
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_integrated_gradients_add_up_to_the_logit_less_that_of_the_mean_colour():
    model = network(bagnet9, width=0.25)
    images, classes = torch.randn(2, 3, 33, 23, dtype=torch.float64) / 4, torch.tensor([2, 0])
    with torch.no_grad():
        expected = (model(images) - model(torch.zeros_like(images)))[torch.arange(2), classes]
    coarse, fine = (
        (integrated_gradients(model, images, classes, steps).sum((1, 2)) - expected).abs().max() for steps in (1, 64)
    )
    assert fine < 0.05 * expected.abs().max()
    assert fine < coarse


def test_it_does_not_matter_which_images_are_explained_together(monkeypatch):
    model = network(bagnet9, width=0.25)
    images, classes = torch.randn(3, 3, 20, 20, dtype=torch.float64), torch.tensor([0, 1, 2])
    for method in (grad_cam, integrated_gradients):
        together = method(model, images, classes)
        monkeypatch.setattr("bagnet_lightning.explanation.attribution.PIXELS_AT_A_TIME", 20 * 20 * 2)
        assert torch.allclose(method(model, images, classes), together, atol=1e-12)
        monkeypatch.undo()


def test_grad_cam_of_a_network_without_stages_is_of_its_last_convolution():
    torch.manual_seed(0)
    last = torch.nn.Conv2d(4, 5, 3)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), last, torch.nn.AdaptiveAvgPool2d(1))
    model = torch.nn.Sequential(model, torch.nn.Flatten()).double()
    image = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(model[0][:3](image)[:, 2:3] / 25, (9, 9), mode="bilinear")
    torch.testing.assert_close(grad_cam(model, image, torch.tensor([2])), expected[:, 0])


class Transformer(torch.nn.Module):
    """As a vision transformer: patches by one convolution, tokens afterwards."""

    def __init__(self):
        super().__init__()
        self.patches, self.fc = torch.nn.Conv2d(3, 4, 4, 4), torch.nn.Linear(4, 5)

    def forward(self, images):
        return self.fc(self.patches(images).flatten(2).mean(2))


def test_a_network_without_convolutions_after_its_stem_has_no_grad_cam():
    model, images, classes = Transformer().double(), torch.randn(1, 3, 8, 8).double(), torch.tensor([0])
    assert list(methods_for(model, 8, 8)) == ["integrated_gradients"]
    with pytest.raises(UserError, match="Transformer has no Grad-CAM: its last features are no map of two positions"):
        grad_cam(model, images, classes)


def test_convolutions_of_pooled_features_are_not_the_stage_of_grad_cam():
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3))
    head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(6, 5, 1, bias=False), torch.nn.Flatten())
    image = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    model = torch.nn.Sequential(body, head).double()
    weights = head[1].weight[2]  # (6, 1, 1): of a position's 25th part
    expected = torch.nn.functional.interpolate(
        (weights * body(image)).sum(1, keepdim=True) / 25, (9, 9), mode="bilinear"
    )
    torch.testing.assert_close(grad_cam(model, image, torch.tensor([2])), expected[:, 0])
    assert list(methods_for(model, 9, 9)) == ["grad_cam", "integrated_gradients"]
    assert not any(module._forward_hooks for module in model.modules())


class Heads(torch.nn.Module):
    """Its last convolution runs on parts of the images that are batched beside them, as heads of attention are."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 6, 3))
        self.pool, self.fc = torch.nn.Conv2d(3, 3, 3), torch.nn.Linear(6, 5)

    def forward(self, images):
        parts = self.pool(self.body(images).unflatten(1, (2, 3)).flatten(0, 1))
        return self.fc(parts.unflatten(0, (-1, 2)).flatten(1, 2).mean((2, 3)))


def test_features_of_parts_of_the_channels_are_no_stage():
    torch.manual_seed(0)
    model, image = Heads().double(), torch.randn(1, 3, 12, 12, dtype=torch.float64)
    features = model.body(image).detach().requires_grad_()
    parts = model.pool(features.unflatten(1, (2, 3)).flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1, 2)
    (gradients,) = torch.autograd.grad(model.fc(parts.mean((2, 3)))[0, 1], features)
    values = (features * gradients.mean((2, 3), keepdim=True)).sum(1, keepdim=True)
    expected = torch.nn.functional.interpolate(values, (12, 12), mode="bilinear").detach()
    torch.testing.assert_close(grad_cam(model, image, torch.tensor([1])), expected[:, 0])


class Block(torch.nn.Sequential):
    """May have shortcuts, for all that is known."""


def test_what_is_inside_of_pooled_features_is_not_the_stage_either():
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 6, 3))
    last = Block(torch.nn.Conv2d(6, 6, 1), torch.nn.AvgPool2d(5))  # its own convolution has 5 x 5 positions
    model = torch.nn.Sequential(body, last, torch.nn.Flatten(), torch.nn.Linear(6, 5)).double()
    image = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    weights = (model[3].weight @ last[0].weight[..., 0, 0])[2]
    values = (body(image) * weights[:, None, None]).sum(1, keepdim=True) / 25
    expected = torch.nn.functional.interpolate(values, (9, 9), mode="bilinear")
    torch.testing.assert_close(grad_cam(model, image, torch.tensor([2])), expected[:, 0])


@pytest.mark.parametrize(("name", "channels_last"), [("test_mambaout", True), ("test_convnext", False)])
def test_grad_cam_of_a_network_of_timm_is_of_the_features_before_its_head(name, channels_last):
    timm = pytest.importorskip("timm", reason="timm is an optional dependency")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).double().eval()
    image = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    features = model.forward_features(image).detach().requires_grad_()
    (gradients,) = torch.autograd.grad(model.forward_head(features)[0, 3], features)
    if channels_last:
        features, gradients = features.permute(0, 3, 1, 2), gradients.permute(0, 3, 1, 2)
    values = (features * gradients.mean((2, 3), keepdim=True)).sum(1, keepdim=True)
    expected = torch.nn.functional.interpolate(values, (96, 96), mode="bilinear")
    torch.testing.assert_close(grad_cam(model, image, torch.tensor([3])), expected.detach()[:, 0])
    assert list(methods_for(model, 32, 32)) == ["integrated_gradients"]  # one position


def test_a_vision_transformer_of_timm_has_no_grad_cam():
    timm = pytest.importorskip("timm", reason="timm is an optional dependency")
    model = timm.create_model("test_vit", num_classes=5, img_size=64).eval()
    assert list(methods_for(model, 64, 64)) == ["integrated_gradients"]


def test_without_captum_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    for method in (grad_cam, integrated_gradients):
        with pytest.raises(UserError, match=r"pip install 'bagnet-lightning\[explain\]'"):
            method(network(resnet18), torch.randn(1, 3, 32, 32).double(), torch.tensor([0]))
