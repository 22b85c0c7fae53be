"""JPEG XL through imagecodecs: rates of a real photograph, sizes, and what every kind of bad stream raises."""

import json
import random

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.jpegxl import JpegXl, read_jpegxl_size

from .helpers import psnr, smooth_image

imagecodecs = pytest.importorskip("imagecodecs")


def test_lowest_rate_of_a_photograph(photograph):
    codec = JpegXl(25)
    stream = codec.compress(photograph)
    assert len(stream) * 8 / (768 * 512) == pytest.approx(0.094, rel=0.01)
    assert psnr(photograph, codec.decompress(stream)) == pytest.approx(28.1, abs=0.1)


def test_default_points_order_a_rate_curve(photograph):
    codecs = [JpegXl(point) for point in JpegXl.default_points]
    streams = [codec.compress(photograph) for codec in codecs]
    qualities = [psnr(photograph, codec.decompress(stream)) for codec, stream in zip(codecs, streams, strict=True)]
    assert [codec.point.order for codec in codecs] == sorted(codec.point.order for codec in codecs)
    assert [len(stream) for stream in streams] == sorted(map(len, streams))
    assert qualities == sorted(qualities)
    assert all(codec.compress(photograph) == stream for codec, stream in zip(codecs, streams, strict=True))


@pytest.mark.parametrize(
    "shape",  # These include the ratios and the multiples of eight that the size header abbreviates.
    [(1, 1), (1, 300), (300, 1), (33, 47), (8, 8), (64, 96), (300, 400), (180, 320), (80, 96), (128, 160), (256, 512), (2000, 3)],
    ids=str,
)
def test_every_size_keeps_its_shape(shape):
    codec, image = JpegXl(1, effort=3), smooth_image(*shape)
    image.flags.writeable = False  # as in the images that the harness passes
    stream = codec.compress(image)
    assert read_jpegxl_size(stream) == shape[::-1]
    reconstruction = codec.decompress(stream)
    assert (reconstruction.shape, reconstruction.dtype) == (image.shape, np.uint8)
    assert psnr(image, reconstruction) > 35


def test_points_and_settings():
    bare, mapped = JpegXl(4), JpegXl({"distance": 4.0})
    assert bare.point == mapped.point and bare.fingerprint == mapped.fingerprint != JpegXl(5).fingerprint
    assert (bare.point.label, bare.point.parameters) == ("distance=4", {"distance": 4})
    assert bare.point.order < JpegXl(0.5).point.order
    assert bare.fingerprint != JpegXl(4, effort=3).fingerprint
    facts = json.loads(bare.fingerprint)
    assert facts["settings"] == {"distance": 4, "effort": 7} and "libjxl" in facts["library"]
    for bad in [0, 26, -1, "4", None, float("nan"), {"quality": 3}]:
        with pytest.raises(CodecError, match="jpegxl"):
            JpegXl(bad)
    for effort in [0, 11, 2.5]:
        with pytest.raises(CodecError, match="effort"):
            JpegXl(4, effort=effort)


def test_every_truncation_is_refused():
    codec = JpegXl(4)
    stream = codec.compress(smooth_image(33, 47))
    for length in range(len(stream)):
        with pytest.raises(BitstreamError, match="jpegxl"):
            codec.decompress(stream[:length])


def test_truncations_of_a_photograph_are_refused(photograph):
    codec = JpegXl(25)
    stream = codec.compress(photograph)
    for length in [*range(0, len(stream), 61), *range(len(stream) - 64, len(stream))]:
        with pytest.raises(BitstreamError):
            codec.decompress(stream[:length])


def test_bytes_that_follow_are_refused(photograph):
    codec = JpegXl(8)
    for image in (smooth_image(33, 47), photograph):
        stream = codec.compress(image)
        for junk in [b"\0", b"\xff\x0a", stream]:
            with pytest.raises(BitstreamError, match="bytes follow its end"):
                codec.decompress(stream + junk)


def test_foreign_bytes_are_refused():
    image = smooth_image(33, 47)
    container = imagecodecs.jpegxl_encode(image, distance=4, usecontainer=True)
    for data in [b"", b"\0", b"\xff\x0a", bytes(1000), b"\xff\x0a" + bytes(100), random.Random(0).randbytes(1000), container]:
        with pytest.raises(BitstreamError, match="not a whole JPEG XL codestream"):
            JpegXl(4).decompress(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image[..., 0],
        lambda image: image.astype(np.uint16) * 257,
        lambda image: np.concatenate([image, image[..., :1]], -1),
    ],
    ids=["grey", "16 bit", "alpha"],
)
def test_other_pictures_are_refused(change):
    picture = np.ascontiguousarray(change(smooth_image(33, 47)))
    with pytest.raises(BitstreamError, match="not one of 8-bit RGB"):
        JpegXl(4).decompress(imagecodecs.jpegxl_encode(picture, distance=4, usecontainer=False))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_one_pixel_limit_holds_both_ways(monkeypatch):
    codec = JpegXl(4)
    stream = codec.compress(smooth_image(33, 47))
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 33 * 47 - 1)
    with pytest.raises(BitstreamError, match="MAX_IMAGE_PIXELS"):
        codec.decompress(stream)
    with pytest.raises(CodecError, match="MAX_IMAGE_PIXELS"):
        codec.compress(smooth_image(33, 47))


def test_altered_streams_give_an_image_or_a_bitstream_error(monkeypatch):
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 1_000_000)  # Otherwise an altered size may cost gigabytes.
    codec, generator, refused = JpegXl(4), random.Random(0), 0
    stream = codec.compress(smooth_image(33, 47))
    for _ in range(1000):
        data = bytearray(stream)
        for _ in range(generator.choice([1, 1, 2, 8])):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        try:
            image = codec.decompress(bytes(data))
        except BitstreamError:
            refused += 1
        else:
            assert image.dtype == np.uint8 and image.shape == (*read_jpegxl_size(bytes(data))[::-1], 3)
    assert 0 < refused < 1000


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32), [[1]]],
    ids=["grey", "alpha", "float", "list"],
)
def test_only_rgb_arrays_are_compressed(image):
    with pytest.raises(CodecError, match="uint8 array of shape"):
        JpegXl(4).compress(image)


def test_the_longest_side_codes_and_decodes_and_one_more_is_refused():
    codec, limit = JpegXl(8), 1 << 18
    assert codec.decompress(codec.compress(np.zeros((1, limit, 3), np.uint8))).shape == (1, limit, 3)
    with pytest.raises(CodecError, match=rf"jpegxl: an image of 1x{limit + 1} pixels .* at most {limit} pixels"):
        codec.compress(np.zeros((limit + 1, 1, 3), np.uint8))
