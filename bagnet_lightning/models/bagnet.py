"""BagNets (Brendel & Bethge, ICLR 2019): ResNet-50s whose every feature sees only a q x q patch of the image.

An image's logits are the mean of its patches' logits, so each class score is an exact sum of patch evidence:

    network = bagnet17(num_classes=200)
    network(images)               # (B, 200), the mean over h, w of
    network.patch_logits(images)  # (B, h, w, 200)

Parameter names and function are those of the public implementation, so its weights load by `load_state_dict`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bagnet_lightning.errors import UserError
from bagnet_lightning.models.pretrained import load_pretrained

EXPANSION = 4  # a bottleneck's output channels, in multiples of its inner ones
WIDE_STAGES = {"bagnet9": (1, 1, 0, 0), "bagnet17": (1, 1, 1, 0), "bagnet33": (1, 1, 1, 1)}


class Bottleneck(nn.Module):
    """1x1, k x k, 1x1 convolutions without padding, and a shortcut cropped to the size of their output."""

    def __init__(self, inputs: int, planes: int, kernel: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * EXPANSION)
        self.crop = (kernel - 1) // stride  # rows and columns that the shortcut has more than the convolutions' output
        self.downsample = None
        if stride != 1 or inputs != planes * EXPANSION:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, planes * EXPANSION, 1, stride, bias=False),
                nn.BatchNorm2d(planes * EXPANSION),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.crop:  # not by slicing: its gradient is never in channels_last memory, and the layers before copy it
            shortcut = F.pad(shortcut, (0, -self.crop, 0, -self.crop))
        return F.relu(out + shortcut, inplace=True)


class BagNet(nn.Module):
    """A ResNet-50 with 3x3 convolutions only where `wide_stages` has them, a linear classifier, and no padding.

    wide_stages: for each of the four stages, whether its first block has a 3x3 convolution (the others are 1x1).
    num_classes: length of the logits.
    width: multiple of the published channel counts (1.0); below 1 for quick work on a CPU, at least 0.25 (with fewer
        than 16 channels, oneDNN's strided 1x1 convolutions crash in the backward pass; torch 2.13).
    pad: total number of zero rows and columns added to the normalised image, half of them on each side, an odd one at
        the bottom and right. 0 is the published network; at 64 px the strides then leave rows and columns 57 to 63
        unseen, and pad=1 lets every pixel reach a logit.
    stem_momentum: batch-norm momentum after the first convolution; the public 0.001 needs thousands of steps before
        the running statistics used in evaluation are right.
    zero_init: initialise the last batch norm's weight of every block to 0, so that the block starts as its shortcut
        alone (Goyal et al. 2017).
    """

    def __init__(
        self,
        wide_stages: tuple[int, int, int, int],
        num_classes: int,
        width: float = 1.0,
        pad: int = 0,
        stem_momentum: float = 0.001,
        zero_init: bool = False,
    ):
        super().__init__()
        if width < 0.25:
            raise UserError(f"model.width is at least 0.25, not {width}")
        self.pad = pad
        channels = [round(planes * width) for planes in (64, 128, 256, 512)]
        self.conv1 = nn.Conv2d(3, channels[0], 1, bias=False)
        self.conv2 = nn.Conv2d(channels[0], channels[0], 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0], momentum=stem_momentum)
        inputs = channels[0]
        stages = zip(channels, (3, 4, 6, 3), (2, 2, 2, 1), wide_stages, strict=True)
        for number, (planes, blocks, stride, wide) in enumerate(stages, start=1):
            first = Bottleneck(inputs, planes, kernel=3 if wide else 1, stride=stride)
            inputs = planes * EXPANSION
            rest = [Bottleneck(inputs, planes, kernel=1, stride=1) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(first, *rest))
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init:
            for block in self.blocks:
                nn.init.zeros_(block.bn3.weight)

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    @property
    def blocks(self) -> list[Bottleneck]:
        """The sixteen bottlenecks in order."""
        return [block for stage in self.stages for block in stage]

    @property
    def stride(self) -> int:
        """Distance between the patches of neighbouring positions, in pixels."""
        return math.prod(block.conv2.stride[0] for block in self.blocks)

    @property
    def receptive_field(self) -> int:
        """Side q of the patch that one position sees, in pixels."""
        field, jump = self.conv2.kernel_size[0], 1
        for block in self.blocks:
            field += (block.conv2.kernel_size[0] - 1) * jump
            jump *= block.conv2.stride[0]
        return field

    def coverage(self, height: int, width: int) -> float:
        """Returns the share of the pixels of a height x width image that reach at least one logit."""
        seen = 1.0
        for size in (height, width):
            padded, before = size + self.pad, self.pad // 2
            positions = (padded - self.receptive_field) // self.stride + 1
            patches = [(self.stride * i, self.stride * i + self.receptive_field) for i in range(positions)]
            pixels = {p - before for start, stop in patches for p in range(start, stop)}
            seen *= len(pixels & set(range(size))) / size
        return seen

    def stem(self, images: Tensor) -> Tensor:
        """Applies conv1, conv2, batch norm and ReLU: (B, 3, H, W) -> (B, C, H - 2, W - 2).

        There is no nonlinearity between the two convolutions, so they are run as one 3x3 convolution with the composed
        weights: the same function and gradients in an eighth less time.
        """
        weight = torch.einsum("omhw,mi->oihw", self.conv2.weight, self.conv1.weight.flatten(1))
        return F.relu(self.bn1(F.conv2d(images, weight)), inplace=True)

    def check_size(self, height: int, width: int, what: str = "images") -> None:
        """Raises UserError if `what`, of height x width px, are too small for one patch, padding included."""
        needed = self.receptive_field - self.pad
        if min(height, width) < needed:
            raise UserError(
                f"{what} of {width} x {height} px are smaller than this network's patches: {needed} px or more are "
                "needed"
            )

    def padded(self, images: Tensor) -> Tensor:
        """Returns `images` with `pad` rows and columns of zeros around them. Errors as for check_size."""
        self.check_size(*images.shape[2:])
        if self.pad:
            before, after = self.pad // 2, self.pad - self.pad // 2
            images = F.pad(images, (before, after, before, after))
        return images

    def features(self, images: Tensor) -> Tensor:
        """Computes a feature vector per patch. images: (B, 3, H, W), normalised. Returns (B, 2048 * width, h, w).

        Errors as for check_size.
        """
        x = self.stem(self.padded(images))
        for block in self.blocks:
            x = block(x)
        return x

    def patch_logits(self, images: Tensor) -> Tensor:
        """Computes the class evidence of every patch at the native stride.

        images: (B, 3, H, W), normalised. Returns (B, h, w, classes); their mean over h, w is the image's logits.
        Brendel & Bethge 2019, section 3.
        """
        return self.fc(self.features(images).permute(0, 2, 3, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Computes the images' logits. images: (B, 3, H, W), normalised. Returns (B, classes)."""
        return self.fc(self.features(images).mean((2, 3)))


def bagnet9(num_classes: int, pretrained: bool | str = False, **options) -> BagNet:
    """Builds BagNet-9: 9 x 9 px patches. `pretrained`: see models/pretrained.py. `options`: those of BagNet."""
    return load_pretrained(BagNet(WIDE_STAGES["bagnet9"], num_classes, **options), "bagnet9", pretrained)


def bagnet17(num_classes: int, pretrained: bool | str = False, **options) -> BagNet:
    """Builds BagNet-17: 17 x 17 px patches. `pretrained`: see models/pretrained.py. `options`: those of BagNet."""
    return load_pretrained(BagNet(WIDE_STAGES["bagnet17"], num_classes, **options), "bagnet17", pretrained)


def bagnet33(num_classes: int, pretrained: bool | str = False, **options) -> BagNet:
    """Builds BagNet-33: 33 x 33 px patches. `pretrained`: see models/pretrained.py. `options`: those of BagNet."""
    return load_pretrained(BagNet(WIDE_STAGES["bagnet33"], num_classes, **options), "bagnet33", pretrained)
