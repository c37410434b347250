"""Trained networks for other programs: with normalisation, evidence beside the logits, and metadata."""

import torch
from torch import Tensor, nn

import bagnet_lightning
from bagnet_lightning.checkpoint import Trained, published
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.names import network_name


class Portable(nn.Module):
    """A network from decoded images to logits and, for a BagNet, to the evidence whose mean they are."""

    def __init__(self, trained: Trained):
        super().__init__()
        self.network = trained.network
        self.classes, self.class_names = trained.classes, trained.class_names
        self.register_buffer("mean", torch.tensor(trained.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(trained.std).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes logits and evidence. images: (B, 3, H, W) float32, RGB from 0 to 1.

        Returns "logits" (B, classes) and, for a BagNet, "evidence" (B, h, w, classes): the logits of its patches, one
        every `stride` px, whose mean over h, w is the image's logits.
        """
        images = (images - self.mean) / self.std
        if not isinstance(self.network, BagNet):
            return {"logits": self.network(images)}
        evidence = self.network.patch_logits(images)
        return {"logits": evidence.mean((1, 2)), "evidence": evidence}


def describe(trained: Trained, normalises: bool) -> dict:
    """Returns the metadata of an exported file: how to use it and how to build the network again, without any paths.

    normalises: whether the file is a Portable's, or holds the weights alone.
    """
    about = {
        "model": network_name(trained.config["model"]),
        "input": "images: (batch, 3, height, width) float32, RGB from 0 to 1"
        + ("; the graph normalises them itself" if normalises else ", less the mean and divided by std"),
        "logits": "(batch, classes)",
    }
    if isinstance(trained.network, BagNet):
        about |= {
            "evidence": "(batch, h, w, classes): the logits of the patches, whose mean over h, w is the image's logits",
            "patches": "patch (i, j) covers receptive_field px from row stride * i - pad // 2, column stride * j - "
            "pad // 2 of the image",
            "receptive_field": trained.network.receptive_field,
            "stride": trained.network.stride,
            "pad": trained.network.pad,
        }
    return about | {
        "image_size": trained.image_size,
        "classes": trained.classes,
        "class_names": trained.class_names,
        "mean": trained.mean,
        "std": trained.std,
        "config": published(trained.config),
        "bagnet_lightning": bagnet_lightning.__version__,
    }
