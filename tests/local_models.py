"""Systems of local features as classical leaves them, but with words and weights drawn at random."""

import numpy as np
import torch
from conftest import composed
from omegaconf import OmegaConf
from trained_checkpoints import CLASS_NAMES, CLASSES

from bagnet_lightning.local_features.model import PARTS, LocalModel, made

WORDS = 12


def local_model(*choices: str) -> LocalModel:
    """choices: of classical, such as "features=orb"; on images of 40 px, of CLASSES."""
    size = f"encoding.codebook.size={WORDS}"
    config = composed("data=textures", "data.image_size=40", "data.val_images=12", size, *choices, name="classical")
    config = OmegaConf.to_container(config, resolve=True) | {"image_size": 40}
    parts = {part: made(config, part) for part in PARTS}
    draw = np.random.default_rng(0)
    described, _ = parts["features"].describe(noise(3))
    words = described.descriptors[draw.choice(len(described.descriptors), WORDS, replace=False)]
    parts["encoding"].arrays = {
        "words": words if words.shape[1] == 32 else words.astype(np.float32)
    }  # bits, or numbers
    width = parts["classifier"].mapped(torch.zeros(1, WORDS)).shape[1]
    shapes = {"weight": (len(CLASSES), width), "bias": len(CLASSES)}
    parts["classifier"].arrays = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return LocalModel(**parts, config=config, classes=CLASSES, class_names=CLASS_NAMES)


def noise(count: int, side: int = 40) -> np.ndarray:
    """(count, side, side, 3) uint8: tiles of 4 px, at whose edges detectors find something."""
    coarse = np.random.default_rng(1).integers(0, 256, (count, side // 4, side // 4, 3), dtype=np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)
