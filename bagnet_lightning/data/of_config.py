"""The data that a configuration asks for: a command's own, or that of a trained network's run, in its checkpoint."""

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bagnet_lightning.config import image_size, plain
from bagnet_lightning.data.module import ImageData, ImageFolder, Textures, TinyImageNet
from bagnet_lightning.errors import UserError
from bagnet_lightning.rules import check

SOURCES = {f"{source.__module__}.{source.__name__}" for source in (TinyImageNet, Textures, ImageFolder)}


def data_of(config: DictConfig | dict) -> ImageData:
    """The data of a configuration's group, not set up yet. Nothing inside the group is called."""
    # Partial, so that a UserError of theirs comes as it is and not wrapped in one of Hydra's.
    return instantiate(config, _partial_=True, _convert_="all", _recursive_=False)()


def data_of_run(run: dict, asked: DictConfig | None) -> ImageData:
    """The data of `run`, a run's configuration, not set up yet.

    asked: what the user says of them, another source or some keys of the same one. Images of another source have the
    size that the network was trained with, unless the command's arguments say another.
    Raises UserError for a wrong value, or if the checkpoint names what is none of this package's sources: a checkpoint
    is data, and must not choose what is called. What the user asks for may.
    """
    if asked is not None and "_target_" in asked:
        config = asked
        if "image_size" in config and not _is_argument("data.image_size"):
            config = OmegaConf.merge(config, {"image_size": image_size(run)})
    else:
        named = run["data"].get("_target_")
        if named is None:  # an exported network says nothing of places
            raise UserError("the checkpoint does not say where its data are; add data=tiny_imagenet, or another source")
        if named not in SOURCES:
            raise UserError(f"the checkpoint names the data {named}, which are not of this package; add data=SOURCE")
        data = OmegaConf.create(run["data"])
        OmegaConf.set_struct(data, True)
        config = OmegaConf.merge(data, asked or {})
    check(OmegaConf.create({"data": plain(config)}))
    return data_of(config)


def _is_argument(key: str) -> bool:
    """Whether the command that runs, if one does, was given `key`."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return any(word.lstrip("+").startswith(f"{key}=") for word in words)
