"""Approximate attributions for any network, by captum, to compare exact evidence (evidence.py) with.

    grad_cam(network, images, classes)              # (B, H, W)
    integrated_gradients(network, images, classes)  # (B, H, W)
    methods_for(network, height, width)             # those of the two that say something about this network

Both keep their sign: positive pixels are evidence for the class, negative ones against it. Their unit is not the logit
of a patch, so maps of different methods are compared by their pattern, not by their values. Networks are expected in
evaluation mode; neither their parameters nor their gradients are touched.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import patch_corners
from bagnet_lightning.models.bagnet import BagNet

PIXELS_AT_A_TIME = 2**18  # in a forward and backward pass: 64 images of 64 px

NO_STAGE = "its last features are no map of two positions or more"

Maps = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a network, images and a class for each, as below


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Computes Grad-CAM (Selvaraju et al., ICCV 2017) of the last features, without its final ReLU.

    images: (B, 3, H, W), normalised. classes: (B,) int64. Returns (B, H, W): the features weighted by the class's mean
    gradients, upsampled bilinearly, as if their positions tiled the image (as captum does).

    For a BagNet these are the patches' contributions to the logit except the bias, upsampled from the patches' centres.
    Raises UserError if captum is not installed, or the network has no such features.
    """
    height, width = images.shape[2:]
    if (found := _last_stage(network, height, width)) is None:
        raise UserError(f"{type(network).__name__} has no Grad-CAM: {NO_STAGE}")
    method = _captum().LayerGradCam(*found)
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


class _Halves(nn.Module):
    """A BagNet, or a network of timm, with the features (B, C, h, w) between its halves in the module `stage`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.stage = network, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        if isinstance(self.network, BagNet):
            return self.network.fc(self.stage(self.network.features(images)).mean((2, 3)))
        features = self.network.forward_features(images)
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            return self.network.forward_head(self.stage(features.movedim(-1, 1)).movedim(1, -1))
        return self.network.forward_head(self.stage(features))


def _last_stage(network: nn.Module, height: int, width: int) -> tuple[nn.Module, nn.Module] | None:
    """Finds the last features (B, C, h, w) for images of height x width px, of more than one position.

    Of BagNets and of timm's networks it is known what they are; of others they are what the last module to run gives
    that holds a convolution, but not the first one alone: that of a vision transformer says nothing of what the layers
    above make of the patches. Returns the network and the module whose output they are; None: there are none.
    """
    if isinstance(network, BagNet) or type(network).__module__.startswith("timm."):
        network = _Halves(network)
        modules = {"stage": network.stage}
    else:
        first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
        modules = {
            name: module
            for name, module in network.named_modules()
            if any(isinstance(part, nn.Conv2d) and part is not first for part in module.modules())
        }
    maps, pooled = [], []  # names

    def note(name: str, module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and len(output) == 2:
            if output[0, 0].numel() > 1:
                maps.append(name)
            elif type(module) is not nn.Sequential:  # of which the parts before the pooling are stages, too
                pooled.append(name)

    hooks = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            network(next(network.parameters()).new_zeros(2, 3, height, width))
    finally:
        for hook in hooks:
            hook.remove()
    maps = [name for name in maps if not any(name.startswith(f"{outer}.") for outer in pooled)]
    return (network, modules[maps[-1]]) if maps else None


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
