"""JPEG, JPEG 2000, WebP and AVIF through Pillow.

    image --Image.save(format, settings)--> bytes --whole?--> Image.open(formats=[format]) --> image

The libraries below Pillow forgive much: OpenJPEG fills a cut codestream with zeros, libjpeg stops at the first end marker. Each
codec therefore first walks the segments of its stream, headers only, and refuses one that is not exactly as long as they say.
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Mapping
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import PIL
from PIL import AvifImagePlugin, features
from PIL import Image as Pillow

from icmbench.codecs.base import BitstreamError, CodecError, Image, RatePoint, fingerprint

Point: TypeAlias = int | float | Mapping[str, int | float]


def check_image(image: Any, codec: str) -> None:
    """Raise CodecError unless `image` is a uint8 RGB array of shape (height, width, 3), neither side zero."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        got = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise CodecError(f"{codec}: an image is a uint8 array of shape (height, width, 3), not {got}: convert it to RGB first")


class _PillowCodec:
    """What the four share. `settings` are keyword arguments of `Image.save`, the point's own among them."""

    name: str
    version: ClassVar[int] = 1  # raised by hand when bytes or pixels change for the same settings
    format: ClassVar[str]  # Pillow's name
    feature: ClassVar[str]  # the name in PIL.features
    background: ClassVar[bool] = True
    point: RatePoint
    fingerprint: str

    def _setup(self, point: RatePoint, settings: dict[str, Any], library: str | None = None) -> None:
        if not features.check(self.feature):
            raise CodecError(f"{self.name}: this Pillow was built without {self.format}: install Pillow's own wheel")
        self.point = point
        self._settings = settings
        self.fingerprint = fingerprint(
            codec=self.name,
            version=self.version,
            settings=settings,
            pillow=PIL.__version__,
            library=library or f"{self.feature} {features.version(self.feature)}",
        )

    def compress(self, image: Image) -> bytes:
        """A self-contained stream; the same image gives the same bytes. Raises CodecError where the format has no room for it."""
        check_image(image, self.name)
        height, width = image.shape[:2]
        buffer = io.BytesIO()
        try:
            _check_pixels(width, height)
            Pillow.fromarray(image).save(buffer, self.format, **self._settings)
        except (OSError, ValueError) as error:
            raise CodecError(f"{self.name}: an image of {width}x{height} pixels cannot be encoded: {error}") from error
        return buffer.getvalue()

    def decompress(self, data: bytes) -> Image:
        """The image of a stream, uint8 (height, width, 3). Raises BitstreamError, never anything else, on bad bytes."""
        try:
            self._walk(data)
            with Pillow.open(io.BytesIO(data), formats=[self.format]) as picture:
                _check_pixels(*picture.size)
                if picture.mode != "RGB":
                    raise ValueError(f"its pixels are {picture.mode}, not RGB")
                return np.array(picture)
        except Exception as error:  # Pillow's plug-ins raise a dozen types on bad bytes, AssertionError and MemoryError among them
            raise BitstreamError(f"{self.name}: not a whole {self.format} stream ({len(data)} bytes): {error}") from error

    def _walk(self, data: bytes) -> None:
        """Raise ValueError or struct.error unless the stream's own headers account for every byte."""
        raise NotImplementedError


class Jpeg(_PillowCodec):
    """JPEG as Pillow saves it: baseline, 4:2:0, the standard's Huffman tables.

    point: `quality`, 1 to 100 of libjpeg.
    optimize, progressive: Huffman tables fitted to the image; scans from coarse to fine (implies optimize).
    """

    name = "jpeg"
    format = "JPEG"
    feature = "jpg"
    default_points = (5, 10, 20, 35, 50, 75)

    def __init__(
        self,
        point: Point,
        *,
        optimize: bool = False,
        progressive: bool = False,
        subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0",
    ) -> None:
        quality = _integer(point, self.name, "quality", 1, 100)
        variant = "mozjpeg" if features.check("mozjpeg") else "libjpeg-turbo" if features.check("libjpeg_turbo") else "libjpeg"
        self._setup(
            RatePoint.of("quality", quality),
            {"quality": quality, "optimize": optimize, "progressive": progressive, "subsampling": subsampling},
            library=f"{variant} {features.version('libjpeg_turbo') or features.version('jpg')}",
        )

    def _walk(self, data: bytes) -> None:
        _require(data.startswith(b"\xff\xd8\xff"), "it does not begin with a start-of-image marker")
        position = 2
        while data[position : position + 2] != b"\xff\xd9":
            mark, code, length = struct.unpack_from(">BBH", data, position)
            _require(mark == 0xFF and length >= 2, f"no marker segment at byte {position}")
            position += 2 + length
            if code == 0xDA:  # start of scan: entropy-coded bytes follow, up to the next marker
                found = _JPEG_MARKER.search(data, position)
                _require(found is not None, "its last scan has no end")
                position = found.start()  # type: ignore[union-attr]
        _require(position + 2 == len(data), f"{len(data) - position - 2} bytes follow its end")


# In entropy-coded bytes 0xFF is stuffed with 0x00 or begins a restart marker, D0 to D7.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")


