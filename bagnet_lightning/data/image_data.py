"""The base of all data modules, which make batches from a store: subsets, order, augmentation."""

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from bagnet_lightning.data.augment import augment, draw_keys, rescale, scale_and_bias
from bagnet_lightning.data.batches import Batch, Images, Loader, ShuffledBatches
from bagnet_lightning.data.choice import choose_classes, hold_out
from bagnet_lightning.data.store import Store
from bagnet_lightning.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # that all public weights were trained with


class ImageData(LightningDataModule, ABC):
    """Training and validation batches of a store.

    name: the data's name in tables. classes: all (None), the first N, or a list of identifiers or names.
    images_per_class: only the first N train images of each class; with holdout N at random. holdout: this share of
    every class's train images is validated on instead of the val split, which is then untouched. fold: which of these
    shares, from 0; they do not overlap. crop_padding, flip: see augment.py. normalize: by the train split's mean and
    standard deviation (False: pixels / 255; "imagenet": by ImageNet's). device_resident: gather batches from a copy of
    the images on the device that trains ("auto": on a GPU with room). seed: of the order and the augmentation.
    """

    group: str | None = None  # a source's setting that `groups` follows

    def __init__(
        self,
        name: str,
        batch_size: int,
        eval_batch_size: int,
        classes: int | list[str] | None,
        images_per_class: int | None,
        holdout: float,
        fold: int,
        crop_padding: int,
        flip: bool | str,
        normalize: bool | str,
        device_resident: bool | str,
        seed: int,
    ):
        super().__init__()
        self.name = name
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.classes, self.images_per_class, self.holdout, self.fold = classes, images_per_class, holdout, fold
        self.crop_padding, self.flip, self.normalize, self.seed = crop_padding, flip, normalize, seed
        self.device_resident = device_resident
        self.resident: tuple[Images, Images] | None = None  # copies of train_images and val_images on the device
        self.keys_epoch: int | None = None

    @abstractmethod
    def open_store(self) -> Store:
        """Opens the data's store, or makes it first. Raises UserError."""

    def files(self, split: str) -> list[str] | None:
        """Returns the name of each image's file, in the store's order, or None if the images of a split have none."""
        return None

    def groups(self, split: str) -> list[str] | None:
        """Returns the group of each image of a split, in the store's order, or None if each is its own.

        Images of one group, of a patient or a slide, are held out together.
        """
        return None

    def test_files(self) -> list[Path]:
        """Returns the unlabelled test images, in order. Raises UserError if these data have none."""
        raise UserError(f"{self.name} has no test split; use images=FILE_OR_FOLDER")

    def setup(self, stage: str | None = None) -> None:
        """Opens the store and chooses the images, once; with a trainer, moves the tensors that belong on its device.

        Raises UserError if the data cannot be opened, no image is left, or the device has no room for them.
        """
        if not hasattr(self, "store"):
            self._choose_images()
        if self.trainer is not None:
            self._move_to(self.trainer.strategy.root_device)

    def _choose_images(self) -> None:
        self.store = self.open_store()
        self.chosen_labels = choose_classes(self.store, self.classes, self.name)
        self.class_ids = [self.store.classes[label] for label in self.chosen_labels]
        self.class_names = [self.store.class_names[label] for label in self.chosen_labels]
        self.mean, self.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if self.normalize == "imagenet":
            self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        elif self.normalize:  # a constant channel has a deviation of 0
            self.mean, self.std = self.store.mean, tuple(deviation or 1.0 for deviation in self.store.std)
        self.splits_in_use = {"train"} if self.holdout else {"train", "val"}
        train = self._indices_by_class("train")
        if self.holdout or self.fold:
            train, held_out = self._hold_out(train)
            self.val_images = self._images("train", held_out)
        else:
            self.val_images = self._images("val", self._indices_by_class("val"))
        self.train_images = self._images("train", [indices[: self.images_per_class] for indices in train])
        if not len(self.train_images) or not len(self.val_images):
            raise UserError("no image is left to train or to validate on; change data.holdout")
        if "val" in self.splits_in_use:
            self._check_groups("val", self.val_images)
        height, width = self.store.splits["train"].images.shape[1:3]
        if self.flip == "dihedral" and height != width:
            raise UserError(f"data.flip=dihedral turns squares; images of {width} x {height} px need true or false")
        self.scale, self.bias = scale_and_bias(self.mean, self.std, width)

    def _hold_out(self, by_class: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns each class's images to train and to validate on. Raises UserError if there are none to train on."""
        if not 0 < self.holdout * (self.fold + 1) < 1 + 1e-6:
            raise UserError(
                f"data.fold={self.fold}: data.holdout={self.holdout} has no such fold; those of 0.2 are 0 to 4"
            )
        kept, held_out = hold_out(by_class, self.holdout, self.fold, self.groups("train"))
        for name, indices in zip(self.class_ids, kept, strict=True):
            if not len(indices):
                raise UserError(
                    f"data.holdout={self.holdout}: no image of class {name!r} is left to train on; choose others with "
                    "data.classes, or another data.holdout"
                )
        return kept, held_out

    def _check_groups(self, split: str, images: Images) -> None:
        """Raises UserError if some of `images`, of `split`, are of a group that is trained on."""
        trained, measured = self.groups("train"), self.groups(split)
        if not trained or not measured:
            return
        known = {trained[index] for index in self.train_images.chosen.tolist()}
        if shared := sorted(known & {measured[index] for index in images.chosen.tolist()}):
            instead = ", or validate on a part of train with data.holdout=0.2" if split == "val" else ""
            raise UserError(
                f"{len(shared)} groups of images are in train and in {split}, such as {shared[0]!r}: move them{instead}"
            )

    def _move_to(self, device: torch.device) -> None:
        self.scale, self.bias = self.scale.to(device), self.bias.to(device)
        if self._uses_device_copies(device):
            self.resident = self.train_images.copied_to(device), self.val_images.copied_to(device)

    def _uses_device_copies(self, device: torch.device) -> bool:
        """Whether to gather batches from copies of the images on the device. Raises UserError if they do not fit."""
        if device.type != "cuda":
            return self.device_resident is True
        needed, (free, _) = self.train_images.nbytes + self.val_images.nbytes, torch.cuda.mem_get_info(device)
        if self.device_resident is True and needed > free:
            raise UserError(
                f"data.device_resident=true: the images take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of "
                "the GPU are free; leave it at auto"
            )
        return self.device_resident is True or (self.device_resident == "auto" and needed < free / 4)

    @property
    def train_source(self) -> Images:
        """The images that training batches are gathered from."""
        return self.resident[0] if self.resident else self.train_images

    @property
    def val_source(self) -> Images:
        return self.resident[1] if self.resident else self.val_images

    def train_dataloader(self) -> Loader:
        source = self.train_source
        order = ShuffledBatches(len(source), self.batch_size, self.seed, self._position, source.labels.device)
        return Loader(source, order, self._share(order.smallest))

    def val_dataloader(self) -> Loader:
        source = self.val_source
        indices = torch.arange(len(source), device=source.labels.device)
        batches = indices.tensor_split(-(-len(source) // self.eval_batch_size))  # none much smaller than another
        return Loader(source, batches, self._share(min(map(len, batches))))

    def names(self, images: Images) -> list[str]:
        """Returns a name for each of some images of the store: its file's, or "val 17"."""
        (split,) = (name for name, split in self.store.splits.items() if split is images.split)
        files = self.files(split)
        return [files[index] if files else f"{split} {index}" for index in images.chosen.tolist()]

    def state_dict(self) -> dict[str, str]:
        """Returns what a checkpoint tells of the images: the digests of the splits in use."""
        return {name: self.store.digests[name] for name in sorted(self.splits_in_use)}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Raises UserError if a training is to go on with other images than its checkpoint's."""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        if changed := [name for name, digest in self.state_dict().items() if state.get(name) != digest]:
            raise UserError(
                f"the images of {' and '.join(changed)} have changed since last.ckpt was written: restore them, or "
                "start over with fresh=true"
            )

    def labelled_for(self, classes: list[str], split: str) -> Images:
        """Returns the images of `split` (train, val: those validated on, or test), labelled by index in `classes`.

        classes: the class identifiers of a trained network. Raises UserError if the data have a class that is not among
        them, or if no image of the split has a label.
        """
        images = {"train": self.train_images, "val": self.val_images}.get(split)
        if split == "test" and split in self.store.splits:
            images = self._images(split, self._indices_by_class(split))
            self._check_groups(split, images)
        if not images:
            raise UserError(
                f"split={split}: {self.name} has no labelled images of that split; train and val have labels"
            )
        if unknown := [name for name in self.class_ids if name not in classes]:
            raise UserError(
                f"the checkpoint knows {len(classes)} classes, and {unknown[0]!r} of the data is not one of them; "
                "choose the classes with data.classes=[...]"
            )
        new_labels = torch.tensor([classes.index(name) for name in self.class_ids])
        return replace(images, labels=new_labels[images.labels])

    def check_classes(self) -> None:
        """Raises UserError if a classifier of these data would have nothing to tell apart."""
        if len(self.class_ids) < 2:
            raise UserError(f"there is nothing to tell apart: {self.name} has one class, {self.class_ids[0]}")

    def check_unseen(self, config: dict, classes: list[str]) -> None:
        """Raises UserError if a network has been trained on images that these data hold out.

        config: of the network's run, with the trainings before it, if it started from weights (checkpoint.trainings).
        classes: the identifiers of its classes; none for a backbone.
        """
        if not self.holdout:
            return
        for training in [*config.get("seen", []), {**config, "classes": classes}]:
            run, known = training["data"], training["classes"]
            same_name, same_size = run.get("name") == self.name, training["image_size"] == self.store.side
            # Digests are of resized pixels.
            equal = same_size and training["train_digest"] == self.store.digests["train"]
            same_root = Path(str(run.get("root"))).resolve() == Path(str(getattr(self, "root", None))).resolve()
            if same_name and same_root and same_size and not equal:
                raise UserError(
                    f"data.holdout={self.holdout}: the train images of {self.name} are not those of the checkpoint's "
                    "run any more: which of them its network has seen cannot be told; restore them, or measure on val "
                    "(data.holdout=0)"
                )
            same_images = equal or ((same_name or (same_root and "root" in run)) and not same_size)
            # Other classes change which images are held out.
            same_classes = known == self.class_ids if known else run.get("classes") == self.classes
            share = run.get("holdout"), run.get("fold", 0), run.get("group")
            if same_images and not (same_classes and share == (self.holdout, self.fold, self.group)):
                held_out = f"{run.get('holdout') or 'nothing'}{'' if same_classes else ' of other classes'}"
                fold = f", fold {run.get('fold', 0)}" if run.get("fold", 0) != self.fold else ""
                raise UserError(
                    f"data.holdout={self.holdout}: the checkpoint's run held out {held_out}{fold}, and its network has "
                    "seen these images; train one with the same data.holdout, data.fold, data.group and data.classes, "
                    "or measure on val (data.holdout=0)"
                )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Converts uint8 (B, H, W, 3) to normalised float (B, 3, H, W) on the batch's device, augmented in training."""
        images, labels, indices = batch
        if self.trainer.training:
            images = self.augmented(images, indices, self._keys())
        else:
            images = self.unaugmented(images, indices)
        return images, labels, indices

    def augmented(self, images: Tensor, indices: Tensor, keys: Tensor) -> Tensor:
        """Augments and normalises; replaced by acceleration and by pretraining. keys: (3,), of this epoch's draws."""
        return rescale(augment(images, indices, keys, self.crop_padding, self.flip), self.scale, self.bias)

    def unaugmented(self, images: Tensor, indices: Tensor) -> Tensor:
        return rescale(images, self.scale, self.bias)

    def _keys(self) -> Tensor:
        """Returns draw_keys of this epoch, on the device."""
        epoch = self.trainer.current_epoch
        if self.keys_epoch != epoch:
            self.keys_epoch, self.keys = epoch, torch.tensor(draw_keys(self.seed, epoch), device=self.scale.device)
        return self.keys

    def _share(self, smallest: int) -> slice:
        """Returns the part of every batch that this rank processes. Raises UserError if a rank's would be empty."""
        ranks = self.trainer.world_size if self.trainer else 1
        if smallest < ranks:
            raise UserError(
                f"a batch of {smallest} images cannot be divided among {ranks} devices; change data.batch_size or "
                "trainer.devices (the last batch of an epoch is what is left)"
            )
        return slice(self.trainer.global_rank, None, ranks) if ranks > 1 else slice(None)

    def _position(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _indices_by_class(self, split: str) -> list[Tensor]:
        labels = self.store.splits[split].labels
        return [(labels == label).nonzero()[:, 0] for label in self.chosen_labels]

    def _images(self, split: str, by_class: list[Tensor]) -> Images:
        labels = torch.cat([torch.full((len(indices),), label) for label, indices in enumerate(by_class)])
        return Images(self.store.splits[split], torch.cat(by_class), labels)
