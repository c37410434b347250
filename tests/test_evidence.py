import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from bagnet_lightning import evidence
from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import check_additive, contributions, dense_evidence, patch_corners, patch_evidence
from bagnet_lightning.models.bagnet import BagNet, bagnet9, bagnet17, bagnet33
from bagnet_lightning.models.resnet import resnet18

MODELS = {9: bagnet9, 17: bagnet17, 33: bagnet33}


def make(field, dtype=torch.float64, **options):
    """A BagNet whose batch norms are nothing like the identity, so that folding them wrongly shows."""
    torch.manual_seed(field)
    model = MODELS[field](7, **{"width": 0.25, **options})
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight, 0.8, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)
    nn.init.normal_(model.fc.bias)
    return model.to(dtype).eval()


@torch.no_grad()
def patch_by_patch(model, images):
    """The public heatmap code: every one-pixel-shifted patch of the zero-padded images through the network alone."""
    model = copy.deepcopy(model)
    model.pad = 0
    field = model.receptive_field
    patches = F.pad(images, [(field - 1) // 2] * 4).unfold(2, field, 1).unfold(3, field, 1).permute(0, 2, 3, 1, 4, 5)
    logits = torch.cat([model(chunk) for chunk in patches.reshape(-1, 3, field, field).split(256)])
    return logits.view(*patches.shape[:3], -1)


def error(actual, expected):
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("field", "height", "width", "options"),
    [
        (9, 21, 14, {}),
        (17, 19, 24, {}),
        (17, 5, 9, {}),  # every patch reaches beyond the image
        (33, 33, 34, {}),
        (9, 10, 13, {"pad": 1, "width": 0.5}),
        (17, 18, 17, {"pad": 1, "width": 0.3}),
    ],
)
def test_dense_equals_patch_by_patch(field, height, width, options):
    model = make(field, **options)
    images = torch.randn(1 if field == 33 else 2, 3, height, width, dtype=torch.float64)
    expected = patch_by_patch(model, images)
    assert expected.shape == (len(images), height, width, 7)
    assert error(dense_evidence(model, images), expected) < 1e-9
    assert error(dense_evidence(model.float(), images.float()).double(), expected) < 1e-4


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("field", [9, 17, 33])
def test_strides_are_slices(field, stride):
    model = make(field)
    images = torch.randn(1, 3, 39, 46, dtype=torch.float64)
    dense = dense_evidence(model, images)
    assert error(dense_evidence(model, images, stride=stride), dense[:, ::stride, ::stride]) < 1e-9


@pytest.mark.parametrize("field", [9, 17, 33])
def test_tiles_and_groups_change_nothing(field, monkeypatch):
    model = make(field)
    images = torch.randn(3, 3, 37, 33, dtype=torch.float64)
    tiles = []
    features = evidence._features
    monkeypatch.setattr(evidence, "_features", lambda m, x, s: tiles.append(tuple(x.shape)) or features(m, x, s))
    for stride in (1, 4):
        whole = dense_evidence(model, images, stride=stride)
        one = evidence._numbers_held(model, *whole.shape[1:3], stride) * 8 / 2**20  # MiB of one image
        for share in (2.5, 0.5, 0.4):
            tiles.clear()
            assert error(dense_evidence(model, images, stride=stride, max_memory_mib=share * one), whole) < 1e-12
            assert len(tiles) == 2 if share > 1 else len(tiles) >= 6


def test_classes_are_a_slice():
    model = make(17)
    images = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    chosen = [5, 0, 3]
    assert error(dense_evidence(model, images, classes=chosen), dense_evidence(model, images)[..., chosen]) < 1e-12
    assert error(patch_evidence(model, images, [6]), patch_evidence(model, images)[..., 6:]) < 1e-12
    for classes in ([7], [0, -1]):
        with pytest.raises(ValueError, match=r"no class (7|-1).*0 to 6"):
            dense_evidence(model, images, classes)


@pytest.mark.parametrize("pad", [0, 1, 6])
@pytest.mark.parametrize("field", [9, 17, 33])
def test_patch_evidence_is_the_models_own(field, pad):
    model = make(field, pad=pad)
    images = torch.randn(2, 3, 57, 42, dtype=torch.float64)
    patches = patch_evidence(model, images)
    with torch.no_grad():
        assert error(patches, model.patch_logits(images)) < 1e-9
        assert error(patches.mean((1, 2)), model(images)) < 1e-9
        assert error(contributions(model, images).sum((1, 2)), model(images)) < 1e-9

    # The dense map holds the very same patches, at the pixels they are centred on, where padding plays no part.
    corners = patch_corners(model, 57, 42)
    assert corners.shape == (*patches.shape[1:3], 2)
    dense = dense_evidence(model, images)
    compared = 0
    for row, column in torch.cartesian_prod(*map(torch.arange, corners.shape[:2])).tolist():
        top, left = (corners[row, column] + (field - 1) // 2).tolist()
        if 0 <= top < 57 and 0 <= left < 42:
            compared += 1
            assert error(patches[:, row, column], dense[:, top, left]) < 1e-9
    assert compared > patches.shape[1]


@pytest.mark.parametrize("field", [9, 17, 33])
def test_pixels_beyond_a_patch_have_no_say(field):
    model = make(field)
    images = torch.randn(1, 3, 40, 37, dtype=torch.float64, requires_grad=True)
    row, column, reach = 21, 17, (field - 1) // 2
    padded = F.pad(images, [reach] * 4)
    evidence._features(model, padded, stride=1)[0, :, row, column].sum().backward()
    seen = images.grad[0].abs().sum(0) > 0
    inside = torch.zeros_like(seen)
    inside[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = True
    assert not (seen & ~inside).any()
    assert seen[inside].double().mean() > 0.5

    other = torch.where(inside, images.detach(), 100 * torch.randn_like(images))
    before, after = (dense_evidence(model, x)[0, row, column] for x in (images, other))
    assert error(after, before) < 1e-9


def test_convolutions_are_never_tf32(monkeypatch):
    """A GPU would round float32 to 10 bits by default, which exact evidence does not survive."""
    model = make(9)
    allowed = []
    features = evidence._features
    monkeypatch.setattr(
        evidence, "_features", lambda *inputs: allowed.append(torch.backends.cudnn.allow_tf32) or features(*inputs)
    )
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    patch_evidence(model, torch.randn(1, 3, 20, 20, dtype=torch.float64))
    assert allowed == [False]
    assert torch.backends.cudnn.allow_tf32


def test_the_model_is_left_as_it_was():
    model = make(17).train()
    model.layer1.eval()
    images = torch.randn(1, 3, 20, 20, dtype=torch.float64)
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        inferred = dense_evidence(model, images)
    dense = dense_evidence(model, images)
    assert not dense.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(inferred, dense)
    assert error(dense, dense_evidence(model.eval(), images)) == 0


def test_memory_stays_within_the_limit():
    """Storage that the convolutions hold at a time, seen from within, is what _numbers_held promises."""

    class Held(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.alive, self.peak = WeakIdKeyDictionary(), 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                storage = result.untyped_storage()
                self.alive[storage] = storage.nbytes()
                self.peak = max(self.peak, sum(self.alive.values()))
            return result

    model = make(33, torch.float32)
    images = torch.randn(1, 3, 96, 96)
    with Held() as held:
        result = dense_evidence(model, images, classes=[0], max_memory_mib=12)
    whole = evidence._numbers_held(model, 96, 96, 1) * 4
    beside = result.nbytes + 3 * 128 * 128 * 4 + 2 * max(p.nbytes for p in model.parameters())
    assert whole > 2 * held.peak
    assert 6 * 2**20 < held.peak < 12 * 2**20 + beside


class Dropping(BagNet):
    def forward(self, images):
        return self.fc(F.dropout(self.features(images).mean((2, 3)), training=self.training))


class Loudest(BagNet):
    def forward(self, images):
        return self.patch_logits(images).amax((1, 2))


def test_a_subclass_whose_logits_are_no_mean_of_its_patches_is_refused():
    for model in (make(33, torch.float32, pad=1), make(9), Dropping((True, True, False, False), 7, 0.25)):
        training = model.training
        check_additive(model, 40)
        assert model.training == training
        for parameter in model.fc.parameters():
            nn.init.zeros_(parameter)
        check_additive(model, 40)
    with pytest.raises(UserError, match=r"Loudest is a BagNet, but .* \(off by [\d.e-]+\): derive it from"):
        check_additive(Loudest((True, True, False, False), 7, 0.25), 40)


def test_mistakes_are_explained():
    model = make(17)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for function in (dense_evidence, patch_evidence, contributions):
        with pytest.raises(UserError, match="needs a BagNet, not ResNet"):
            function(resnet18(7), images)
    for function in (patch_evidence, contributions):
        with pytest.raises(UserError, match=r"16 x 20 px are smaller than .* 17 px or more"):
            function(model, images[:, :, :20, :16])
    for stride in (0, 3, 16):
        with pytest.raises(ValueError, match=r"\[1, 2, 4, 8\]"):
            dense_evidence(model, images, stride=stride)
    with pytest.raises(ValueError, match="max_memory_mib"):
        dense_evidence(model, images, max_memory_mib=0.01)
