"""Networks from a configuration."""

from functools import partial

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from bagnet_lightning.errors import UserError
from bagnet_lightning.models.pretrained import load_pretrained
from bagnet_lightning.names import network_name


def network_of(config: DictConfig, num_classes: int) -> nn.Module:
    """Returns the network of a configuration's model group, with the weights of the file `pretrained` if it is a path.

    Any network can start from a file, also one of the user's own; what pretrained=true means is the network's matter.
    Raises UserError if the weights are not those of the network, or cannot be read.
    """
    if "checkpoint_path" in config and config._target_ == "timm.create_model":
        raise UserError("model.checkpoint_path: give the file as model.pretrained=PATH, which looks into it first")
    make, pretrained = instantiate(config, _partial_=True), config.get("pretrained")
    if not isinstance(pretrained, str):
        return make(num_classes=num_classes)
    make = partial(make.func, **{key: value for key, value in make.keywords.items() if key != "pretrained"})
    return load_pretrained(make(num_classes=num_classes), network_name(config), pretrained)
