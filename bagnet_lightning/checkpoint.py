"""Checkpoints: written so that no fault leaves a broken one, read so that no file can run code."""

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import nn

from bagnet_lightning.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old file, flushes, then renames: until then the old one stands."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises OSError if the folder cannot be written or the disk is full; `path` is then as it was."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> dict:
        """The checkpoint's plain types and tensors; other content is refused whatever `weights_only` says."""
        return read_checkpoint(Path(path), map_location)


@dataclass(frozen=True)
class Trained:
    """A trained network and all that is needed to use it on images."""

    network: nn.Module  # in eval mode, on the CPU
    config: dict  # the run's composed configuration
    classes: list[str]
    class_names: list[str]
    mean: tuple[float, float, float]  # of pixels / 255; what the network's inputs were normalised by
    std: tuple[float, float, float]


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict:
    """What torch.save wrote to `path`. Raises UserError if it is missing, damaged, or holds more than data."""
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist; a run leaves best.ckpt in its folder") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"checkpoint {path} is refused: it holds more than tensors and plain types") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"checkpoint {path} cannot be read: {reason}") from error


def load_trained(path: str | Path) -> Trained:
    """The network of a checkpoint that a run wrote. Raises UserError if the file is not one."""
    checkpoint = read_checkpoint(Path(path))
    about = checkpoint.get("bagnet_lightning") if isinstance(checkpoint, dict) else None
    if about is None:
        raise UserError(f"checkpoint {path} is not of a bagnet_lightning run; give it as model.pretrained=PATH")
    model = {**about["config"]["model"], "pretrained": False}
    network = instantiate(model, _partial_=True)(num_classes=len(about["classes"]))
    weights = {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()}
    try:
        network.load_state_dict({key: weights[key] for key in network.state_dict()})
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"checkpoint {path} does not fit the network it names: {reason}") from error
    return Trained(network.eval(), **about)
