"""A store as batches for training: subsets, order, augmentation. One class a source, named by conf/data/."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bagnet_lightning.data import image_folder, textures, tiny_imagenet
from bagnet_lightning.data.augment import augment, normalize
from bagnet_lightning.data.store import Split, Store
from bagnet_lightning.errors import UserError

Batch = tuple[Tensor, Tensor, Tensor]  # images, labels, indices


@dataclass(frozen=True)
class Images(Dataset):
    """Some images of a split, a batch at a time: `images[indices]` is a Batch of uint8 (B, H, W, 3), with int64 (B,)s.

    chosen: (N,) which of the split's images these are. labels: (N,) what they are labelled as here.
    """

    split: Split
    chosen: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, indices: Tensor) -> Batch:
        return self.split.images.index_select(0, self.chosen[indices]), self.labels[indices], indices


class ShuffledBatches(Sampler):
    """The batches of an epoch, in an order that is a function of (seed, epoch) alone.

    position: tells (epoch, number of the epoch's batches already used), so that a continued run goes on where it was.
    """

    def __init__(self, count: int, batch_size: int, seed: int, position: Callable[[], tuple[int, int]]):
        self.count, self.batch_size, self.seed, self.position = count, batch_size, seed, position

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        epoch, used = self.position()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        yield from torch.randperm(self.count, generator=generator).split(self.batch_size)[used:]


class ImageData(LightningDataModule, ABC):
    """Training and validation batches of a store.

    name: what tables call the data. classes: all (None), the first N, or a list of identifiers or names.
    images_per_class: only the first N train images of each class. holdout: this share of every class's train images
    is validated on instead of the val split, which is then untouched. crop_padding, flip: see augment.py. normalize: by
    the train split's mean and standard deviation (False: pixels / 255). seed: of the order and the augmentation.
    """

    def __init__(
        self,
        name: str,
        batch_size: int,
        eval_batch_size: int,
        classes: int | list[str] | None,
        images_per_class: int | None,
        holdout: float,
        crop_padding: int,
        flip: bool,
        normalize: bool,
        seed: int,
    ):
        super().__init__()
        self.name = name
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.classes, self.images_per_class, self.holdout = classes, images_per_class, holdout
        self.crop_padding, self.flip, self.normalize, self.seed = crop_padding, flip, normalize, seed

    @abstractmethod
    def open_store(self) -> Store:
        """The data, made or opened. Raises UserError."""

    def setup(self, stage: str | None = None) -> None:
        """Opens the store and chooses the images. Raises UserError if the data cannot be had or no image is left."""
        if hasattr(self, "store"):
            return
        self.store = self.open_store()
        self.labels = self._chosen_labels()
        self.class_ids = [self.store.classes[label] for label in self.labels]
        self.class_names = [self.store.class_names[label] for label in self.labels]
        self.mean = self.store.mean if self.normalize else (0.0, 0.0, 0.0)
        self.std = self.store.std if self.normalize else (1.0, 1.0, 1.0)
        train, validation = self._indices_by_class("train"), ("val", self._indices_by_class("val"))
        if self.holdout:
            train, held = _split(train, self.holdout)
            validation = "train", held
        self.train_images = self._images("train", [indices[: self.images_per_class] for indices in train])
        self.val_images = self._images(*validation)
        if not len(self.train_images) or not len(self.val_images):
            raise UserError("no image is left to train or to validate on; change data.holdout")

    def train_dataloader(self) -> DataLoader:
        batches = ShuffledBatches(len(self.train_images), self.batch_size, self.seed, self._position)
        return DataLoader(self.train_images, sampler=batches, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        batches = torch.arange(len(self.val_images)).split(self.eval_batch_size)
        return DataLoader(self.val_images, sampler=batches, batch_size=None)

    def labelled_for(self, classes: list[str], split: str) -> Images:
        """The images of `split` (train, or val: what is validated on), labelled by their place in `classes`.

        classes: the identifiers that a trained network knows. Raises UserError if the data have another one.
        """
        if split not in ("train", "val"):
            raise UserError(f"split={split}: split must be train or val, which have labels")
        if strange := [name for name in self.class_ids if name not in classes]:
            raise UserError(
                f"the checkpoint knows {len(classes)} classes, and {strange[0]!r} of the data is not one of them; "
                "choose the classes with data.classes=[...]"
            )
        images = self.train_images if split == "train" else self.val_images
        places = torch.tensor([classes.index(name) for name in self.class_ids])
        return replace(images, labels=places[images.labels])

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """uint8 (B, H, W, 3) to normalised float (B, 3, H, W), augmented in training, on the batch's device."""
        images, labels, indices = batch
        if self.trainer.training:
            images = augment(images, indices, self.seed, self.trainer.current_epoch, self.crop_padding, self.flip)
        return normalize(images, self.mean, self.std), labels, indices

    def _position(self) -> tuple[int, int]:
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _chosen_labels(self) -> list[int]:
        known = self.store.classes
        if self.classes is None:
            return list(range(len(known)))
        if isinstance(self.classes, int):
            if self.classes > len(known):
                raise UserError(f"data.classes={self.classes}: {self.name} has {len(known)} classes")
            return list(range(self.classes))
        places = {name: i for i, name in enumerate(self.store.class_names)} | {name: i for i, name in enumerate(known)}
        for name in self.classes:
            if name not in places:
                close = get_close_matches(name, places, n=3) or sorted(places)[:3]
                raise UserError(f"data.classes: {self.name} has no class {name!r}; nearest: {', '.join(close)}")
        return [places[name] for name in self.classes]

    def _indices_by_class(self, split: str) -> list[Tensor]:
        labels = self.store.splits[split].labels
        return [(labels == label).nonzero()[:, 0] for label in self.labels]

    def _images(self, split: str, by_class: list[Tensor]) -> Images:
        labels = torch.cat([torch.full((len(indices),), label) for label, indices in enumerate(by_class)])
        return Images(self.store.splits[split], torch.cat(by_class), labels)


def _split(by_class: list[Tensor], holdout: float) -> tuple[list[Tensor], list[Tensor]]:
    """Each class's indices to keep and to hold out: the same at random for every run, whatever its seed."""
    generator = torch.Generator().manual_seed(0)
    shuffled = [indices[torch.randperm(len(indices), generator=generator)] for indices in by_class]
    counts = [round(len(indices) * holdout) for indices in shuffled]
    return (
        [indices[count:] for indices, count in zip(shuffled, counts, strict=True)],
        [indices[:count] for indices, count in zip(shuffled, counts, strict=True)],
    )


class TinyImageNet(ImageData):
    """Tiny ImageNet-200 under `root`, or downloaded from `url`. `options`: of ImageData."""

    def __init__(self, root: str, url: str, sha256: str, **options):
        super().__init__(**options)
        self.root, self.url, self.sha256 = root, url, sha256

    def open_store(self) -> Store:
        return tiny_imagenet.open_store(self.root, self.url, self.sha256)


class Textures(ImageData):
    """Generated textures, the same for every run. `options`: of ImageData."""

    def __init__(self, train_images: int, val_images: int, image_size: int, **options):
        super().__init__(**options)
        self.counts, self.image_size = (train_images, val_images), image_size

    def open_store(self) -> Store:
        return textures.open_store(0, *self.counts, self.image_size)


class ImageFolder(ImageData):
    """The user's own images in `root`/{train,val}/CLASS. `options`: of ImageData."""

    def __init__(self, root: str, image_size: int, cache: str | None, **options):
        super().__init__(**options)
        self.root, self.image_size, self.cache = root, image_size, cache

    def open_store(self) -> Store:
        return image_folder.open_store(self.root, self.image_size, self.cache)
