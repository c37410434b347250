"""Entry points for torch.hub.

network = torch.hub.load("REPOSITORY_OR_FOLDER", "bagnet17", source="local", num_classes=10)
"""

dependencies = ["torch", "torchvision", "hydra", "safetensors"]

from bagnet_lightning.models.bagnet import bagnet9, bagnet17, bagnet33  # noqa: E402, F401


def from_checkpoint(path: str):
    """Loads a trained network from a run's best.ckpt, or from what `export` made of it (safetensors or a hub's folder).

    It takes images (B, 3, H, W), float32, RGB from 0 to 1, and returns {"logits": (B, classes), "evidence": (B, h, w,
    classes)}; a ResNet-18 returns the logits alone. Its attributes are classes and class_names.
    """
    from bagnet_lightning.checkpoint import load_trained
    from bagnet_lightning.exporting.portable import Portable

    return Portable(load_trained(path))
