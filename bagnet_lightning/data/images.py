"""Decodes image files to uint8 pixels. Packing workers import this module: it imports neither torch nor Lightning."""

import hashlib
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from bagnet_lightning.errors import UserError
from bagnet_lightning.files import walk


def load_image(path: str | Path, size: int | None = None) -> np.ndarray:
    """Decodes the image file at `path` to RGB: (H, W, 3) uint8.

    The first frame of any format that Pillow reads. The EXIF orientation is applied; grey and palette images become
    RGB; transparent pixels are laid on white; 16-bit grey is scaled from 0..65535 to 0..255.
    size: scale the shorter side to `size` px (bicubic, antialiased) and cut the centre: (size, size, 3).
    Raises UserError, naming the file, if it cannot be read as an image.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            image = Image.open(BytesIO(file.read()))
        if image.format == "EPS":  # a program, which Pillow would have Ghostscript run
            raise Image.UnidentifiedImageError
        if image.format != "JPEG" or image.info.keys() & {"exif", "xmp"}:  # checking takes 5 % of a small JPEG's time
            ImageOps.exif_transpose(image, in_place=True)
        image = _to_rgb(image)
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return np.frombuffer(bytearray(image.tobytes()), np.uint8).reshape(image.height, image.width, 3)
    except Image.UnidentifiedImageError:
        raise UserError(f"{path} is no image that can be read: replace or remove it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; replace or remove it") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise exceptions of any kind for a broken file
        raise UserError(
            f"{path} cannot be read as an image: {error or type(error).__name__}; replace or remove it"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range (save it with 8 or 16 bits)")
    if image.mode.startswith("I"):  # "I;16" and its byte orders; "I" where Pillow widens 16 bits to 32
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("its pixels have 32 bits (save it with 8 or 16 bits)")
        if getattr(image, "tag_v2", {}).get(262) == 0:  # TIFF's PhotometricInterpretation: 0 is white
            pixels = 65535 - pixels
        pixels[pixels == image.info.get("transparency")] = 65535
        image = Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))
    elif "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


@cache
def image_suffixes() -> tuple[str, ...]:
    """Returns the file name suffixes of the formats that Pillow reads: ".jpg", ..."""
    return tuple(suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN)


def find_images(path: Path) -> list[Path]:
    """Returns the file `path`, or the files with an image's suffix in and below the folder `path`, sorted; none hidden.

    Follows links, but enters each folder once. Raises UserError if there is none, or a name is not UTF-8.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give an image file or a folder of them")
    if not path.is_dir():
        check_name(path)
        return [path]
    below = (Path(folder, name) for folder, names in walk(path) for name in names)
    files = sorted(file for file in below if file.name.lower().endswith(image_suffixes()) and file.is_file())
    if not files:
        raise UserError(f"{path} holds no image file; give an image file or a folder of them")
    for file in files:
        check_name(file)
    return files


def check_name(path: str | Path) -> None:
    """Raises UserError if a path is not UTF-8, so that no text file could name it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise UserError(f"the name {shown} is not UTF-8: rename it") from None


class PackedChunk(NamedTuple):
    """Sums of the values and of their squares (per channel, exact) and the sha256 of a chunk's pixels.

    images: a digest of each image's pixels. problems: the error messages of the images that could not be used.
    """

    sums: list[int]
    squares: list[int]
    sha256: str
    images: list[bytes]
    problems: list[str]


def pack_chunk(paths: list[str], image_size: int, resize: bool, file: Path, offset: int) -> PackedChunk:
    """Decodes `paths` and writes their pixels into `file` at byte `offset`.

    An image that is not image_size x image_size px is resized if `resize`, otherwise refused.
    """
    images, problems = np.zeros((len(paths), image_size, image_size, 3), np.uint8), []
    for index, path in enumerate(paths):
        try:
            image = load_image(path, image_size if resize else None)
        except UserError as error:
            problems.append(str(error))
            continue
        height, width, _ = image.shape
        if (height, width) == (image_size, image_size):
            images[index] = image
        else:
            problems.append(f"{path} is {width} x {height} px, not {image_size} x {image_size}: replace or remove it")
    with open(file, "r+b") as array:
        array.seek(offset)
        array.write(images)
    flat = images.reshape(len(paths), -1)
    sums, squares = (
        values.sum(axis=0, dtype=np.uint32).reshape(-1, 3).sum(axis=0, dtype=np.uint64).tolist()
        for values in (flat, np.square(flat, dtype=np.uint16))
    )
    digests = [hashlib.blake2b(image, digest_size=16).digest() for image in images]
    return PackedChunk(sums, squares, hashlib.sha256(images).hexdigest(), digests, problems)