class Jpeg2000(_PillowCodec):
    """JPEG 2000 through OpenJPEG: a bare codestream, one layer at a set compression ratio.

    point: `ratio` of raw to coded size, at least 1; a larger one is a lower rate (240 is about 0.1 bit per pixel).
    irreversible: the 9/7 wavelet with the irreversible colour transform; otherwise 5/3.
    """

    name = "jpeg2000"
    format = "JPEG2000"
    feature = "jpg_2000"
    default_points = (480, 240, 120, 80, 48, 24)

    def __init__(self, point: Point, *, irreversible: bool = True) -> None:
        ratio = _number(point, self.name, "ratio", 1, math.inf)
        settings = {"irreversible": irreversible, "quality_mode": "rates", "quality_layers": [ratio], "no_jp2": True, "mct": 1}
        # The sort key is the rate asked for, in bits per pixel: raw RGB has 24.
        self._setup(RatePoint(f"ratio={ratio:g}", 24 / ratio, {"ratio": ratio}), settings)

    def _walk(self, data: bytes) -> None:
        _require(data.startswith(b"\xff\x4f\xff\x51"), "it does not begin with the markers SOC and SIZ")
        position = 2
        while data[position : position + 2] != b"\xff\x90":  # main header, up to the first start of tile-part
            mark, _, length = struct.unpack_from(">BBH", data, position)
            _require(mark == 0xFF and length >= 2, f"no marker segment at byte {position}")
            position += 2 + length
        while data[position : position + 2] == b"\xff\x90":
            (length,) = struct.unpack_from(">I", data, position + 6)  # Psot, counted from the SOT marker
            _require(length >= 14, f"no tile-part length at byte {position}")
            position += length
        _require(data[position:] == b"\xff\xd9", "its tile-parts do not end at the end-of-codestream marker")


class WebP(_PillowCodec):
    """WebP, lossy, through libwebp.

    point: `quality`, 0 to 100.
    method: 0 (fast) to 6 (best).
    """

    name = "webp"
    format = "WEBP"
    feature = "webp"
    default_points = (0, 5, 15, 30, 50, 75)

    def __init__(self, point: Point, *, method: int = 6) -> None:
        quality = _integer(point, self.name, "quality", 0, 100)
        _integer(method, self.name, "method", 0, 6)
        self._setup(RatePoint.of("quality", quality), {"quality": quality, "method": method})

    def _walk(self, data: bytes) -> None:
        riff, size, form, chunk, length = struct.unpack_from("<4sI4s4sI", data)
        _require((riff, form, chunk) == (b"RIFF", b"WEBP", b"VP8 "), "it is not a RIFF file of one lossy WebP chunk")
        _require(size + 8 == len(data) == 20 + length + length % 2, f"its header announces {size + 8} bytes")


class Avif(_PillowCodec):
    """AVIF through libavif and libaom, 4:4:4 by default.

    point: `quality`, 0 to 100.
    speed: 0 (slow) to 10 (fast).
    tune: what libaom optimises; libavif's own default is "iq".
    """

    name = "avif"
    format = "AVIF"
    feature = "avif"
    default_points = (5, 15, 25, 35, 45, 60)

    def __init__(
        self,
        point: Point,
        *,
        speed: int = 6,
        subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:4:4",
        tune: Literal["ssim", "psnr", "iq", "ssimulacra2"] = "ssim",
    ) -> None:
        quality = _integer(point, self.name, "quality", 0, 100)
        _integer(speed, self.name, "speed", 0, 10)
        encoder = AvifImagePlugin.get_codec_version("aom") if features.check("avif") else None
        if encoder is None:
            raise CodecError("avif: this Pillow was built without libaom: install Pillow's own wheel, 11.3 or later")
        settings = {
            "quality": quality,
            "speed": speed,
            "subsampling": subsampling,
            "codec": "aom",
            "max_threads": 1,
            "advanced": {"tune": tune},
        }
        decoder = AvifImagePlugin.get_codec_version("dav1d")
        library = f"libavif {features.version('avif')}, aom {encoder}, dav1d {decoder}"
        self._setup(RatePoint.of("quality", quality), settings, library)

    def _walk(self, data: bytes) -> None:
        position = 0
        for box in (b"ftyp", b"meta", b"mdat"):  # libavif's order for one image
            length, kind = struct.unpack_from(">I4s", data, position)
            _require(kind == box and length >= 8, f"no box {box.decode()!r} at byte {position}")
            position += length
        _require(position == len(data), f"its boxes announce {position} bytes")


def _number(point: Any, codec: str, parameter: str, low: float, high: float) -> int | float:
    """The one number of a rate point, given bare or as {parameter: number}."""
    value = point
    if isinstance(point, Mapping):
        if set(point) != {parameter}:
            raise CodecError(f"{codec}: a point has the one parameter {parameter!r}, not {dict(point)!r}")
        value = point[parameter]
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or math.isinf(number):
        span = f"of at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise CodecError(f"{codec}: {parameter} is a number {span}, not {value!r}")
    return int(number) if number.is_integer() else number


def _integer(point: Any, codec: str, parameter: str, low: int, high: int) -> int:
    value = _number(point, codec, parameter, low, high)
    if not isinstance(value, int):
        raise CodecError(f"{codec}: {parameter} is a whole number, not {value!r}")
    return value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_pixels(width: int, height: int) -> None:
    """Pillow only warns between its limit and twice that; here one limit holds for encoding and decoding."""
    limit = Pillow.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"{width}x{height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS ({limit})")
