"""Checkpoints as runs leave them, of networks that were never trained."""

from pathlib import Path

import torch
from conftest import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf

CLASSES = ["n01", "n02", "n03", "n04", "n05", "n06", "n07"]
CLASS_NAMES = ["goldfish", "trilobite", "scorpion", "crane", "crane", "<b>bold</b>", "widow, black"]


def write_checkpoint(path: Path, model: str, classes: list[str] = CLASSES, settings: dict | None = None) -> Path:
    """A seeded network with lively batch norms, on textures of 40 px. settings: of the model, instead of its own."""
    width = [] if model == "resnet18" else ["model.width=0.25"]
    config = OmegaConf.to_container(
        composed("data=textures", "data.image_size=40", "data.val_images=12", f"model={model}", *width), resolve=True
    )
    config |= {"image_size": 40, "train_digest": "0" * 64, "model": settings or config["model"]}
    torch.manual_seed(1)
    network = instantiate(config["model"], num_classes=len(classes))
    for name, value in network.state_dict().items():
        if "bn" in name and name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.3)
    if hasattr(network, "fc"):
        torch.nn.init.normal_(network.fc.bias)
    about = {
        "config": config,
        "classes": classes,
        "class_names": CLASS_NAMES if classes == CLASSES else classes,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.3, 0.25, 0.2),
    }
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"bagnet_lightning": about, "state_dict": weights}, path)
    return path
