"""JPEG, JPEG 2000, WebP and AVIF: rates of a real photograph, and what every kind of bad stream raises."""

import io
import json
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.classical import Avif, Jpeg, Jpeg2000, WebP

from .helpers import psnr

CODECS = [Jpeg, Jpeg2000, WebP, Avif]
each_codec = pytest.mark.parametrize("codec_class", CODECS, ids=lambda codec: codec.name)


def noisy_image(height: int, width: int) -> np.ndarray:
    """An image that resembles a photograph: gradients, an edge and a little noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 4, (height, width))
    image = np.stack([y * 3 + noise, x * 2 + noise, 128 + 60 * (x > y) + noise], axis=-1)
    return image.clip(0, 255).astype(np.uint8)


def middle(codec_class):
    """The codec at a rate in the middle of its curve."""
    return codec_class(codec_class.default_points[2])


@pytest.mark.parametrize(
    ("codec", "bpp", "decibel"),
    [  # rates and PSNR of kodim03 that the baselines are specified to have
        (Jpeg(1, optimize=True, progressive=True), 0.079, 22.8),
        (Jpeg2000(10000), 0.0036, 13.2),
        (Jpeg2000(2400), 0.010, 23.4),
        (WebP(0), 0.065, 28.2),
        (Avif(0), 0.0287, 26.55),
    ],
    ids=lambda value: f"{value.name} {value.point.label}" if hasattr(value, "point") else None,
)
def test_lowest_rates_of_a_photograph(photograph, codec, bpp, decibel):
    stream = codec.compress(photograph)
    assert len(stream) * 8 / (768 * 512) == pytest.approx(bpp, rel=0.02)
    assert psnr(photograph, codec.decompress(stream)) == pytest.approx(decibel, abs=0.1)


@each_codec
def test_default_points_order_a_rate_curve(photograph, codec_class):
    codecs = [codec_class(point) for point in codec_class.default_points]
    streams = [codec.compress(photograph) for codec in codecs]
    qualities = [psnr(photograph, codec.decompress(stream)) for codec, stream in zip(codecs, streams, strict=True)]
    assert [codec.point.order for codec in codecs] == sorted(codec.point.order for codec in codecs)
    assert [len(stream) for stream in streams] == sorted(len(stream) for stream in streams)
    assert qualities == sorted(qualities)
    assert len({codec.point.label for codec in codecs}) == len(codecs)
    assert all(codec.compress(photograph) == stream for codec, stream in zip(codecs, streams, strict=True))


def test_default_jpeg_is_plain_pillow(photograph):
    buffer = io.BytesIO()
    Pillow.fromarray(photograph).save(buffer, "JPEG", quality=20)
    assert Jpeg(20).compress(photograph) == buffer.getvalue()
    reference = np.array(Pillow.open(buffer))
    assert np.array_equal(Jpeg(20).decompress(buffer.getvalue()), reference)
    optimised = Jpeg(20, optimize=True, progressive=True)
    assert len(optimised.compress(photograph)) < 0.9 * len(buffer.getvalue())
    assert np.array_equal(optimised.decompress(optimised.compress(photograph)), reference)


@pytest.mark.parametrize(
    ("plain", "other"),
    [
        (Jpeg(50), Jpeg(50, subsampling="4:4:4")),
        (Jpeg(50), Jpeg(50, progressive=True)),
        (Jpeg2000(24), Jpeg2000(24, irreversible=False)),
        (WebP(50), WebP(50, method=0)),
        (Avif(30), Avif(30, subsampling="4:2:0")),
        (Avif(30), Avif(30, tune="psnr")),
        (Avif(30), Avif(30, speed=9)),
    ],
    ids=lambda codec: codec.name,
)
def test_a_setting_changes_bytes_and_fingerprint(photograph, plain, other):
    assert plain.compress(photograph) != other.compress(photograph)
    assert plain.fingerprint != other.fingerprint


@each_codec
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (3, 5), (33, 47), (65, 64)], ids=str)
def test_every_size_keeps_its_shape(codec_class, shape):
    image = noisy_image(*shape)
    for point in codec_class.default_points:
        codec = codec_class(point)
        reconstruction = codec.decompress(codec.compress(image))
        assert (reconstruction.shape, reconstruction.dtype) == (image.shape, np.uint8)
    assert psnr(image, reconstruction) > 12  # JPEG 2000 keeps its ratio even here, 37 bytes for 1x300.


@each_codec
def test_a_point_is_a_number_or_a_mapping(codec_class):
    parameter = "ratio" if codec_class is Jpeg2000 else "quality"
    bare, mapped, integral = codec_class(20), codec_class({parameter: 20}), codec_class(20.0)
    assert bare.point == mapped.point == integral.point
    assert bare.fingerprint == mapped.fingerprint == integral.fingerprint != codec_class(21).fingerprint
    assert bare.point.label == f"{parameter}=20" and bare.point.parameters == {parameter: 20}


@each_codec
@pytest.mark.parametrize(
    "point", [-1, True, "20", None, float("nan"), float("inf"), {}, {"qp": 3}, {"quality": 1, "ratio": 1}], ids=str
)
def test_a_bad_point_is_refused(codec_class, point):
    with pytest.raises(CodecError, match=codec_class.name):
        codec_class(point)


def test_bad_settings_are_refused():
    with pytest.raises(CodecError, match="quality is a number from 1 to 100, not 101"):
        Jpeg(101)
    with pytest.raises(CodecError, match="whole number"):
        Avif(20.5)
    with pytest.raises(CodecError, match="method"):
        WebP(20, method=7)
    with pytest.raises(CodecError, match="speed"):
        Avif(20, speed=11)


@each_codec
def test_the_fingerprint_names_settings_and_versions(codec_class):
    facts = json.loads(middle(codec_class).fingerprint)
    assert facts["codec"] == codec_class.name and facts["version"] == codec_class.version
    assert facts["pillow"] == Pillow.__version__
    assert any(character.isdigit() for character in facts["library"])
    assert facts["settings"]


@each_codec
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        [[1, 2, 3]],
    ],
    ids=["grey", "one channel", "alpha", "float", "empty", "list"],
)
def test_only_rgb_arrays_are_compressed(codec_class, image):
    with pytest.raises(CodecError, match="uint8 array of shape"):
        middle(codec_class).compress(image)


def test_an_image_beyond_the_format_is_a_codec_error():
    with pytest.raises(CodecError, match="20000x1"):
        WebP(50).compress(np.zeros((1, 20000, 3), np.uint8))


@each_codec
def test_every_truncation_is_refused(codec_class):
    codec = middle(codec_class)
    stream = codec.compress(noisy_image(33, 47))
    for length in range(len(stream)):
        with pytest.raises(BitstreamError, match=codec.name):
            codec.decompress(stream[:length])


@each_codec
def test_truncations_of_a_photograph_are_refused(photograph, codec_class):
    codec = middle(codec_class)
    stream = codec.compress(photograph)
    for length in [*range(0, len(stream), 13), *range(len(stream) - 64, len(stream))]:
        with pytest.raises(BitstreamError):
            codec.decompress(stream[:length])


def test_truncations_of_a_progressive_jpeg_are_refused():
    codec = Jpeg(20, progressive=True)
    stream = codec.compress(noisy_image(33, 47))
    for length in range(len(stream)):
        with pytest.raises(BitstreamError):
            codec.decompress(stream[:length])


@each_codec
def test_trailing_bytes_are_refused(codec_class):
    codec = middle(codec_class)
    stream = codec.compress(noisy_image(33, 47))
    for junk in [b"\0", b"\xff\xd9", b"\0\0\0\x08free", stream]:
        with pytest.raises(BitstreamError):
            codec.decompress(stream + junk)


@each_codec
def test_foreign_bytes_are_refused(codec_class):
    codec = middle(codec_class)
    foreign = [middle(other).compress(noisy_image(33, 47)) for other in CODECS if other is not codec_class]
    png = io.BytesIO()
    Pillow.fromarray(noisy_image(33, 47)).save(png, "PNG")
    for stream in [*foreign, png.getvalue(), b"", b"\0", b"\xff\xd8\xff\xd9", bytes(1000), random.Random(0).randbytes(1000)]:
        with pytest.raises(BitstreamError, match=codec.format):
            codec.decompress(stream)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_streams_of_other_colours_are_refused(mode):
    buffer = io.BytesIO()
    Pillow.fromarray(noisy_image(33, 47)).convert(mode).save(buffer, "JPEG")
    with pytest.raises(BitstreamError, match=mode):
        Jpeg(20).decompress(buffer.getvalue())


def set_size(codec_class, stream: bytes, side: int) -> bytes:
    """The stream with a side x side image announced in its header."""
    data = bytearray(stream)
    if codec_class is Jpeg:
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, side, side)
    elif codec_class is Jpeg2000:
        struct.pack_into(">II", data, 8, side, side)  # Xsiz and Ysiz of the marker SIZ
        struct.pack_into(">II", data, 24, side, side)  # XTsiz and YTsiz
    elif codec_class is WebP:
        struct.pack_into("<HH", data, 26, side, side)
    else:
        struct.pack_into(">II", data, data.index(b"ispe") + 8, side, side)
    return bytes(data)


@each_codec
def test_a_decompression_bomb_is_refused(monkeypatch, codec_class):
    codec = middle(codec_class)
    stream = set_size(codec_class, codec.compress(noisy_image(33, 47)), 12000)
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 10_000_000)
    with pytest.raises(BitstreamError, match="bomb"):
        codec.decompress(stream)


@each_codec
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_one_pixel_limit_holds_both_ways(monkeypatch, codec_class):
    codec = middle(codec_class)
    stream = codec.compress(noisy_image(33, 47))
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 33 * 47 - 1)
    with pytest.raises(BitstreamError, match="MAX_IMAGE_PIXELS"):
        codec.decompress(stream)
    with pytest.raises(CodecError, match="MAX_IMAGE_PIXELS"):
        codec.compress(noisy_image(33, 47))


@each_codec
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_altered_streams_give_an_image_or_a_bitstream_error(monkeypatch, codec_class):
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 4_000_000)  # Otherwise an altered size may cost gigabytes.
    codec = middle(codec_class)
    stream = codec.compress(noisy_image(33, 47))
    generator = random.Random(zlib.crc32(codec.name.encode()))
    refused = 0
    for _ in range(1500):
        data = bytearray(stream)
        for _ in range(generator.choice([1, 1, 2, 8])):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        try:
            image = codec.decompress(bytes(data))
        except BitstreamError:
            refused += 1
        else:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert 0 < refused < 1500


def test_no_codec_depends_on_pillow_accepting_truncated_files(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    for codec_class in CODECS:
        codec = middle(codec_class)
        stream = codec.compress(noisy_image(64, 64))
        for length in range(len(stream)):
            with pytest.raises(BitstreamError):
                codec.decompress(stream[:length])


@each_codec
@pytest.mark.parametrize("upright", [False, True])
def test_the_longest_side_codes_and_decodes_and_one_more_is_refused(codec_class, upright):
    if codec_class is Jpeg2000:
        pytest.skip("its limit lies above the one on pixels")
    codec, limit = middle(codec_class), codec_class.max_side

    def image(side):
        return np.full((side, 1, 3) if upright else (1, side, 3), 77, np.uint8)

    assert codec.decompress(codec.compress(image(limit))).shape == image(limit).shape
    size = f"1x{limit + 1}" if upright else f"{limit + 1}x1"
    with pytest.raises(
        CodecError, match=rf"{codec.name}: an image of {size} pixels .* at most {limit} pixels, .*: give the dataset"
    ):
        codec.compress(image(limit + 1))


@each_codec
def test_every_tiny_size_comes_back(codec_class):
    codec = middle(codec_class)
    for height in (1, 2, 3, 5, 8, 9, 17):
        for width in (1, 2, 3, 7, 16):
            assert codec.decompress(codec.compress(noisy_image(height, width))).shape == (height, width, 3)
