"""Networks from a configuration."""

from functools import partial
from types import ModuleType

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from bagnet_lightning.errors import UserError
from bagnet_lightning.models.pretrained import load_pretrained
from bagnet_lightning.names import nearest, network_name

TIMM = "timm.create_model"
SET_HERE = ("num_classes", "in_chans", "features_only", "checkpoint_path")  # arguments of timm's


def check_network(config: DictConfig) -> None:
    """Raises UserError for a model group that asks for a network which timm lacks, or one that is no classifier."""
    if config._target_ != TIMM:
        return
    for key in SET_HERE:
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

    Any network can start from a file, also one of the user's own; what pretrained=true means is the network's matter.
    Raises UserError if the weights cannot be read, or are not those of the network.
    """
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
