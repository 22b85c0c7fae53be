"""What may stand in a folder of photographs without being a sound one, and what odd but sound ones hold."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets import decoding
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import Preprocessing, list_images, read_image, require_images, require_path

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def save(path, pixels=PIXELS, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(pixels).save(path, **options)
    return path


def exif_of(entries, order="<"):
    """EXIF bytes of a directory of entries (tag, type, count, four bytes)."""
    body = struct.pack(f"{order}H", len(entries)) + b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0" + {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8) + body + bytes(4)


def orientation_entry(value, order="<"):
    return (0x0112, 3, 1, struct.pack(f"{order}HH", value, 0))


def with_exif(path, exif):
    """Write PIXELS as a JPEG with these bytes as its EXIF, whatever they hold."""
    buffer = io.BytesIO()
    Pillow.fromarray(PIXELS).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    return path


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    odd=st.lists(
        st.tuples(
            st.one_of(st.sampled_from([0x010F, 0x011A, 0x011B, 0x0128, 0x8769, 0x8825, 0xA005, 0x014A]), st.integers(0, 65535)),
            st.integers(0, 14),
            st.sampled_from([0, 1, 2, 3, 1000, 2**32 - 1]),
            st.binary(min_size=4, max_size=4),
        ).filter(lambda entry: entry[0] != 0x0112),
        max_size=4,
    ),
    position=st.integers(0, 4),
    orientation=st.integers(1, 8),
    order=st.sampled_from("<>"),
)
def test_other_tags_decide_nothing(tmp_path_factory, odd, position, orientation, order):
    folder = tmp_path_factory.mktemp("exif")
    entries = [*odd[:position], orientation_entry(orientation, order), *odd[position:]]
    found = read_image(with_exif(folder / "odd.jpg", exif_of(entries, order)))
    plain = with_exif(folder / "plain.jpg", exif_of([orientation_entry(orientation, order)], order))
    with Pillow.open(plain) as picture:
        np.testing.assert_array_equal(found, np.asarray(ImageOps.exif_transpose(picture)))


@pytest.mark.parametrize("suffix", ["png", "webp", "avif", "tif", "jpg"])
def test_every_format_is_turned_despite_an_odd_tag(tmp_path, suffix):
    options = {} if suffix in ("png", "tif") else {"lossless": True} if suffix == "webp" else {"quality": 90}
    exif = Pillow.Exif()
    exif[0x0112] = 6
    plain = read_image(save(tmp_path / f"plain.{suffix}", exif=exif, **options))
    if suffix == "tif":  # Pillow writes the tags into the file itself.
        exif[0x010F] = "maker"
        odd = exif
    else:
        odd = exif_of([(0x010F, 1, 1, b"\x48\0\0\0"), orientation_entry(6), (0x011A, 1, 1, b"\x48\0\0\0")])
    if suffix == "avif":  # Pillow refuses to write the odd tag, so a sound one is altered in the file.
        odd = exif_of([orientation_entry(6), (0x0128, 3, 1, b"\2\0\0\0")])
    path = save(tmp_path / f"odd.{suffix}", exif=odd, **options)
    if suffix == "avif":
        data = path.read_bytes()
        assert struct.pack("<HHI", 0x0128, 3, 1) in data
        path.write_bytes(data.replace(struct.pack("<HHI", 0x0128, 3, 1), struct.pack("<HHI", 0x011A, 1, 1)))
    turned = read_image(path)
    assert turned.shape == (64, 48, 3)
    np.testing.assert_array_equal(turned, plain)


def test_orientation_in_xmp_is_applied(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="3"/></x:xmpmeta>'
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.webp", lossless=True, xmp=xmp)), PIXELS[::-1, ::-1])


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", b"GIF89a" + bytes(40)]
)
def test_other_formats_are_never_opened(tmp_path, monkeypatch, content):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "evil.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"evil\.png: damaged or no image \(not JPEG, PNG"):
        read_image(tmp_path / "evil.png")


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes in folders")
def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "zero.png", "folder.png"):
        with pytest.raises(DatasetError, match=rf"{name}: no regular file; leave it out"):
            read_image(tmp_path / name)
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(DatasetError, match="neither a file nor a folder"):
            require_path(tmp_path / name, "captions", "Download them.")
    with pytest.raises(DatasetError, match=r"pipe\.png: a broken link, or no regular file"):
        list_images(tmp_path)
    (tmp_path / "pipe.png").unlink()
    (tmp_path / "zero.png").unlink()
    (tmp_path / "lost.png").symlink_to("nowhere.png")
    with pytest.raises(DatasetError, match=r"lost\.png: a broken link"):
        list_images(tmp_path)
    (tmp_path / "lost.png").unlink()
    (tmp_path / "lost.png").symlink_to("lost.png")
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(DatasetError, match=r"lost\.png: a broken link"):
        list_images(tmp_path)
    with pytest.raises(DatasetError, match=r"the first is lost\.png"):
        require_images(tmp_path, ["lost.png"], tmp_path / "list.json")


def test_each_photograph_counts_once_however_links_lead_to_it(tmp_path):
    root = tmp_path / "images"
    save(root / "a.png")
    save(root / "sub/b.png")
    save(tmp_path / "elsewhere/c.png")
    save(tmp_path / "blobs/0123.png")
    (root / "self").symlink_to(root)
    (root / "again").symlink_to(root / "sub")
    (root / "sub/up").symlink_to("..")
    (root / "other").symlink_to(tmp_path / "elsewhere")
    (root / "twin.png").symlink_to("a.png")
    (root / "d.png").symlink_to(tmp_path / "blobs/0123.png")
    assert ImageFolder(root).ids == ["a.png", "d.png", "other/c.png", "sub/b.png"]
    require_images(root, ["again/b.png"], tmp_path / "list.json")  # A list may name a photograph through a link.
    with pytest.raises(DatasetError, match=r"the first is \./a\.png"):
        require_images(root, ["a.png", "./a.png"], tmp_path / "list.json")
    with pytest.raises(DatasetError, match=r"the first is \.\./elsewhere/c\.png"):
        require_images(root, ["../elsewhere/c.png"], tmp_path / "list.json")


def test_pictures_that_a_run_wrote_are_no_photographs(tmp_path):
    save(tmp_path / "a.png")
    run = tmp_path / "runs/first"
    for name in ("reconstructions/set/jpeg/5/a.png", "report/figures/detection.png", "a.png"):
        save(run / name)
    (run / "environment.json").write_text("{}")
    assert len(ImageFolder(tmp_path).ids) == 4  # One name alone may be anyone's.
    (run / "streams").mkdir()
    assert ImageFolder(tmp_path).ids == ["a.png"]
    assert ImageFolder(run).ids == ["a.png"]  # A run may lie in the folder of its photographs.
    assert ImageFolder(run / "reconstructions").ids == ["set/jpeg/5/a.png"]  # Named outright, they are meant.
    save(tmp_path / "bundle/figures/detection.png")
    (tmp_path / "bundle/provenance.json").write_text("{}")
    assert ImageFolder(tmp_path).ids == ["a.png"]


def png_head(path, width, height):
    """A PNG that announces this size and ends before its pixels, so that decoding it would fail."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")[:4])]
    body = b"".join(struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("size", "preprocessing", "message"),
    [
        (
            (13000, 13000),
            "native",
            r"13000x13000 pixels are 169\.0 megapixels, and at most 89\.5 are coded; give .* `preprocessing`",
        ),
        ((13000, 13000), "short:512", "damaged or no image"),  # The size passes, and the pixels are asked for.
        ((20000, 10000), "short:9000,crop:9000x9000", "damaged or no image"),
        ((13000, 13000), "short:9999", r"9999x9999 pixels are 100\.0 megapixels, and at most 89\.5 are coded"),
        ((20000, 20000), "short:512", r"400\.0 megapixels, and at most 268\.4 are read; shrink or cut the picture"),
        ((30000, 1), "short:200,crop:200x200", r"6000000x200 pixels after a step of its preprocessing are 1200\.0 megapixels"),
    ],
)
def test_the_bound_on_pixels_is_said_before_they_are_decoded(tmp_path, size, preprocessing, message):
    with pytest.raises(DatasetError, match=message):
        read_image(png_head(tmp_path / "large.png", *size), Preprocessing.parse(preprocessing))


