"""Loads trained networks from files, so that no file can run code."""

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_method
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bagnet_lightning.errors import UserError, in_one_line
from bagnet_lightning.evidence import check_additive
from bagnet_lightning.files import write_bytes
from bagnet_lightning.models.bagnet import BagNet, bagnet9, bagnet17, bagnet33
from bagnet_lightning.models.of_config import TIMM, import_timm
from bagnet_lightning.models.pretrained import head_names
from bagnet_lightning.models.resnet import resnet18
from bagnet_lightning.names import model_name, network_name
from bagnet_lightning.paths import weights_file
from bagnet_lightning.safe_load import safe_load

NETWORKS = {f"{make.__module__}.{make.__name__}": make for make in (bagnet9, bagnet17, bagnet33, BagNet, resnet18)}


@dataclass(frozen=True)
class Trained:
    """A trained network and all that is needed to use it on images."""

    network: nn.Module  # in eval mode, on the CPU
    config: dict  # the run's composed configuration
    classes: list[str]  # empty for a pretrained backbone, whose network has no classifier
    class_names: list[str]
    mean: tuple[float, float, float]  # of pixels / 255, which the network's inputs are normalised by
    std: tuple[float, float, float]

    @property
    def name(self) -> str:
        """The model's name: "BagNet-17"."""
        return model_name(network_name(self.config["model"]))

    @property
    def image_size(self) -> int:
        """Side of the training images, px."""
        return self.config["image_size"]


class NotOurs(UserError):
    """A file of weights that this package did not write."""


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict:
    """Reads what torch.save wrote to `path`. Raises UserError if it is missing, damaged, or holds more than data."""
    try:
        return safe_load(path, map_location)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist; a run leaves best.ckpt in its folder") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))  # how torch names what it refuses
        held = f" ({found[1]})" if found else ", or is of another kind"
        raise UserError(f"checkpoint {path} is refused: it holds more than tensors and plain types{held}") from error
    except Exception as error:  # torch raises various exceptions for other files
        reason, *_ = in_one_line(error).split(". ")  # torch's message goes on with possible causes
        raise UserError(f"checkpoint {path} cannot be read: {reason}") from error


def load_trained(path: str | Path) -> Trained:
    """Loads the network of a run's checkpoint, or of its export: safetensors, or a folder for a model hub.

    Raises UserError if the file is neither. Whatever network it names, only those of this package and of timm are
    built, and those that the environment variable BAGNET_NETWORKS lists (mynet.SmallNet,...).
    """
    trained = load_backbone(path)
    if not trained.classes:
        raise UserError(
            f"checkpoint {path} is a backbone without a classifier; train one on it with model.pretrained={path}"
        )
    return trained


def load_backbone(path: str | Path) -> Trained:
    """Loads the files of load_trained, and also the backbone.safetensors that `pretrain` writes: to use its features.

    For a backbone, `classes` is empty and the classifier (`fc`) the identity: the network returns its mean features.
    """
    if not weights_file(path).exists() and Path(path, "best.ckpt").exists():
        raise UserError(f"checkpoint {path} is a folder: give {Path(path, 'best.ckpt')}")
    path = weights_file(path)
    if path.suffix in (".onnx", ".pt2"):
        raise UserError(f"checkpoint {path} is for other programs; give best.ckpt, or what format=safetensors exported")
    try:
        about, weights = read_network(path)
        model = about["config"]["model"]
        of_weights = ("pretrained", "checkpoint_path")  # that the training started from
        options = {key: value for key, value in model.items() if key not in ("_target_", *of_weights)}
        network = _constructor(model, path)(num_classes=max(1, len(about["classes"])), **options)
        if not about["classes"]:
            network.fc = nn.Identity()
        network.load_state_dict({key: weights[key] for key in network.state_dict()})
        trained = Trained(network.eval(), **about)
        if model["_target_"] not in NETWORKS and about["classes"]:
            _check_outputs(trained)
        return trained
    except UserError:
        raise
    except Exception as error:  # constructors raise various exceptions for settings that they do not take
        *_, reason = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"checkpoint {path} does not fit the network it names: {reason.strip()}") from error


@torch.no_grad()
def _check_outputs(trained: Trained) -> None:
    """Raises an exception if a network of others gives no logits, or if a BagNet's are not its patches' mean."""
    size = trained.image_size
    if isinstance(trained.network, BagNet):
        check_additive(trained.network, size)
    logits = trained.network(torch.zeros(1, 3, size, size))
    if logits.shape != (1, len(trained.classes)):
        raise ValueError(f"its outputs are no logits of {len(trained.classes)} classes")


def _constructor(model: dict, path: Path) -> Callable[..., nn.Module]:
    """Returns the constructor of the network that the checkpoint `path` names in its configuration's `model`.

    It is one of this package, timm's for a network of timm itself (not of a hub or folder, whose weights it would
    load), or allowed by the user: a checkpoint is data, and must not choose what is called.
    """
    target = model["_target_"]
    if target in NETWORKS:
        return NETWORKS[target]
    if target == TIMM:
        timm = import_timm()
        if not timm.is_model(model["model_name"]):
            name = model["model_name"]
            raise UserError(f"checkpoint {path} is of {name}, which is no network of this timm, {timm.__version__}")
        return timm.create_model
    if target not in os.environ.get("BAGNET_NETWORKS", "").split(","):
        raise UserError(
            f"checkpoint {path} names the network {target}, which is not part of this package; if it is yours, say so "
            f"by the environment variable BAGNET_NETWORKS={target}"
        )
    try:
        return get_method(target)
    except Exception as error:  # the user's module may raise anything
        raise UserError(f"BAGNET_NETWORKS: {target} cannot be imported from here: {error}") from error


