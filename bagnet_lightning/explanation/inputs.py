"""The images to explain, from the user's files or a run's own data, and the class to explain them for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bagnet_lightning.data.batches import Images
from bagnet_lightning.data.image_data import ImageData
from bagnet_lightning.data.images import find_images, load_image
from bagnet_lightning.errors import UserError
from bagnet_lightning.predictions import spread

MOST_PIXELS, PAGE_PIXELS = 2_000_000, 4_000_000  # of a file's picture, and of all: a page has up to 70 bytes a pixel


@dataclass(frozen=True)
class Picture:
    """An image as it is passed to the networks."""

    name: str  # its origin: a path, or "val 17"
    pixels: np.ndarray  # (H, W, 3) uint8
    label: int | None  # index of its true class, if known


def pictures_of_split(
    data: ImageData,
    split: str,
    count: int,
    classes: list[str],
    chosen: Callable[[Images], Sequence[int]] | None = None,
) -> list[Picture]:
    """Returns `count` images of a split of `data` (after setup), spread evenly over it and thus over its classes.

    chosen: returns the positions of those to choose from. Raises UserError if there is none, or too many for a page.
    """
    images = data.labelled_for(classes, split)
    positions = range(len(images)) if chosen is None else chosen(images)
    if not positions:
        raise UserError(f"mistakes=true: all {len(images)} images of split={split} are given their own class")
    if (room := PAGE_PIXELS // images.split.images[0, ..., 0].numel()) < min(count, len(positions)):
        raise UserError(f"count={count}: a page has room for {room} images of this size; ask for fewer")
    pictures, names = [], data.names(images)
    for position in (positions[i] for i in spread(len(positions), count)):
        index = images.chosen[position].item()
        pictures.append(Picture(names[position], images.split.images[index].numpy(), images.labels[position].item()))
    return pictures


def pictures_of_files(
    path: Path, size: int | None, count: int, class_indices: Mapping[str, int], check_size: Callable[[int, int], None]
) -> tuple[list[Picture], list[str]]:
    """Returns the image file `path`, or up to `count` images below the folder `path`.

    Images of a folder are spread evenly over its sorted paths; those that cannot be read or are too large or small are
    skipped, and there are fewer if a page has no room for more. size: as for load_image. class_indices: the true class
    is known if a file's folder, or the one above it, has such a name. check_size: raises UserError for a height and
    width that cannot be explained.
    Returns the pictures and notes for the user. Raises UserError if the file is no image or too large, or the folder
    has no image that can be explained.
    """

    def read(file: Path) -> Picture:
        folders = (folder.name for folder in file.absolute().parents[:2])
        label = next((class_indices[folder] for folder in folders if folder in class_indices), None)
        name = str(file.relative_to(path)) if file != path else file.name
        pixels = load_image(file, size)
        height, width, _ = pixels.shape
        if height * width > MOST_PIXELS:
            raise UserError(f"{file} has {width} x {height} px, too many for a page: give it smaller, or size=PX")
        try:
            check_size(height, width)
        except UserError as error:
            raise UserError(f"{file}: {error} (size=PX changes it)") from error
        return Picture(name, pixels, label)

    files = find_images(path)
    if files == [path]:
        return [read(path)], []
    preferred = spread(len(files), count)
    pictures, skipped, room = [], [], PAGE_PIXELS
    for position in [*preferred, *sorted({*range(len(files))} - {*preferred})]:  # the rest replace skipped files
        if len(pictures) == count:
            break
        try:
            picture = read(files[position])
        except UserError as error:
            skipped.append(str(error))
            continue
        room -= picture.pixels[..., 0].size
        if room < 0:
            break
        pictures.append(picture)
    if not pictures:
        raise UserError(f"{path} holds no image that can be explained; the first: {skipped[0]}")
    pictures.sort(key=lambda picture: picture.name)
    notes = [f"skipped: {error}" for error in sorted(skipped)[:3]]
    if len(skipped) > 3:
        notes.append(f"skipped: {len(skipped) - 3} more")
    if room < 0:
        notes.append(f"{len(pictures)} files are explained: a page has no room for more; size=PX makes them smaller")
    elif len(pictures) + len(skipped) < len(files):
        notes.append(f"{len(pictures)} of {len(files) - len(skipped)} files are explained; count=N for more")
    return pictures, notes
