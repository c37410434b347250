"""An embedded data set without files: six textures that can be told apart only by patches of a known size.

Light dots stand in rows or in columns, on a quiet grey ground. Three sizes of the pattern times two directions are the
classes; the numbers are the smallest BagNet that can tell rows from columns:

    classes          dot     along a line   between lines   across the line
    9 px: ...        2 px    3 px           6 px            exactly on it
    17 px: ...       3 px    11 px          22 px           up to 7 px off
    33 px: ...       5 px    21 px          42 px           up to 7 px off

Every BagNet sees the size, because the dots themselves differ; the direction needs two neighbouring dots in one patch:
span 5, 14 and 26 px, well inside 9, 17 and 33. The gap between two dots of the 17 px classes is at least 8 px, and of
the 33 px classes at least 16 px, so a 9 (17) px patch touches at most one of them, in either direction with the same
probability at every position: dots are equally likely everywhere, and equally many. All patches of the smaller sizes
are therefore distributed alike in both classes of a pair: the expected evidence that a network sums over such patches
is the same for both, and it has to guess. The best accuracies to expect:

    BagNet-9   (1 + 1/2 + 1/2) / 3 = 0.667
    BagNet-17  (1 + 1 + 1/2) / 3   = 0.833
    BagNet-33                        1.000

Guessing has a standard deviation (0.017 and 0.012 with 600 validation images), so the best of a few epochs lies a
little above.

Nothing else tells the classes of a pair apart. Columns are rows with x and y exchanged, so all counts, colours and
histograms have the same distribution, in any crop. Colours, contrast, noise and position are drawn without regard to
the class, and a mirror image or a shift stays in its class. What remains are sums over the image: dots of one row share
their height, and a network of stride 8 could see that in how much its evidence varies, not in its mean; hence every dot
is moved across its line by 0 to 7 px, which makes its position modulo 8 independent of its neighbours'.
"""

from collections.abc import Callable

import numpy as np

from bagnet_lightning.data.store import Store, store_of_arrays
from bagnet_lightning.errors import UserError

# Receptive field that tells the pair apart: dot, distance along a line (lines are twice as far apart), and how far a
# dot is moved across its line at most, in px. A smaller field q touches one dot at most if distance >= q + dot - 1.
SCALES = {9: (2, 3, 0), 17: (3, 11, 7), 33: (5, 21, 7)}
DIRECTIONS = ("rows", "columns")


def open_store(seed: int, train_images: int, val_images: int, image_size: int = 64) -> Store:
    """Draws the data set: balanced classes, interleaved; the same bits for the same arguments on every machine.

    image_size: side of the images in px, at least 33. Raises UserError on values that give no usable data set.
    """
    classes = [(field, direction) for field in SCALES for direction in DIRECTIONS]
    for name, count in (("train_images", train_images), ("val_images", val_images)):
        if count < len(classes):
            raise UserError(f"data.{name} is {count}; the textures need at least {len(classes)}, one a class")
    if image_size < max(SCALES):
        raise UserError(f"data.image_size is {image_size}; the textures need at least {max(SCALES)} px")
    splits = {
        "train": _draw_split(np.random.PCG64([seed, 0]), train_images, image_size),
        "val": _draw_split(np.random.PCG64([seed, 1]), val_images, image_size),
    }
    identifiers = [f"{field}px_{direction}" for field, direction in classes]
    return store_of_arrays(identifiers, [f"{field} px: {way} of dots" for field, way in classes], splits)


def _draw_split(bits: np.random.PCG64, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    def draw(low: int, high: int, *shape: int) -> np.ndarray:
        """Draws integers low..high, from the bit generator: numpy never changes its stream, unlike Generator's."""
        raw = bits.random_raw(int(np.prod(shape))) % np.uint64(high - low + 1)
        return (raw.astype(np.int16) + np.int16(low)).reshape(shape)

    labels = np.arange(count) % (len(SCALES) * len(DIRECTIONS))
    dots = np.zeros((count, size, size, 1), np.int16)
    for label in np.unique(labels):
        chosen = np.flatnonzero(labels == label)
        scale, direction = divmod(int(label), len(DIRECTIONS))
        rows = _rows_of_dots(draw, len(chosen), size, *list(SCALES.values())[scale])
        dots[chosen, :, :, 0] = rows.swapaxes(1, 2) if DIRECTIONS[direction] == "columns" else rows
    ground = draw(122, 134, count, 1, 1, 3)
    light = draw(80, 100, count, 1, 1, 1) * draw(90, 100, count, 1, 1, 3) // 100
    noise = bits.random_raw(count * size * size * 3 // 8 + 1).astype("<u8").view(np.uint8)[: count * size * size * 3]
    images = ground + dots * light
    images += (noise & 15).reshape(images.shape)  # between 122 and 249 now: no pixel is clipped
    return images.astype(np.uint8), labels.astype(np.int64)


def _rows_of_dots(draw: Callable, count: int, size: int, dot: int, distance: int, across: int) -> np.ndarray:
    """Draws size x size windows of endless rows at random positions: (count, size, size), 1 where a dot is."""
    margin = 2 * distance + across + dot  # beyond the reach of rows and dots before the first ones
    lines = -(-(margin + size) // (2 * distance))
    line, place = np.mgrid[:lines, : 2 * lines]
    y = 2 * distance * line + draw(0, 2 * distance - 1, count, 1, 1) + draw(0, across, count, lines, 2 * lines)
    x = distance * place + draw(0, distance - 1, count, lines, 1)
    side = (2 * lines + 1) * distance + across + dot
    canvas = np.zeros((count, side, side), np.int16)
    image = np.arange(count)[:, None, None]
    for dy in range(dot):
        for dx in range(dot):
            canvas[image, y + dy, x + dx] = 1
    return canvas[:, margin : margin + size, margin : margin + size]