@pytest.mark.filterwarnings("error")
def test_a_panorama_is_read_with_preprocessing(tmp_path, monkeypatch):
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 100)  # The limit of the process does not matter.
    monkeypatch.setattr(decoding, "MAX_CODED_PIXELS", 48 * 64 - 1)
    save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", Preprocessing.parse("short:32")).shape == (32, 43, 3)
    with pytest.raises(DatasetError, match="give the dataset a `preprocessing`"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("text", ["native", "resize:7x9", "short:33", "short:30,crop:20x30", "crop:9x9,resize:5x4,short:9"])
@pytest.mark.parametrize("size", [(64, 48), (48, 64), (101, 57), (50, 50)])
def test_sizes_are_known_before_the_work(text, size):
    steps = Preprocessing.parse(text)
    assert steps(Pillow.new("RGB", size)).size == [size, *steps.sizes(*size)][-1]


@pytest.mark.parametrize(("suffix", "options"), [("webp", {"lossless": True}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})])
@pytest.mark.parametrize("preprocessing", ["native", "short:20", "crop:60x40,resize:30x20"])
def test_pillows_own_limit_keeps_no_picture_from_being_read(tmp_path, monkeypatch, suffix, options, preprocessing):
    """Pillow compares WebP, TIFF and crops with a limit of the process, of 179 megapixels, whatever preprocessing makes of them."""
    steps = Preprocessing.parse(preprocessing)
    expected = np.asarray(steps(Pillow.fromarray(PIXELS)))
    path = save(tmp_path / f"a.{suffix}", **options)
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 1000)
    np.testing.assert_array_equal(read_image(path, steps), expected)
    assert Pillow.MAX_IMAGE_PIXELS == 1000
    monkeypatch.setattr(decoding, "MAX_DECODED_PIXELS", 48 * 64 - 1)  # The bound of this project, of 268 megapixels, remains.
    with pytest.raises(DatasetError, match="are read; shrink or cut the picture first"):
        read_image(path, steps)


