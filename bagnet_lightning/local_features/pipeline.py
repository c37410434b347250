"""One run of `classical`: extracts and encodes local features, trains a classifier, and measures it."""

import os
import time
from pathlib import Path

import cv2
import numpy as np
import sklearn
import torch
from omegaconf import DictConfig

from bagnet_lightning.config import PARTS, plain, weights_sha256
from bagnet_lightning.data.batches import Images
from bagnet_lightning.data.image_data import ImageData
from bagnet_lightning.data.of_config import data_of
from bagnet_lightning.errors import UserError
from bagnet_lightning.inference.logits import best_device
from bagnet_lightning.local_features.bag import BagClassifier, Bags, Features
from bagnet_lightning.local_features.classifier import Argmax
from bagnet_lightning.local_features.em import fine_tuned
from bagnet_lightning.local_features.encoding import Decisions, Encoding, Mean
from bagnet_lightning.local_features.extraction import extracted
from bagnet_lightning.local_features.model import EM_CHECKPOINT, LocalModel, full_name, made, save_local_model
from bagnet_lightning.local_features.patches import BagNetFeatures, Patches
from bagnet_lightning.machine.device import device_name, peak_memory_mib
from bagnet_lightning.machine.versions import commit, versions
from bagnet_lightning.predictions import write_predictions
from bagnet_lightning.progress_bar import progress_bar

AT_ONCE = 64  # images read and encoded at a time


def run(config: DictConfig, folder: Path) -> dict:
    """Trains the system of `config` in `folder`, and returns the measurements. Raises UserError."""
    code_versions = {
        "versions": versions() | {"opencv": cv2.__version__, "scikit_learn": sklearn.__version__},
        "commit": commit(),
    }
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    data = data_of(config.data)
    data.setup()
    data.check_classes()
    images = chosen_images(config, data)
    settings, measured = plain(config) | {"image_size": data.store.side}, {}
    if config.fit_on == "holdout":  # for who opens the system, val is what it has not learned from
        settings["data"] |= {"holdout": 0.0, "fold": 0}
    features, encoding, classifier = (made(settings, part) for part in PARTS)
    check(features, encoding, classifier)
    if isinstance(features, BagNetFeatures):
        features.check(data)
        measured = {
            "model": features.model,
            "system": full_name(config, features),
            "mean_accuracy": features.mean_accuracy(images["val"], data.class_ids),
        }
    tuning_seconds = 0.0
    if config.em:
        measured["em"], tuning_seconds = fine_tuned(config, folder / "em")
        checkpoint = str(folder / EM_CHECKPOINT)
        settings["features"] |= {"checkpoint": checkpoint, "sha256": weights_sha256(checkpoint)}
        features = made(settings, "features")
        measured["em_mean_accuracy"] = features.mean_accuracy(images["val"], data.class_ids)

    if isinstance(features, BagNetFeatures):
        bags = {split: Patches(features, chosen) for split, chosen in images.items()}
    else:
        cache = Path(config.cache).expanduser()
        bags = {split: extracted(features, chosen, cache, config.workers) for split, chosen in images.items()}
    without_features = {split: each.without_features for split, each in bags.items()}
    print(f"{os.path.relpath(folder)}: {summary(images, without_features, measured.get('mean_accuracy'))}", flush=True)

    began, described_before = time.perf_counter(), bags["train"].seconds
    encoding.learn(bags["train"], config.seed)
    labels = {split: chosen.labels.numpy() for split, chosen in images.items()}
    classifier.learn(encoded(encoding, bags["train"]), labels["train"], len(data.class_ids))
    describing_seconds = bags["train"].seconds - described_before  # a network describes patches when they are read
    train_seconds = tuning_seconds + time.perf_counter() - began - describing_seconds
    scores = torch.from_numpy(classifier.scores(encoded(encoding, bags["val"])))
    top = scores.topk(min(5, scores.shape[1])).indices.numpy()  # (N, 5)
    correct = top == labels["val"][:, None]

    model = LocalModel(
        features, encoding, classifier, config=settings, classes=data.class_ids, class_names=data.class_names
    )
    save_local_model(model, folder / "model.safetensors")
    write_predictions(
        folder,
        data.class_names,
        labels["val"],
        top[:, 0],
        lambda positions: images["val"][torch.tensor(positions)][0].numpy(),
    )
    arrays = [*encoding.arrays.values(), *classifier.arrays.values()]
    return {
        "best_val_accuracy": float(correct[:, 0].mean()),
        "val_top5_accuracy": float(correct.any(1).mean()),
        "feature_seconds": bags["train"].seconds + bags["val"].seconds,
        "train_seconds": train_seconds,
        "model_bytes": (folder / "model.safetensors").stat().st_size + 4 * features.parameters,
        "parameters": sum(array.size for array in arrays) + features.parameters,
        "without_keypoints": without_features,
        "explains": features.explains if classifier.additive else None,
        "train_images": len(images["train"]),
        "val_images": len(images["val"]),
        "validated_on": "holdout" if data.holdout and config.fit_on == "train" else "val",
        "classes": len(data.class_ids),
        "peak_memory_mib": peak_memory_mib(best_device()),
        "device": device_name(best_device()),
        **measured,
        **code_versions,
    }


def check(features: Features, encoding: Encoding, classifier: BagClassifier) -> None:
    """Raises UserError for parts that do not fit together, before the work begins."""
    if isinstance(encoding, Decisions) and not features.logits:
        raise UserError("encoding=decisions needs a network's decisions: add features=bagnet features.output=logits")
    if isinstance(classifier, Argmax) and not (features.logits and isinstance(encoding, Mean | Decisions)):
        raise UserError("classifier=argmax takes vectors for scores: use head=mean, which averages a network's logits")
    if features.binary and not encoding.of_bits:
        raise UserError("ORB's and BRIEF's descriptors are bits, which have no mean: use encoding=bow")
    if encoding.signed and classifier.kernel:
        raise UserError(
            f"classifier.kernel={classifier.kernel} takes histograms, and Fisher vectors have negative elements: "
            "use classifier=linear"
        )


def chosen_images(config: DictConfig, data: ImageData) -> dict[str, Images]:
    """Returns the images that encoding and classifier learn from, "train", and those they are measured on, "val"."""
    if config.fit_on == "train":
        return {"train": data.train_images, "val": data.val_images}
    if not data.holdout:
        raise UserError("fit_on=holdout: add data.holdout=SHARE, what the checkpoint's run held out")
    whole = data_of({**config.data, "holdout": 0.0, "fold": 0})
    whole.setup()
    return {"train": data.val_images, "val": whole.val_images}


def encoded(encoding: Encoding, bags: Bags) -> np.ndarray:
    """Encodes all images, (N, W) float32."""
    vectors = None
    with progress_bar("encoding", len(bags)) as advance:
        for start in range(0, len(bags), AT_ONCE):
            block = encoding(bags.read(start, min(start + AT_ONCE, len(bags))))
            if vectors is None:
                vectors = np.empty((len(bags), block.shape[1]), np.float32)
            vectors[start : start + len(block)] = block
            advance(len(block))
    return vectors


def summary(images: dict[str, Images], without_features: dict[str, int], mean_accuracy: float | None) -> str:
    parts = [f"{len(chosen):,} {split} images" for split, chosen in images.items()]
    if any(without_features.values()):
        parts += [f"{count:,} of the {split} images without a keypoint" for split, count in without_features.items()]
    if mean_accuracy is not None:
        parts.append(f"{mean_accuracy:.4f} by the network's own mean of its patches")
    return "; ".join(parts)
