"""Networks from a configuration."""

import inspect
from types import ModuleType

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from bagnet_lightning.errors import UserError
from bagnet_lightning.models.pretrained import load_pretrained
from bagnet_lightning.names import nearest, network_name

TIMM = "timm.create_model"
# Arguments of timm's that are set here, or hold a path or weights.
RESERVED = (
    *("num_classes", "in_chans", "features_only"),
    *("checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"),
)


def check_network(config: DictConfig) -> None:
    """Raises UserError for a model group that asks for a network which timm lacks, or one that is no classifier."""
    if config._target_ != TIMM:
        return
    for key in RESERVED:
        if key in config:
            instead = ", but model.pretrained=PATH" if key == "checkpoint_path" else ""
            raise UserError(f"model.{key} cannot be set here{instead}: leave it out")
    timm = import_timm()
    if not timm.is_model(config.model_name):
        close = ", ".join(nearest(config.model_name, timm.list_models()))
        raise UserError(
            f"model.model_name={config.model_name}: timm {timm.__version__} has no such network; nearest: {close}"
        )


def network_of(config: DictConfig, num_classes: int) -> nn.Module:
    """Returns the network of a configuration's model group, with the weights of the file `pretrained` if it is a path.

    Any network can start from a file, also one of the user's own, unless it takes `pretrained` itself.
    Raises UserError if the weights cannot be read, or are not those of the network.
    """
    make, pretrained = instantiate(config, _partial_=True), config.get("pretrained")
    takes_it = config._target_ != TIMM and "pretrained" in inspect.signature(make.func).parameters
    if takes_it or not isinstance(pretrained, str):
        return make(num_classes=num_classes)
    del make.keywords["pretrained"]
    return load_pretrained(make(num_classes=num_classes), network_name(config), pretrained)


def import_timm() -> ModuleType:
    """Returns timm. Raises UserError if it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise UserError("networks of timm: pip install 'bagnet-lightning[timm]'") from error
    return timm
