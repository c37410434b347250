"""Approximate attributions for any network, by captum, to compare exact evidence (evidence.py) with.

    grad_cam(network, images, classes)              # (B, H, W)
    integrated_gradients(network, images, classes)  # (B, H, W)

Both keep their sign: positive pixels are evidence for the class, negative ones against it. Their unit is not the logit
of a patch, so maps of different methods are compared by their pattern, not by their values. Networks are expected in
evaluation mode; neither their parameters nor their gradients are touched.
"""

from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import patch_corners
from bagnet_lightning.models.bagnet import BagNet

PIXELS_AT_A_TIME = 2**18  # in a forward and backward pass: 64 images of 64 px


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Computes Grad-CAM (Selvaraju et al., ICCV 2017) of the last convolutional stage, without its final ReLU.

    network: its stage is the last block of `layer4`, which torchvision's ResNets and the BagNets have, or else the
    last convolution. images: (B, 3, H, W), normalised. classes: (B,) int64. Returns (B, H, W): the stage's output
    weighted by the class's mean gradients, upsampled bilinearly, as if its positions tiled the image (as captum does).

    For a BagNet these are the patches' contributions to the logit except the bias, upsampled from the patches' centres.
    Raises UserError if captum is not installed, or the network has no convolution.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise UserError(f"Grad-CAM needs a convolution, and {type(network).__name__} has none")
    stage = network.layer4[-1] if hasattr(network, "layer4") else convolutions[-1]
    method = _captum().LayerGradCam(network, stage)
    batch_size = max(1, PIXELS_AT_A_TIME // images[0, 0].numel())
    with torch.enable_grad():
        maps = [
            method.attribute(chunk.detach().requires_grad_(), target=target).detach()  # (b, 1, h, w)
            for chunk, target in zip(images.split(batch_size), classes.split(batch_size), strict=True)
        ]
    height, width = images.shape[2:]
    if isinstance(network, BagNet):
        return _between_patches(torch.cat(maps), network, height, width)[:, 0]
    return F.interpolate(torch.cat(maps), (height, width), mode="bilinear", align_corners=False)[:, 0]


def integrated_gradients(network: nn.Module, images: Tensor, classes: Tensor, steps: int = 32) -> Tensor:
    """Computes integrated gradients (Sundararajan et al., ICML 2017), summed over the colour channels.

    The path starts at zeros, which evidence.py pads images with too: the mean colour if the images are normalised by
    it, else black. images: (B, 3, H, W), as the network takes them.
    classes: (B,) int64. steps: points of the Gauss-Legendre quadrature. Returns (B, H, W); each map's sum approaches
    the image's logit minus that of zeros.

    Raises UserError if captum is not installed.
    """
    method = _captum().IntegratedGradients(network)
    batch_size = max(1, PIXELS_AT_A_TIME // images[0, 0].numel())
    with torch.enable_grad():
        maps = [
            method.attribute(
                image[None].detach(), baselines=0, target=int(label), n_steps=steps, internal_batch_size=batch_size
            ).detach()
            for image, label in zip(images, classes, strict=True)
        ]
    return torch.cat(maps).sum(1)


#: By their keys in names.MAPS.
APPROXIMATIONS = {"grad_cam": grad_cam, "integrated_gradients": integrated_gradients}


def _between_patches(maps: Tensor, network: BagNet, height: int, width: int) -> Tensor:
    """Upsamples patch values, (B, 1, h, w) -> (B, 1, height, width): bilinear between centres, the nearest beyond."""
    first = patch_corners(network, height, width)[0, 0] + (network.receptive_field - 1) / 2  # centre, (row, column)
    rows, columns = (
        (2 * (torch.arange(size) - centre) / network.stride + 1) / count - 1  # -1 to 1 from edge to edge of the map
        for size, centre, count in zip((height, width), first, maps.shape[2:], strict=True)
    )
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).to(maps)  # (height, width, 2): x, y
    grid = grid.expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError as error:
        raise UserError(
            "Grad-CAM and integrated gradients need captum: pip install 'bagnet-lightning[explain]'"
        ) from error
    return captum.attr
