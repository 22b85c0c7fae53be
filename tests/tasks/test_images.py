"""Reading photographs of every kind into 8-bit RGB, or refusing them by name."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import Preprocessing, read_image

RAMP = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def png(path, depth, colour, rows):
    """Write a PNG of raw big-endian samples, in depths that Pillow cannot write too."""
    height, channels = len(rows), {0: 1, 2: 3}[colour]
    head = struct.pack(">IIBBBBB", rows.shape[1] // channels, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in rows))
    chunks = [(b"IHDR", head), (b"IDAT", data), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_rgb_is_kept_as_stored(tmp_path):
    Pillow.fromarray(RAMP).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RAMP)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    turns = {1: 0, 3: 2, 6: 3, 8: 1, 2: 0, 4: 2, 5: 1, 7: 3}
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    Pillow.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(RAMP, turns[orientation])
    if orientation in (2, 4, 5, 7):
        expected = expected[:, ::-1] if orientation in (2, 4) else expected[::-1]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def test_grey_palette_and_bilevel_become_rgb(tmp_path):
    grey = Pillow.fromarray(RAMP[..., 0])
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), RAMP[..., :1].repeat(3, axis=2))
    palette = Pillow.fromarray(RAMP).quantize(256)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    grey.point(lambda value: 255 * (value > 60), "1").save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bilevel.png")[..., 1], 255 * (RAMP[..., 0] > 60))


def test_cmyk_becomes_rgb(tmp_path):
    flat = np.full((8, 8, 4), [0, 255, 255, 0], dtype=np.uint8)  # Magenta and yellow make red.
    Pillow.fromarray(flat, "CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() <= 3


def test_opaque_alpha_is_dropped_and_translucent_refused(tmp_path):
    whole = np.dstack([RAMP, np.full(RAMP.shape[:2], 255, np.uint8)])
    Pillow.fromarray(whole).save(tmp_path / "whole.png")
    np.testing.assert_array_equal(read_image(tmp_path / "whole.png"), RAMP)
    whole[2, 3, 3] = 254
    Pillow.fromarray(whole).save(tmp_path / "glass.png")
    Pillow.fromarray(RAMP[..., 0]).save(tmp_path / "key.png", transparency=3)
    for name in ("glass.png", "key.png"):
        with pytest.raises(DatasetError, match=rf"{name}: .*translucent.*flatten"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("colour", [0, 2])
def test_16_bits_are_refused(tmp_path, colour):
    png(tmp_path / "deep.png", 16, colour, np.arange(36).reshape(3, 12) * 1000)
    with pytest.raises(DatasetError, match=r"deep\.png: more than 8 bits.*convert"):
        read_image(tmp_path / "deep.png")
    png(tmp_path / "plain.png", 8, colour, np.arange(36).reshape(3, 12))
    assert read_image(tmp_path / "plain.png").shape == (3, 12 if colour == 0 else 4, 3)


def test_16_bit_tiff_and_floats_are_refused(tmp_path):
    Pillow.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.tif")
    Pillow.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name in ("deep.tif", "float.tif"):
        with pytest.raises(DatasetError, match=rf"{name}: more than 8 bits"):
            read_image(tmp_path / name)


def test_damaged_files_are_named(tmp_path):
    Pillow.fromarray(RAMP.repeat(20, 0).repeat(20, 1)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    broken = {"half.jpg": whole[: len(whole) // 2], "empty.png": b"", "text.jpg": b"no image", "head.png": b"\x89PNG\r\n\x1a\n\0\0"}
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DatasetError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(DatasetError, match=r"none\.png: no such image"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("native", (100, 60)),
        ("resize:32x48", (32, 48)),
        ("short:30", (50, 30)),
        ("short: 30", None),
        ("short:30,crop:20x30", (20, 30)),
        ("crop:101x10", None),
        ("resize:0x5", None),
        ("", None),
    ],
)
def test_preprocessing(tmp_path, text, size):
    Pillow.new("RGB", (100, 60)).save(tmp_path / "a.png")
    if size is None:
        with pytest.raises(DatasetError):
            read_image(tmp_path / "a.png", Preprocessing.parse(text))
    else:
        assert read_image(tmp_path / "a.png", Preprocessing.parse(text)).shape == (size[1], size[0], 3)


def test_crop_keeps_the_middle(tmp_path):
    pixels = np.zeros((5, 10, 3), np.uint8)
    pixels[..., 0] = np.arange(10)
    Pillow.fromarray(pixels).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", Preprocessing.parse("crop:3x5"))[0, :, 0].tolist() == [3, 4, 5]


def test_resizing_a_ramp_equals_pillows_bicubic(shared):
    path = sorted((shared / "data" / "kodak").glob("*.png"))[0]
    with Pillow.open(path) as picture:
        small = picture.resize((384, 256), Pillow.Resampling.BICUBIC)
    np.testing.assert_array_equal(read_image(path, Preprocessing.parse("short:256")), np.asarray(small))


def test_folders_are_searched_and_sorted(tmp_path):
    for name in ("b.JPEG", "a.png", "sub/c.Jpg", "notes.txt", ".hidden.png", ".cache/d.png", "__MACOSX/e.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Pillow.fromarray(RAMP).save(path, "PNG") if not name.endswith("txt") else path.write_text("no image")
    folder = ImageFolder(tmp_path, preprocessing="resize:4x2")
    assert folder.ids == ["a.png", "b.JPEG", "sub/c.Jpg"]
    assert folder.read("sub/c.Jpg").shape == (2, 4, 3)
    assert folder.path("a.png") == tmp_path / "a.png"
    assert ImageFolder(tmp_path, limit=2).ids == ["a.png", "b.JPEG"]
    assert folder.annotated("class") == []
    with pytest.raises(DatasetError, match="reference: original"):
        folder.targets("class", ["a.png"])


def test_missing_and_empty_folders_say_what_to_download(tmp_path):
    with pytest.raises(DatasetError, match=r"no such folder.*Kodak"):
        ImageFolder(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"no images.*Kodak"):
        ImageFolder(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(DatasetError, match="not a folder"):
        ImageFolder(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="limit"):
        ImageFolder(tmp_path, limit=0)
