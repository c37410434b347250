import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bagnet_lightning.data.images import find_images, load_image
from bagnet_lightning.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_rgb_keeps_its_pixels(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "noise.png")
    image = load_image(tmp_path / "noise.png")
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, NOISE)


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_and_palette_become_rgb(tmp_path, mode):
    image = Image.fromarray(NOISE).convert(mode)
    image.save(tmp_path / "image.png")
    np.testing.assert_array_equal(load_image(tmp_path / "image.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    pixels = np.array([[[100, 100, 100, 255], [100, 100, 100, 0], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(tmp_path / "image.png")
    np.testing.assert_array_equal(load_image(tmp_path / "image.png")[0, :, 0], [100, 255, 204])


def test_transparent_palette_entry_is_laid_on_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "image.png", transparency=1)
    np.testing.assert_array_equal(load_image(tmp_path / "image.png"), [[[10, 20, 30], [255, 255, 255]]])


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    path = tmp_path / f"image.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 4 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    np.testing.assert_array_equal(load_image(path)[0, :, 1], [0, 1, 128, 255])


def test_16_bits_of_a_tiff_where_0_is_white(tmp_path):
    values = np.array([[0, 65535], [257, 514]], np.uint16)
    Image.fromarray(values).save(tmp_path / "white.tif", tiffinfo={262: 0})
    assert load_image(tmp_path / "white.tif")[..., 0].tolist() == [[255, 0], [254, 253]]


def test_16_bits_with_a_transparent_value(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "image.png", transparency=257)
    np.testing.assert_array_equal(load_image(tmp_path / "image.png")[0, :, 1], [0, 255, 128, 255])


def test_a_name_that_no_text_can_hold_is_refused(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    with open(path, "wb") as file:
        file.write(jpeg())
    for asked in (tmp_path, tmp_path / os.fsdecode(path)):
        with pytest.raises(UserError, match=r"udcff\.png is not UTF-8: rename it"):
            find_images(asked)


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 51))  # cyan, a fifth darkened
    image.save(tmp_path / "image.tiff")
    image.save(tmp_path / "image.jpg", quality=100)
    assert (load_image(tmp_path / "image.tiff") == [0, 204, 204]).all()
    assert np.abs(load_image(tmp_path / "image.jpg").astype(int) - [0, 204, 204]).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_exif_rotation_is_applied(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the top of the scene is at the right of the file
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(NOISE).save(path, exif=exif)
    stored = np.asarray(Image.open(path)) if suffix == "jpg" else NOISE
    np.testing.assert_array_equal(load_image(path), np.rot90(stored, -1))


def test_size_scales_the_short_side_and_cuts_the_centre(tmp_path):
    bands = np.zeros((40, 120, 3), np.uint8)
    bands[:, 40:80] = 200
    Image.fromarray(bands).save(tmp_path / "wide.png")
    Image.fromarray(bands.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        image = load_image(tmp_path / name, size=10)
        assert image.shape == (10, 10, 3)
        assert (image[2:-2, 2:-2] == 200).all()
        assert (image > 150).all()  # the filter sees a little of what is cut off


def test_size_averages_fine_patterns(tmp_path):
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "checks.png")
    assert np.abs(load_image(tmp_path / "checks.png", size=8)[1:-1, 1:-1].astype(int) - 127).max() <= 2


def test_right_size_is_left_alone(tmp_path):
    Image.fromarray(NOISE[:, :20]).save(tmp_path / "noise.png")
    np.testing.assert_array_equal(load_image(tmp_path / "noise.png", size=20), NOISE[:, :20])


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, "jpeg")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", jpeg()[: len(jpeg()) // 2], jpeg()[:30], b"\x89PNG\r\n\x1a\n" + bytes(50)],
    ids=["empty", "text", "truncated", "header", "hollow"],
)
def test_no_image_is_a_user_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"picture\.jpg.*replace or remove it") as error:
        load_image(path)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.png cannot be read: No such file"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="directory"):
        load_image(tmp_path)


@pytest.mark.parametrize(
    ("pixels", "reason"), [(np.float32([[0.5]]), "floating-point"), (np.int32([[70000]]), "32 bits")]
)
def test_pixels_of_unknown_range_are_refused(tmp_path, pixels, reason):
    Image.fromarray(pixels).save(tmp_path / "image.tiff")
    with pytest.raises(UserError, match=rf"image\.tiff.*{reason}"):
        load_image(tmp_path / "image.tiff")


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.fromarray(NOISE).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # Pillow refuses twice as many
    with pytest.raises(UserError, match=r"bomb\.png.*decompression bomb"):
        load_image(tmp_path / "bomb.png")


def test_packing_workers_import_neither_torch_nor_lightning():
    code = "import sys, bagnet_lightning.data.images; print({'torch', 'pytorch_lightning', 'rich'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_postscript_program_is_not_run(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.eps")
    with pytest.raises(UserError, match="no image that can be read"):
        load_image(tmp_path / "a.eps")
