"""Pretraining: from a configuration to a backbone and measurements."""

from dataclasses import replace
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from bagnet_lightning.checkpoint import read_if_ours, trainings, write_backbone
from bagnet_lightning.config import plain
from bagnet_lightning.data.augment import draw_key, rescale
from bagnet_lightning.data.batches import Images
from bagnet_lightning.data.image_data import ImageData
from bagnet_lightning.data.of_config import data_of
from bagnet_lightning.data.store import Split
from bagnet_lightning.errors import UserError
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.models.of_config import network_of
from bagnet_lightning.pretraining.pretrainer import Method, Pretrainer, neighbour_is_nearer
from bagnet_lightning.pretraining.tiles import Tiles
from bagnet_lightning.training.trainer import prepare, schedule, train

BACKBONE = "backbone.safetensors"


def fit(config: DictConfig, folder: Path, logger: Logger | None = None) -> dict:
    """Pretrains the network of `config` in `folder`, from last.ckpt if it exists, and returns the measurements.

    Writes backbone.safetensors, the network after the last epoch. Raises UserError for what the user can fix.
    """
    code = prepare(config, folder)
    data = data_of(config.data)
    data.setup()
    start = read_if_ours(config.model.pretrained) if isinstance(config.model.get("pretrained"), str) else None
    if start:
        data.check_unseen(start[0]["config"], start[0]["classes"])
    if config.splits == "train+test":
        _add_test_images(data)
    network = network_of(config.model, 1)
    if not isinstance(getattr(network, "fc", None), nn.Linear):
        raise UserError(
            f"pretraining takes the network's last linear layer, fc, away, and {type(network).__name__} has none"
        )
    features, network.fc = network.fc.in_features, nn.Identity()
    method: Method = instantiate(config.method)
    if data.flip not in (True, False):
        raise UserError(f"data.flip={data.flip}: tiles are mirrored at random or not at all; ask for true or false")
    tiles = Tiles(**config.tiles, flip=data.flip)
    tiles.check(*data.store.splits["train"].images.shape[1:3])
    if isinstance(network, BagNet):
        network.check_size(tiles.size, tiles.size, "tiles")
    _cut_into_tiles(data, tiles, method.kinds)
    known = {"image_size": data.store.side, "train_digest": data.store.digests["train"]}
    settings = plain(config) | known | {"seen": trainings(start[0]) if start else []}
    about = {"config": settings, "classes": [], "class_names": [], "mean": data.mean, "std": data.std}
    module = Pretrainer(network, features, method, **schedule(config), about=about)
    description = (
        f"{sum(p.numel() for p in network.parameters()):,} parameters; {method.name} of tiles of {tiles.size} px, "
        f"neighbours within {tiles.radius} px; {len(data.train_images):,} images and {len(data.val_images):,} held out"
    )
    rows, measured = train(config, folder, module, data, [], logger, description, code)
    write_backbone(network, about, folder / BACKBONE)
    return {
        "loss": rows[-1]["train_loss"],
        "val_loss": rows[-1]["val_loss"],
        "val_triplet_accuracy": rows[-1]["val_triplet_accuracy"],
        "colour_triplet_accuracy": _colour_triplet_accuracy(data),
        **measured,
    }


def _colour_triplet_accuracy(data: ImageData) -> float:
    """Returns the held-out triplet accuracy of the tiles' mean colours: the baseline without learning."""
    device = data.scale.device  # the images may be on another
    batches = [data.unaugmented(images.to(device), indices.to(device)) for images, _, indices in data.val_dataloader()]
    return torch.cat([neighbour_is_nearer(tiles.mean((2, 3))) for tiles in batches]).double().mean().item()


def _add_test_images(data: ImageData) -> None:
    """Adds the unlabelled test images of `data` to its training images, as a copy of all in memory.

    Raises UserError if there are none, or some are of a group that is held out.
    """
    if "test" not in data.store.splits:
        raise UserError(f"splits=train+test: {data.name} has no test images; leave it at train")
    groups, held_out = data.groups("test"), data.groups("train" if data.holdout else "val")
    if groups and (shared := {held_out[index] for index in data.val_images.chosen.tolist()} & {*groups}):
        raise UserError(
            f"splits=train+test: {len(shared)} groups of images are held out and in test, such as {min(shared)!r}; "
            "leave it at train"
        )
    data.splits_in_use.add("test")
    splits = data.train_images.split, data.store.splits["test"]
    images = torch.cat([splits[0].images.index_select(0, data.train_images.chosen), splits[1].images])
    all_indices = torch.arange(len(images))
    no_annotations = torch.full((len(images),), -1), torch.full((len(images), 4), -1, dtype=torch.int16)
    data.train_images = Images(Split(images, *no_annotations), all_indices, no_annotations[0])


def _cut_into_tiles(data: ImageData, tiles: Tiles, kinds: int) -> None:
    """Makes batches of `data` hold `kinds` kinds of tiles, and validation batches triplets, always the same ones.

    Raises UserError if a batch would have a single image.
    """
    # In order of their classes, most images of a batch would be of one class, and so would distant tiles.
    order = torch.randperm(len(data.val_images), generator=torch.Generator().manual_seed(0))
    images = data.val_images
    data.val_images = replace(images, chosen=images.chosen[order], labels=images.labels[order])
    for key, count, smallest in (
        ("batch_size", len(data.train_images), data.train_dataloader().order.smallest),
        ("eval_batch_size", len(images), min(map(len, data.val_dataloader().order))),
    ):
        if smallest < 2:
            raise UserError(
                f"data.{key}={getattr(data, key)}: a batch of the {count:,} images would have {smallest}, and a tile "
                "needs another image to be compared with; choose another size"
            )

    def scaled(tiles_of_batch: Tensor) -> Tensor:
        row = 3 * tiles.size
        return rescale(tiles_of_batch, data.scale[:row], data.bias[:row])

    def augmented(images: Tensor, indices: Tensor, keys: Tensor) -> Tensor:
        return scaled(tiles.augmented(images, indices, keys[0], kinds))

    def unaugmented(images: Tensor, indices: Tensor) -> Tensor:
        key = torch.tensor(draw_key(data.seed, -1), device=indices.device)  # -1: no epoch of training
        return scaled(tiles.triplets(images, indices, key))

    data.augmented, data.unaugmented = augmented, unaugmented
