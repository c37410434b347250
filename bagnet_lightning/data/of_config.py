"""Data modules from a configuration: a command's own, or that of the run in a trained network's checkpoint."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bagnet_lightning.config import plain
from bagnet_lightning.data.image_data import ImageData
from bagnet_lightning.data.module import ImageFolder, Textures, TinyImageNet
from bagnet_lightning.errors import UserError
from bagnet_lightning.paths import CONF
from bagnet_lightning.rules import check

CHOICE = ("classes", "holdout", "fold", "group")  # keys that say which images are validated on
SOURCES = {f"{source.__module__}.{source.__name__}" for source in (TinyImageNet, Textures, ImageFolder)}


def data_of(config: DictConfig | dict) -> ImageData:
    """Returns the data module of a configuration's data group, not set up yet. Nothing nested is instantiated.

    Raises UserError if there is no such class, or it is another.
    """
    # Partial, so that what the constructor raises is raised as it is, not wrapped in one of Hydra's exceptions.
    try:
        make = instantiate(config, _partial_=True, _convert_="all", _recursive_=False)
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"the data {config['_target_']} cannot be imported from here: {reason}") from error
    try:
        data = make()
    except TypeError as error:  # a key that the class does not take, or lacks
        raise UserError(f"the data {config['_target_']} cannot be made of these keys: {error}") from error
    if not isinstance(data, ImageData):
        raise UserError(
            f"the data {config['_target_']} must be a subclass of {ImageData.__module__}.ImageData (see docs/using.md)"
        )
    return data


def data_of_run(run: dict, requested: DictConfig | None) -> ImageData:
    """Returns the data module of `run`, a run's configuration, not set up yet.

    requested: the user's data settings, another source or some keys of the same one. Images of another source have the
    size that the network was trained with, unless the command's arguments set another.
    Raises UserError for a wrong value, or if the checkpoint names a source that is not of this package: a checkpoint
    is data, and must not choose what is called. The user's settings may.
    """
    if requested is not None and "_target_" in requested:
        config = requested
        if "name" not in requested:
            raise UserError(f"data._target_={requested['_target_']} is of a source: add data=SOURCE")
        if _is_source_of(run["data"], requested):
            config = OmegaConf.merge(config, {key: run["data"][key] for key in _of_run(run["data"], config)})
        if "image_size" in config and not is_argument("data.image_size"):
            config = OmegaConf.merge(config, {"image_size": run["image_size"]})
    else:
        target = run["data"].get("_target_")
        if target is None:  # an exported network does not hold the location of its data
            raise UserError("the checkpoint does not say where its data are; add data=tiny_imagenet, or another source")
        if target not in SOURCES:
            raise UserError(f"the checkpoint names the data {target}, which are not of this package; add data=SOURCE")
        data = OmegaConf.create(run["data"])
        OmegaConf.set_struct(data, True)
        if target == f"{TinyImageNet.__module__}.{TinyImageNet.__name__}" and not Path(str(data.root)).exists():
            data.root = OmegaConf.load(CONF / "data" / "tiny_imagenet.yaml").root  # it was trained on another machine
        config = OmegaConf.merge(data, requested or {})
    check(OmegaConf.create({"data": plain(config)}))
    return data_of(config)


def _of_run(data: dict, config: DictConfig) -> list[str]:
    """Returns the keys of a run's `data` that its images are found by, unless an argument of the command says another.

    Not the places of files on the machine where it was trained, if they are not here or the source has its own.
    """
    own, asked = (Path(str(keys.get("root"))).exists() for keys in (data, config))
    elsewhere = {"cache", *(() if own and not asked else ("root",))}
    known = [key for key in data if key in config or key in CHOICE]
    return [key for key in known if key not in elsewhere and not is_argument(f"data.{key}")]


def _is_source_of(data: dict, requested: DictConfig) -> bool:
    """Whether `requested` is the source of a run's `data`, which lack `_target_` and `root` if they were exported."""
    keys = ("_target_", "name", *(("root",) if is_argument("data.root") else ()))
    return all(requested[key] == data.get(key, requested[key]) for key in keys)


def is_argument(key: str) -> bool:
    """Whether `key` was given as an argument of the running command; False if none runs."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return any(override.lstrip("+").startswith(f"{key}=") for override in overrides)
