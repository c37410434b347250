"""The data modules, one per source, named by conf/data/."""

import re
from pathlib import Path

from bagnet_lightning.data import image_folder, textures, tiny_imagenet
from bagnet_lightning.data.image_data import ImageData
from bagnet_lightning.data.store import Store
from bagnet_lightning.errors import UserError


class TinyImageNet(ImageData):
    """Tiny ImageNet-200 under `root`, or downloaded from `url`. `options`: arguments of ImageData."""

    def __init__(self, root: str, url: str, sha256: str, **options):
        super().__init__(**options)
        self.root, self.url, self.sha256 = root, url, sha256

    def open_store(self) -> Store:
        return tiny_imagenet.open_store(self.root, self.url, self.sha256)

    def test_files(self) -> list[Path]:
        return tiny_imagenet.test_files(self.root)


class Textures(ImageData):
    """Generated textures, the same for every run. `options`: arguments of ImageData."""

    def __init__(self, train_images: int, val_images: int, image_size: int, **options):
        super().__init__(**options)
        self.counts, self.image_size = (train_images, val_images), image_size

    def open_store(self) -> Store:
        return textures.open_store(0, *self.counts, self.image_size)


class ImageFolder(ImageData):
    """Images in `root`/{train,val}/CLASS, or in `root`/train with a holdout. `options`: arguments of ImageData.

    group: a regular expression; images of one group have the same match in their paths below CLASS, of its parentheses
    if it has some.
    """

    def __init__(self, root: str, image_size: int, cache: str | None, group: str | None = None, **options):
        super().__init__(**options)
        self.root, self.image_size, self.cache, self.group = root, image_size, cache, group

    def open_store(self) -> Store:
        splits = ("train", "val") if Path(self.root, "val").is_dir() or not self.holdout else ("train",)
        return image_folder.open_store(self.root, self.image_size, self.cache, splits=splits)

    def files(self, split: str) -> list[str]:
        return image_folder.files(self.root, split)

    def groups(self, split: str) -> list[str] | None:
        if self.group is None:
            return None
        found = []
        for file in self.files(split):
            match = re.search(self.group, file.split("/", 2)[-1])
            parts = match and [part for part in match.groups() or [match[0]] if part is not None]
            if not parts:
                raise UserError(f"data.group={self.group} matches nothing in the name of {Path(self.root, file)}")
            found.append("/".join(parts))
        return found

    def test_files(self) -> list[Path]:
        return image_folder.test_files(self.root)
