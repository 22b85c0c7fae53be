"""JPEG XL through the libjxl inside imagecodecs: a bare lossy codestream.

image --JxlEncoder, distance--> codestream --size, last byte needed?--> JxlDecoder --> image
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from icmbench.codecs.base import BitstreamError, CodecError, Image, RatePoint, fingerprint
from icmbench.codecs.checks import check_image, check_pixel_count, check_sides, integer_parameter, number_parameter

_SIGNATURE = b"\xff\x0a"
_MAX_SIDE = 1 << 18  # Larger images need level 10, which libjxl writes into a container.
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, by their number in the header from 1


class JpegXl:
    """JPEG XL, lossy, through libjxl.

    Args:
        point: `distance` in libjxl's Butteraugli units, 0.01 to 25. 1 is visually lossless; 25, about 0.1 bit per pixel, is the
            lowest rate.
        effort: Effort of the encoder, 1 (fast) to 10 (slow). 7 is libjxl's default.

    Raises:
        CodecError: an option is out of range, or this imagecodecs has no libjxl.
    """

    name = "jpegxl"
    extra = "jpegxl"
    version = 1  # Raised by hand when bytes or pixels change for the same settings.
    background = True
    default_points = (25, 15, 8, 4, 2, 1)

    def __init__(self, point: float | Mapping[str, float], *, effort: int = 7) -> None:
        distance = number_parameter(point, self.name, "distance", 0.01, 25)
        integer_parameter(effort, self.name, "effort", 1, 10)
        import imagecodecs

        if not imagecodecs.JPEGXL.available:
            raise CodecError("jpegxl: this imagecodecs was built without libjxl: install its own wheel")
        self._codec = imagecodecs
        self.point = RatePoint(f"distance={distance:g}", -distance, {"distance": distance})
        self._distance, self._effort = distance, effort
        self.fingerprint = fingerprint(
            codec=self.name,
            version=self.version,
            settings={"distance": distance, "effort": effort},
            imagecodecs=imagecodecs.__version__,
            library=imagecodecs.jpegxl_version(),
        )

    def compress(self, image: Image) -> bytes:
        """A self-contained codestream. The same image gives the same bytes.

        Args:
            image: uint8 RGB, (height, width, 3).

        Raises:
            CodecError: the image is of another type, or libjxl refuses it.
        """
        check_image(image, self.name)
        height, width = image.shape[:2]
        check_sides(width, height, _MAX_SIDE, self.name, "as level 5 of JPEG XL has it")
        try:
            check_pixel_count(width, height)
            stream = self._codec.jpegxl_encode(
                image, distance=self._distance, effort=self._effort, usecontainer=False, numthreads=1
            )
        except (ValueError, MemoryError, self._codec.JpegxlError) as error:
            raise CodecError(f"jpegxl: an image of {width}x{height} pixels cannot be encoded: {error}") from error
        return bytes(stream)

    def decompress(self, data: bytes) -> Image:
        """The image of a codestream, uint8 RGB (height, width, 3).

        Raises:
            BitstreamError: the bytes are not one whole codestream of an 8-bit RGB image. Bad bytes raise no other error.
        """
        try:
            width, height = read_jpegxl_size(data)
            check_pixel_count(width, height)
            if self._decodes(data[:-1]):  # libjxl ignores bytes after the end of a codestream.
                raise ValueError("bytes follow its end")
            image = self._codec.jpegxl_decode(data, numthreads=1)
            if image.shape != (height, width, 3) or image.dtype != np.uint8:
                raise ValueError(f"its picture is {image.dtype} of shape {image.shape}, not one of 8-bit RGB")
        except Exception as error:  # imagecodecs raises half a dozen types on bad bytes, even MemoryError.
            raise BitstreamError(f"jpegxl: not a whole JPEG XL codestream ({len(data)} bytes): {error}") from error
        return np.ascontiguousarray(image)

    def _decodes(self, data: bytes) -> bool:
        try:
            self._codec.jpegxl_decode(data, numthreads=1)
        except (RuntimeError, ValueError):
            return False
        return True


def read_jpegxl_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels that the header of a bare codestream announces (ISO/IEC 18181-1, SizeHeader).

    Raises:
        ValueError: the bytes do not begin a bare codestream.
    """
    if data[:2] != _SIGNATURE or len(data) < 12:
        raise ValueError("it does not begin with the signature of a bare codestream")
    bits = int.from_bytes(data[2:12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    ratio = take(3)
    if not ratio:
        return side(), height
    width, divisor = _RATIOS[ratio - 1]
    return height * width // divisor, height
