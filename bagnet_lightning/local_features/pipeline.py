"""One run: images in, their local features, encodings and scores; a model file, predictions and measurements out."""

import os
import time
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from bagnet_lightning.config import plain
from bagnet_lightning.data.module import ImageData
from bagnet_lightning.data.pack import progress_bar
from bagnet_lightning.local_features.bag import Bags
from bagnet_lightning.local_features.encoding import Encoding
from bagnet_lightning.local_features.model import PARTS, LocalModel, made, save_local_model
from bagnet_lightning.machine import commit, device_name, peak_memory_mib, versions
from bagnet_lightning.predictions import write_predictions

AT_ONCE = 256  # images read and encoded


def run(config: DictConfig, folder: Path) -> dict:
    """Makes what `config` asks for in `folder`, and returns what was measured. Raises UserError."""
    code = {"versions": versions(), "commit": commit()}
    data: ImageData = instantiate(config.data, _partial_=True, _convert_="all")()
    data.setup()
    parts = {part: made(plain(config), part) for part in PARTS}
    features, encoding, classifier = parts.values()

    began = time.perf_counter()
    images = {"train": data.train_images, "val": data.val_images}
    bags = {
        split: features.bags(chosen, Path(config.cache).expanduser(), config.workers)
        for split, chosen in images.items()
    }
    feature_seconds = time.perf_counter() - began
    without = {split: each.without_features for split, each in bags.items()}
    print(f"{os.path.relpath(folder)}: {summary(images, without)}", flush=True)

    began = time.perf_counter()
    encoding.learn(bags["train"], config.seed)
    labels = {split: chosen.labels.numpy() for split, chosen in images.items()}
    classifier.learn(encoded(encoding, bags["train"]), labels["train"], len(data.class_ids))
    train_seconds = time.perf_counter() - began
    scores = torch.from_numpy(classifier.scores(encoded(encoding, bags["val"])))
    top = scores.topk(min(5, scores.shape[1])).indices.numpy()  # (N, 5)
    right = top == labels["val"][:, None]

    model = LocalModel(**parts, config=plain(config), classes=data.class_ids, class_names=data.class_names)
    save_local_model(model, folder / "model.safetensors")
    write_predictions(
        folder / "predictions.npz",
        data.class_names,
        labels["val"],
        top[:, 0],
        lambda places: data.val_images[torch.tensor(places)][0].numpy(),
    )
    arrays = [*encoding.arrays.values(), *classifier.arrays.values()]
    return {
        "best_val_accuracy": float(right[:, 0].mean()),
        "val_top5_accuracy": float(right.any(1).mean()),
        "feature_seconds": feature_seconds,
        "train_seconds": train_seconds,
        "model_bytes": (folder / "model.safetensors").stat().st_size,
        "parameters": sum(array.size for array in arrays),
        "without_keypoints": without,
        "explains": "keypoints",
        "train_images": len(images["train"]),
        "val_images": len(images["val"]),
        "validated_on": "holdout" if data.holdout else "val",
        "classes": len(data.class_ids),
        "peak_memory_mib": peak_memory_mib(torch.device("cpu")),
        "device": device_name(torch.device("cpu")),
        **code,
    }


def encoded(encoding: Encoding, bags: Bags) -> np.ndarray:
    """(N, W) float32: the vectors of all images."""
    vectors = None
    with progress_bar("encoding", len(bags)) as advance:
        for start in range(0, len(bags), AT_ONCE):
            block = encoding(bags.read(start, min(start + AT_ONCE, len(bags))))
            if vectors is None:
                vectors = np.empty((len(bags), block.shape[1]), np.float32)
            vectors[start : start + len(block)] = block
            advance(len(block))
    return vectors


def summary(images: dict, without: dict[str, int]) -> str:
    return "; ".join(
        f"{without[split]:,} of {len(chosen):,} {split} images without a keypoint" for split, chosen in images.items()
    )
