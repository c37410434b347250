"""Trained systems of local features, an encoding and a classifier: their file, scores, and shares of keypoints."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy
from hydra.utils import instantiate

from bagnet_lightning.checkpoint import read_metadata
from bagnet_lightning.config import PARTS
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import write_bytes
from bagnet_lightning.local_features.bag import Bag, BagClassifier, Features
from bagnet_lightning.names import model_name
from bagnet_lightning.paths import weights_file
from bagnet_lightning.results import system_name

if TYPE_CHECKING:  # needs packages that check_installed looks for
    from bagnet_lightning.local_features.encoding import Encoding

EM_CHECKPOINT = "em/last.ckpt"  # the network that head=em has trained, in a run's folder


def check_installed() -> None:
    """Raises UserError if the required packages are missing or do not load."""
    try:
        import cv2  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"local features need OpenCV and scikit-learn: pip install 'bagnet-lightning[classical]' ({error})"
        ) from error


@dataclass(frozen=True)
class LocalModel:
    """A trained system. config: the run's composed configuration."""

    features: Features
    encoding: "Encoding"
    classifier: BagClassifier
    config: dict
    classes: list[str]
    class_names: list[str]

    def scores(self, bag: Bag) -> np.ndarray:
        """Computes the scores of the images, (n, classes) float32."""
        return self.classifier.scores(self.encoding(bag))


def full_name(config: Mapping, features: Features) -> str:
    """Returns the system's name, "SIFT, 1000 words, linear SVM"; a BagNet's includes its receptive field."""
    name = system_name(config)
    return name.replace("BagNet", model_name(features.model)) if hasattr(features, "model") else name


def made(config: dict, part: str):
    """Builds the features, encoding or classifier of a configuration; nothing is learned yet."""
    settings = {key: value for key, value in config[part].items() if key not in ("name", "label")}
    return instantiate(settings, _partial_=True, _convert_="all", _recursive_=False)()


def keypoint_shares(model: LocalModel, bag: Bag) -> np.ndarray:
    """Computes each local feature's share of its image's scores, (M, classes); with the bias they sum to the scores.

    Each element of an encoded image is a sum over its local features, raised to a power and normalised: its part of the
    score is divided among the features in proportion to their parts of the sum. If the power is a root and a sum has
    parts of both signs, only those of its own sign count: the root of a sum whose parts nearly cancel is far from zero,
    while their proportions of that sum are huge.
    """
    shares = np.zeros((len(bag.descriptors), len(model.classes)), np.float64)
    for image in range(len(bag)):
        rows = slice(*bag.offsets[image : image + 2])
        count = rows.stop - rows.start
        if not count:
            continue
        image_bag = Bag(bag.descriptors[rows], np.array([0, count]))
        parts = model.encoding.parts(image_bag).astype(np.float64)  # (m, W)
        sums = parts.sum(0)
        contributions = model.classifier.contributions(model.encoding.normalized(sums[None].astype(np.float32))[0])
        if model.encoding.power != 1:
            parts[np.sign(parts) != np.sign(sums)] = 0
            sums = parts.sum(0)
        parts = np.divide(parts, sums, out=np.zeros_like(parts), where=sums != 0)
        shares[rows] = parts @ contributions
    return shares


def save_local_model(model: LocalModel, path: Path) -> None:
    """Writes the arrays to a safetensors file, with the metadata needed to use them."""
    arrays = {
        f"{part}.{name}": np.ascontiguousarray(array)
        for part in ("encoding", "classifier")
        for name, array in getattr(model, part).arrays.items()
    }
    metadata = {"config": model.config, "classes": model.classes, "class_names": model.class_names}
    write_bytes(path, safetensors.numpy.save(arrays, {"bagnet_lightning": json.dumps(metadata)}))


def load_local_model(path: str | Path) -> LocalModel:
    """Loads a run's model.safetensors, or that of a run's folder. Raises UserError if `path` is not one.

    Only this package's features, encodings and classifiers are built, whatever the file names.
    """
    path = weights_file(path)
    metadata = _metadata(path)
    if metadata is None:
        raise UserError(f"{path} is not of a run of bagnet_lightning.classical")
    if metadata["config"].get("em"):  # its network lies beside it, wherever the run's folder is now
        metadata["config"]["features"]["checkpoint"] = str(path.parent / EM_CHECKPOINT)
    for part in PARTS:
        target = metadata["config"][part].get("_target_")
        if not _is_ours(str(target)):
            raise UserError(f"{path} is refused: it names {target}, which is not of bagnet_lightning.local_features")
    try:
        model = LocalModel(**{part: made(metadata["config"], part) for part in PARTS}, **metadata)
    except TypeError as error:  # settings that these classes do not have
        raise UserError(f"{path} was written by another version of bagnet_lightning: run classical again") from error
    arrays = safetensors.numpy.load_file(path)
    for part in ("encoding", "classifier"):
        prefix = f"{part}."
        getattr(model, part).arrays = {
            name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)
        }
    return model


def is_local_model(path: str | Path) -> bool:
    """Whether `path` is a file of `save_local_model`, or a folder that holds one. Raises UserError if it is damaged."""
    path = weights_file(path)
    return path.suffix == ".safetensors" and path.is_file() and _metadata(path) is not None


def _metadata(path: str | Path) -> dict | None:
    """Returns the metadata of a system's file; None for other files, such as an exported network."""
    metadata = read_metadata(path)
    config = metadata.get("config") if isinstance(metadata, dict) else None
    is_ours = isinstance(config, dict) and all(isinstance(config.get(part), dict) for part in PARTS)
    return metadata if is_ours else None


def _is_ours(target: str) -> bool:
    """Whether `target` is a class defined in a module of this package, and not a function or an import."""
    module, _, name = target.rpartition(".")
    if module.rpartition(".")[0] != __package__ or find_spec(module) is None:
        return False
    found = getattr(import_module(module), name, None)
    return isinstance(found, type) and found.__module__ == module
