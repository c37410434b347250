"""A trained system of local features, encoding and linear classifier: its file, and what it says of an image."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from hydra.utils import instantiate
from safetensors import SafetensorError, safe_open

from bagnet_lightning.errors import UserError
from bagnet_lightning.files import write_bytes
from bagnet_lightning.local_features.bag import Bag

PARTS = ("features", "encoding", "classifier")


@dataclass(frozen=True)
class LocalModel:
    """config: the run's composed configuration."""

    features: object
    encoding: object
    classifier: object
    config: dict
    classes: list[str]
    class_names: list[str]

    def scores(self, bag: Bag) -> np.ndarray:
        """(n, classes) float32: the scores of the images."""
        return self.classifier.scores(self.encoding(bag))


def made(config: dict, part: str):
    """The features, encoding or classifier that a configuration asks for; nothing is learned yet."""
    settings = {key: value for key, value in config[part].items() if key not in ("name", "label")}
    return instantiate(settings, _partial_=True, _convert_="all")()


def keypoint_shares(model: LocalModel, bag: Bag) -> np.ndarray:
    """(M, classes): what each local feature adds to the scores of its image; they sum to the scores.

    Each element of an encoded image is a sum over its local features, raised to a power and normalised: of what the
    classifier makes of the element, each gets the share that it has in the sum. The bias is divided evenly.
    """
    shares = np.zeros((len(bag.descriptors), len(model.classes)), np.float64)
    for image in range(len(bag)):
        mine = slice(*bag.offsets[image : image + 2])
        count = mine.stop - mine.start
        if not count:
            continue
        one = Bag(bag.descriptors[mine], bag.keypoints[mine], np.array([0, count]))
        parts = model.encoding.parts(one).astype(np.float64)  # (m, W)
        sums = parts.sum(0)
        contributions = model.classifier.contributions(model.encoding.normalized(sums[None].astype(np.float32))[0])
        parts = np.divide(parts, sums, out=np.zeros_like(parts), where=sums != 0)
        shares[mine] = parts @ contributions + model.classifier.arrays["bias"] / count
    return shares


def save_local_model(model: LocalModel, path: Path) -> None:
    """Arrays, and in their metadata what is needed to use them."""
    arrays = {
        f"{part}.{name}": np.ascontiguousarray(array)
        for part in ("encoding", "classifier")
        for name, array in getattr(model, part).arrays.items()
    }
    about = {"config": model.config, "classes": model.classes, "class_names": model.class_names}
    write_bytes(path, safetensors.numpy.save(arrays, {"bagnet_lightning": json.dumps(about)}))


def load_local_model(path: str | Path) -> LocalModel:
    """What a run wrote to model.safetensors. Raises UserError if `path` is not that."""
    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {}).get("bagnet_lightning", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; a run of bagnet_lightning.classical leaves model.safetensors"
        ) from None
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(about, dict) or "features" not in about.get("config", {}):
        raise UserError(f"{path} is not of a run of bagnet_lightning.classical")
    parts = {part: made(about["config"], part) for part in PARTS}
    for part in ("encoding", "classifier"):
        prefix = f"{part}."
        parts[part].arrays = {
            name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)
        }
    return LocalModel(**parts, **about)
