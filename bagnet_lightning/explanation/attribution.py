"""Approximate attributions for any network, by captum, to compare exact evidence (evidence.py) with.

    grad_cam(network, images, classes)              # (B, H, W)
    integrated_gradients(network, images, classes)  # (B, H, W)
    methods_for(network, height, width)             # those of the two that say something about this network

Both keep their sign: positive pixels are evidence for the class, negative ones against it. Their unit is not the logit
of a patch, so maps of different methods are compared by their pattern, not by their values. Networks are expected in
evaluation mode; neither their parameters nor their gradients are touched.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import patch_corners
from bagnet_lightning.models.bagnet import BagNet

PIXELS_AT_A_TIME = 2**18  # in a forward and backward pass: 64 images of 64 px

Maps = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a network, images and a class for each, as below


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Computes Grad-CAM (Selvaraju et al., ICCV 2017) of the last convolutional stage, without its final ReLU.

    images: (B, 3, H, W), normalised. classes: (B,) int64. Returns (B, H, W): the stage's output weighted by the class's
    mean gradients, upsampled bilinearly, as if its positions tiled the image (as captum does).

    For a BagNet these are the patches' contributions to the logit except the bias, upsampled from the patches' centres.
    Raises UserError if captum is not installed, or the network has no such stage.
    """
    height, width = images.shape[2:]
    stage = _last_stage(network, height, width)
    if stage is None:
        raise UserError(
            f"Grad-CAM needs convolutions after the stem that see more than one position, and {type(network).__name__} "
            f"has none for images of {width} x {height} px"
        )
    method = _captum().LayerGradCam(network, stage)
    batch_size = max(1, PIXELS_AT_A_TIME // (height * width))
    with torch.enable_grad():
        maps = [
            method.attribute(chunk.detach().requires_grad_(), target=target).detach()  # (b, 1, h, w)
            for chunk, target in zip(images.split(batch_size), classes.split(batch_size), strict=True)
        ]
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


def methods_for(network: nn.Module, height: int, width: int) -> dict[str, Maps]:
    """Returns the methods for a network and images of height x width px, by their keys in names.MAPS."""
    methods = {"grad_cam": grad_cam, "integrated_gradients": integrated_gradients}
    if _last_stage(network, height, width) is None:
        del methods["grad_cam"]
    return methods


def _last_stage(network: nn.Module, height: int, width: int) -> nn.Module | None:
    """Finds the last module to run that holds a convolution and whose output has more than one position.

    The first convolution does not count: that of a vision transformer is its only one, and says nothing of what the
    layers above make of the patches. None: there is no such module.
    """
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    ran = []

    def note(module: nn.Module, _: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
            ran.append(module)

    hooks = [
        module.register_forward_hook(note)
        for module in network.modules()
        if any(isinstance(part, nn.Conv2d) and part is not first for part in module.modules())
    ]
    try:
        with torch.no_grad():
            network(next(network.parameters()).new_zeros(1, 3, height, width))
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1] if ran else None


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
