"""Networks from a configuration."""

from functools import partial
from types import ModuleType

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from bagnet_lightning.errors import UserError
from bagnet_lightning.models.pretrained import load_pretrained
from bagnet_lightning.names import network_name

TIMM = "timm.create_model"


def network_of(config: DictConfig, num_classes: int) -> nn.Module:
    """Returns the network of a configuration's model group, with the weights of the file `pretrained` if it is a path.

    Any network can start from a file, also one of the user's own; what pretrained=true means is the network's matter.
    Raises UserError if the weights are not those of the network, or timm does not have it.
    """
    if config._target_ == TIMM:
        if "checkpoint_path" in config:
            raise UserError("model.checkpoint_path: give the file as model.pretrained=PATH")
        if ":" not in config.model_name and not import_timm().is_model(config.model_name):
            raise UserError(
                f"model.model_name={config.model_name}: timm has no such network; timm.list_models() has all"
            )
    make, pretrained = instantiate(config, _partial_=True), config.get("pretrained")
    if not isinstance(pretrained, str):
        return make(num_classes=num_classes)
    make = partial(make.func, **{key: value for key, value in make.keywords.items() if key != "pretrained"})
    return load_pretrained(make(num_classes=num_classes), network_name(config), pretrained)


def import_timm() -> ModuleType:
    """Returns timm. Raises UserError if it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise UserError("networks of timm: pip install 'bagnet-lightning[timm]'") from error
    return timm