def adapt_head(network: nn.Module, classes: list[str], known: list[str], weights: dict[str, Tensor]) -> str | None:
    """Copies the rows of the network's head of those `classes` that are `known` to `weights`; others begin anew.

    For a network after load_pretrained, which compares shapes only: its rows may be of other classes. Returns a message
    about the change; None, with nothing changed, if the classes are the same, or those of the weights are not known.
    """
    if not known or known == classes:
        return None
    heads = {name: network.get_submodule(name) for name in head_names(network)}
    own = {f"{name}.{part}": rows for name, head in heads.items() for part, rows in head.named_parameters()}
    shapes = {key: (len(known), *rows.shape[1:]) for key, rows in own.items() if len(rows) == len(classes)}
    if not own or any(key not in weights or weights[key].shape != shapes.get(key) for key in own):
        return (
            "note: which layer tells its classes apart is not known; it stays as in the file, whose classes are others"
        )
    found = [name for name in classes if name in known]
    rows, known_rows = [classes.index(name) for name in found], [known.index(name) for name in found]
    for head in heads.values():
        head.reset_parameters()
    with torch.no_grad():
        for key, parameter in own.items():
            parameter[rows] = weights[key][known_rows]
    if len(found) == len(classes):
        return f"its last layer keeps the rows of these {len(classes)} classes"
    return f"its last layer begins anew, but for {len(found)} of {len(classes)} classes that the file knows"


def write_backbone(network: nn.Module, about: dict, path: Path) -> None:
    """Writes all of `network` but its classifier, as a state dict for `load_backbone` and `load_pretrained`.

    about: config, mean and std, as in Trained; of the config, the model and the choice of images are written.
    """
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    metadata = {**about, "config": published(about["config"]), "classes": [], "class_names": []}
    write_bytes(path, save(weights, {"format": "pt", "bagnet_lightning": json.dumps(metadata)}))


def published(config: dict) -> dict:
    """Returns the part of a run's configuration that files for others hold: the network and its images, no paths."""
    model, data = config["model"], config["data"]
    choice = {key: data[key] for key in ("name", "classes", "holdout", "fold", "group") if key in data}
    model = {key: value for key, value in model.items() if key != "checkpoint_path"}
    return {
        **{key: config[key] for key in ("image_size", "train_digest")},
        "model": {**model, "pretrained": model.get("pretrained", False) is not False},
        "data": choice,
        "seen": config.get("seen", []),
    }


def trainings(about: dict) -> list[dict]:
    """Returns the trainings that a network has been through, the latest last: each one's classes and choice of images.

    about: from read_network. A run that starts from the network's weights keeps them as "seen" in its configuration.
    """
    config = published(about["config"])
    latest = {**{key: config[key] for key in ("image_size", "train_digest", "data")}, "classes": about["classes"]}
    return [*config["seen"], latest]


def read_metadata(path: str | Path) -> object:
    """Returns this package's metadata in a safetensors file, or None. Raises UserError if it cannot be read."""
    try:
        with safe_open(path, "np") as file:
            return json.loads((file.metadata() or {}).get("bagnet_lightning", "null"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; `export format=safetensors` makes one of a network, and `classical` leaves one"
        ) from None
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {in_one_line(error)}") from error


def read_network(path: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """Returns the fields of Trained but the network, and its weights. Raises NotOurs for another program's file."""
    path = weights_file(path)
    try:
        about, weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_run(path)
        if missing := {"image_size", "train_digest"} - about["config"].keys():
            raise UserError(
                f"checkpoint {path} was written by an earlier version of bagnet_lightning, without {min(missing)}: "
                "use that version, or train the network again"
            )
        for training in trainings(about):
            if {"classes", "image_size", "train_digest"} - training.keys() or not isinstance(training["data"], dict):
                raise KeyError("seen")
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {path} is not whole: {in_one_line(error)}") from error
    return about, weights


def read_if_ours(path: str | Path) -> tuple[dict, dict[str, Tensor]] | None:
    """Returns read_network of a file, or None if it is another program's. Raises UserError for an old one of ours."""
    try:
        return read_network(path)
    except NotOurs:
        return None


def _read_run(path: Path) -> tuple[dict, dict[str, Tensor]]:
    checkpoint = read_checkpoint(path)
    about = checkpoint.get("bagnet_lightning") if isinstance(checkpoint, dict) else None
    if about is None:
        raise NotOurs(f"checkpoint {path} is not of a bagnet_lightning run; give it as model.pretrained=PATH")
    return about, {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()}


def _read_safetensors(path: Path) -> tuple[dict, dict[str, Tensor]]:
    metadata = read_metadata(path)
    if not isinstance(metadata, dict):
        raise NotOurs(f"checkpoint {path} was not exported by bagnet_lightning; give it as model.pretrained=PATH")
    if "mean" not in metadata:
        raise UserError(f"checkpoint {path} is a system of bagnet_lightning.classical, not a network: use explain")
    about = {field.name: metadata[field.name] for field in fields(Trained) if field.name != "network"}
    return {**about, "mean": tuple(about["mean"]), "std": tuple(about["std"])}, load_file(path)
