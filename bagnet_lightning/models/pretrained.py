"""Loads pretrained weights: the public ImageNet ones, or a local file's."""

import re
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bagnet_lightning.errors import UserError, in_one_line
from bagnet_lightning.paths import weights_file
from bagnet_lightning.safe_load import safe_load

_BAGNETS = (
    "https://bitbucket.org/wielandbrendel/bag-of-feature-pretrained-models/raw/249e8fa82c0913623a807d9d35eeab9da7dcc2a8"
)
PUBLIC_WEIGHTS = {  # the eight hex digits are the first of the file's sha256
    "bagnet9": f"{_BAGNETS}/bagnet8-34f4ccd2.pth.tar",
    "bagnet17": f"{_BAGNETS}/bagnet16-105524de.pth.tar",
    "bagnet33": f"{_BAGNETS}/bagnet32-2ddd53ed.pth.tar",
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
}


def load_pretrained(network: nn.Module, name: str, pretrained: bool | str) -> nn.Module:
    """Loads pretrained weights into `network` and returns it.

    The head (head_names) stays as it was initialised if the file's has another number of classes, or if the file has
    none, as a backbone that `pretrain` wrote.

    pretrained: False (as initialised), True (the public ImageNet weights of `name`, downloaded once into torch.hub's
        cache, and then checked by their sha256) or the path of a local file: a state dict saved by torch, a checkpoint
        of this package, safetensors, or a folder for a model hub. Only tensors and plain types are ever unpickled.
    Raises UserError if the file cannot be downloaded or read, or belongs to another network.
    """
    if pretrained is False:
        return network
    if pretrained is True and name not in PUBLIC_WEIGHTS:
        raise UserError(f"model.pretrained=true: there are no public weights of {name}; give the path of a file")
    source = PUBLIC_WEIGHTS[name] if pretrained is True else str(pretrained)
    weights = _download(source) if pretrained is True else _read(Path(source))
    own = network.state_dict()
    names = head_names(network)
    head = [key for key in own if key.rpartition(".")[0] in names]
    without_head = not any(key in weights for key in head)
    for key in head:
        if without_head or (key in weights and weights[key].shape != own[key].shape):
            weights[key] = own[key]
    mismatched = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    mismatched += [key for key in weights if key not in own]
    mismatched += [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if mismatched:
        raise UserError(
            f"{source} does not hold the weights of this {name}: {len(mismatched)} tensors differ, the first is "
            f"{mismatched[0]}; choose the model, and settings of it such as model.width, that the file was made with"
        )
    network.load_state_dict(weights, strict=False)
    return network


def head_names(network: nn.Module) -> list[str]:
    """Returns the names of the layers that give logits: those that timm knows, else ["fc"], or the last linear one."""
    known = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = [known] if isinstance(known, str) else [*known]
    linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    return names or (["fc"] if "fc" in linear else linear[-1:])


def _download(url: str) -> dict[str, Tensor]:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        digits = re.search(r"-([0-9a-f]{8})\.", path.name)[1]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digits)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"cannot download pretrained weights from {url} ({error}); fetch the file on another machine and give "
                "it as model.pretrained=PATH"
            ) from error
    return _read(path)


def _read(path: Path) -> dict[str, Tensor]:
    path = weights_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return state_dict_of(safe_load(path), path)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"model.pretrained={path}: there is no such file") from None
    except Exception as error:  # torch raises various exceptions for other files
        reason, *_ = in_one_line(error).split(". ")
        raise UserError(f"{path} cannot be read as weights: {reason}") from error


def state_dict_of(loaded: object, source: object) -> dict[str, Tensor]:
    """Returns the tensors of a state dict, or of a checkpoint's ("state_dict", "model"), without wrappers' prefixes."""
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{source} holds no state dict of tensors")
    if any(key.startswith("network.") for key in loaded):  # a run of this package, whose loss may have weights too
        loaded = {key: value for key, value in loaded.items() if key.startswith("network.")}
    return {key.removeprefix("module.").removeprefix("network."): value for key, value in loaded.items()}
