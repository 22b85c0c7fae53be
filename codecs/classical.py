"""JPEG, JPEG 2000, WebP and AVIF through Pillow.

    image --Image.save(format, settings)--> bytes --whole?--> Image.open(formats=[format]) --> image

The libraries below Pillow forgive much: OpenJPEG fills a truncated codestream with zeros, and libjpeg stops at the first end
marker. Each codec therefore first walks through the headers of its stream, and refuses a stream of any other length than theirs.
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import PIL
from PIL import AvifImagePlugin, features
from PIL import Image as Pillow

from icmbench.codecs.base import BitstreamError, CodecError, Image, RatePoint, fingerprint
from icmbench.codecs.checks import check_image, check_pixel_count, check_sides, integer_parameter, number_parameter, require

Point: TypeAlias = int | float | Mapping[str, int | float]


class _PillowCodec:
    """Base of the four codecs, which differ in their settings and in the headers of their streams."""

    name: str
    version: ClassVar[int] = 1  # Raised by hand when bytes or pixels change for the same settings.
    format: ClassVar[str]  # Pillow's name of the format
    feature: ClassVar[str]  # the format's name in PIL.features
    max_side: ClassVar[int]  # pixels of the longest side that both the library's encoder and its decoder take
    background: ClassVar[bool] = True
    point: RatePoint
    fingerprint: str

    def _setup(self, point: RatePoint, settings: dict[str, Any], library: str | None = None) -> None:
        """Set the rate point, the keyword arguments of `Image.save` (the point's included) and the fingerprint.

        `library` names the libraries below Pillow and their versions; by default the feature and its version.
        """
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
        """A self-contained stream. The same image gives the same bytes.

        Args:
            image: uint8 RGB, (height, width, 3).

        Raises:
            CodecError: the image is of another type, or too large for the format.
        """
        check_image(image, self.name)
        height, width = image.shape[:2]
        check_sides(width, height, self.max_side, self.name, f"the limit of Pillow's {self.format}")
        buffer = io.BytesIO()
        try:
            check_pixel_count(width, height)
            Pillow.fromarray(image).save(buffer, self.format, **self._settings)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:  # RuntimeError is how libavif's errors come.
            raise CodecError(f"{self.name}: an image of {width}x{height} pixels cannot be encoded: {error}") from error
        return buffer.getvalue()

    def decompress(self, data: bytes) -> Image:
        """The image of a stream, uint8 RGB (height, width, 3).

        Raises:
            BitstreamError: the bytes are not one whole stream of this format. Bad bytes raise no other error.
        """
        try:
            self._walk(data)
            with Pillow.open(io.BytesIO(data), formats=[self.format]) as picture:
                check_pixel_count(*picture.size)
                if picture.mode != "RGB":
                    raise ValueError(f"its pixels are {picture.mode}, not RGB")
                return np.array(picture)
        except Exception as error:  # Pillow's plug-ins raise a dozen types on bad bytes, even AssertionError and MemoryError.
            raise BitstreamError(f"{self.name}: not a whole {self.format} stream ({len(data)} bytes): {error}") from error

    def _walk(self, data: bytes) -> None:
        """Raise ValueError or struct.error unless the headers in the stream account for every byte."""
        raise NotImplementedError


class Jpeg(_PillowCodec):
    """JPEG as Pillow saves it: baseline, 4:2:0, the standard's Huffman tables.

    Args:
        point: `quality` of libjpeg, 1 to 100.
        optimize: Fit the Huffman tables to the image. Off by default, as in Pillow.
        progressive: Code in scans from coarse to fine, which implies `optimize`. Off by default, as in Pillow.
        subsampling: Resolution of chroma; "4:2:0" (half the width and height) is Pillow's default.

    Raises:
        CodecError: an option is out of range.
    """

    name = "jpeg"
    format = "JPEG"
    feature = "jpg"
    max_side = 65_500  # JPEG_MAX_DIMENSION of libjpeg; the format itself has 65,535.
    default_points = (5, 10, 20, 35, 50, 75)

    def __init__(
        self,
        point: Point,
        *,
        optimize: bool = False,
        progressive: bool = False,
        subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0",
    ) -> None:
        quality = integer_parameter(point, self.name, "quality", 1, 100)
        variant = "mozjpeg" if features.check("mozjpeg") else "libjpeg-turbo" if features.check("libjpeg_turbo") else "libjpeg"
        self._setup(
            RatePoint.of("quality", quality),
            {"quality": quality, "optimize": optimize, "progressive": progressive, "subsampling": subsampling},
            library=f"{variant} {features.version('libjpeg_turbo') or features.version('jpg')}",
        )

    def _walk(self, data: bytes) -> None:
        require(data.startswith(b"\xff\xd8\xff"), "it does not begin with a start-of-image marker")
        position = 2
        while data[position : position + 2] != b"\xff\xd9":
            mark, code, length = struct.unpack_from(">BBH", data, position)
            require(mark == 0xFF and length >= 2, f"no marker segment at byte {position}")
            position += 2 + length
            if code == 0xDA:  # Start of scan: entropy-coded bytes follow, up to the next marker.
                marker = _JPEG_MARKER.search(data, position)
                require(marker is not None, "its last scan has no end")
                position = marker.start()  # type: ignore[union-attr]
        require(position + 2 == len(data), f"{len(data) - position - 2} bytes follow its end")


# In entropy-coded bytes, 0xFF is followed by a stuffed 0x00 or begins a restart marker, D0 to D7. Any other pair ends the scan.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")


class Jpeg2000(_PillowCodec):
    """JPEG 2000 through OpenJPEG: a bare codestream, one layer at a set compression ratio.

    Args:
        point: `ratio` of raw to coded size, at least 1. A larger one is a lower rate; 240 is about 0.1 bit per pixel.
        irreversible: Use the 9/7 wavelet and the irreversible colour transform, which suit lossy coding; otherwise the
            reversible 5/3 wavelet and colour transform.

    Raises:
        CodecError: an option is out of range.
    """

    name = "jpeg2000"
    format = "JPEG2000"
    feature = "jpg_2000"
    max_side = (1 << 31) - 1  # More than the limit on pixels lets pass.
    default_points = (480, 240, 120, 80, 48, 24)

    def __init__(self, point: Point, *, irreversible: bool = True) -> None:
        ratio = number_parameter(point, self.name, "ratio", 1, math.inf)
        settings = {"irreversible": irreversible, "quality_mode": "rates", "quality_layers": [ratio], "no_jp2": True, "mct": 1}
        # The sort key is the requested rate in bits per pixel; raw RGB has 24.
        self._setup(RatePoint(f"ratio={ratio:g}", 24 / ratio, {"ratio": ratio}), settings)

    def _walk(self, data: bytes) -> None:
        require(data.startswith(b"\xff\x4f\xff\x51"), "it does not begin with the markers SOC and SIZ")
        position = 2
        while data[position : position + 2] != b"\xff\x90":  # The main header ends at the first start-of-tile-part marker.
            mark, _, length = struct.unpack_from(">BBH", data, position)
            require(mark == 0xFF and length >= 2, f"no marker segment at byte {position}")
            position += 2 + length
        while data[position : position + 2] == b"\xff\x90":
            (length,) = struct.unpack_from(">I", data, position + 6)  # Psot, which counts from the SOT marker on.
            require(length >= 14, f"no tile-part length at byte {position}")
            position += length
        require(data[position:] == b"\xff\xd9", "its tile-parts do not end at the end-of-codestream marker")


class WebP(_PillowCodec):
    """WebP, lossy, through libwebp.

    Args:
        point: `quality`, 0 to 100.
        method: Effort of the encoder, 0 (fast) to 6 (best compression, the default).

    Raises:
        CodecError: an option is out of range.
    """

    name = "webp"
    format = "WEBP"
    feature = "webp"
    max_side = 16_383  # WEBP_MAX_DIMENSION
    default_points = (0, 5, 15, 30, 50, 75)

    def __init__(self, point: Point, *, method: int = 6) -> None:
        quality = integer_parameter(point, self.name, "quality", 0, 100)
        integer_parameter(method, self.name, "method", 0, 6)
        self._setup(RatePoint.of("quality", quality), {"quality": quality, "method": method})

    def _walk(self, data: bytes) -> None:
        riff, size, form, chunk, length = struct.unpack_from("<4sI4s4sI", data)
        require((riff, form, chunk) == (b"RIFF", b"WEBP", b"VP8 "), "it is not a RIFF file of one lossy WebP chunk")
        require(size + 8 == len(data) == 20 + length + length % 2, f"its header announces {size + 8} bytes")


class Avif(_PillowCodec):
    """AVIF through libavif and libaom, 4:4:4 by default.

    Args:
        point: `quality`, 0 to 100.
        speed: Speed of the encoder, 0 (slow, best compression) to 10 (fast). 6 is Pillow's default.
        subsampling: Resolution of chroma. "4:4:4" keeps all of it; Pillow's default is "4:2:0".
        tune: What libaom optimises. "ssim" is what the baseline rates were specified with; libavif's default is "iq".

    Raises:
        CodecError: an option is out of range, or this Pillow has no libaom.
    """

    name = "avif"
    format = "AVIF"
    feature = "avif"
    # AVIF_DEFAULT_IMAGE_DIMENSION_LIMIT of libavif's decoder. Its encoder takes 65,536, whose streams nothing here could decode.
    max_side = 32_768
    default_points = (5, 15, 25, 35, 45, 60)

    def __init__(
        self,
        point: Point,
        *,
        speed: int = 6,
        subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:4:4",
        tune: Literal["ssim", "psnr", "iq", "ssimulacra2"] = "ssim",
    ) -> None:
        quality = integer_parameter(point, self.name, "quality", 0, 100)
        integer_parameter(speed, self.name, "speed", 0, 10)
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
            length, box_type = struct.unpack_from(">I4s", data, position)
            require(box_type == box and length >= 8, f"no box {box.decode()!r} at byte {position}")
            position += length
        require(position == len(data), f"its boxes announce {position} bytes")
