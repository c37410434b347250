"""ResNet-18 (He et al., CVPR 2016) from torchvision: the network the BagNets are compared with."""

import torchvision
from torch import nn

from bagnet_lightning.errors import UserError
from bagnet_lightning.models.pretrained import load_pretrained


def resnet18(
    num_classes: int, pretrained: bool | str = False, stem: str = "imagenet", zero_init: bool = False
) -> nn.Module:
    """Builds torchvision's ResNet-18.

    stem: "imagenet" (7x7 stride 2 and max-pool: the paper's, with 2 x 2 features for 64 px) or "small" (3x3 stride 1,
        no max-pool: the usual choice for small images). pretrained: see models/pretrained.py. zero_init: as for BagNet.
    """
    if stem not in ("imagenet", "small"):
        raise UserError(f"model.stem is 'imagenet' or 'small', not {stem!r}")
    network = torchvision.models.resnet18(num_classes=num_classes, zero_init_residual=zero_init)
    if stem == "small":
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return load_pretrained(network, "resnet18", pretrained)