DEEP = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
REFUSED = {
    "deep.png": (
        lambda path: Pillow.fromarray(DEEP).save(path),
        r"more than 8 bits a sample \(mode I;16\); convert the image to 8 bits",
    ),
    "deep.tif": (lambda path: Pillow.fromarray(DEEP).save(path), "more than 8 bits a sample"),
    "float.tif": (lambda path: Pillow.fromarray(DEEP.astype(np.float32)).save(path), "more than 8 bits a sample"),
    "lab.tif": (lambda path: Pillow.new("LAB", (64, 48)).save(path), "colour mode LAB is not supported; convert the image to RGB"),
    "large.png": (lambda path: png_head(path, 13000, 13000), r"169\.0 megapixels, and at most 89\.5 are coded"),
    "cut.jpg": (lambda path: path.write_bytes(b"\xff\xd8\xff"), "damaged or no image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_header_tells_is_said_before_anything_is_coded(tmp_path, name):
    write, sentence = REFUSED[name]
    for k in range(3):
        save(tmp_path / f"a{k}.png")
    write(tmp_path / name)
    with pytest.raises(DatasetError, match=rf"{name}: .*{sentence}"):
        ImageFolder(tmp_path).check_headers()


def test_sound_photographs_are_not_read_for_their_headers(tmp_path, monkeypatch):
    for suffix, options in (("png", {}), ("jpg", {}), ("webp", {}), ("avif", {}), ("tif", {}), ("bmp", {})):
        save(tmp_path / f"a.{suffix}", **options)
    Pillow.new("CMYK", (8, 8)).save(tmp_path / "cmyk.jpg")
    Pillow.new("P", (8, 8)).save(tmp_path / "palette.png")
    Pillow.new("RGBA", (8, 8), (1, 2, 3, 255)).save(tmp_path / "opaque.png")
    monkeypatch.setattr(ImageFolder, "read", lambda *_: pytest.fail("pixels were read"))
    ImageFolder(tmp_path).check_headers()
