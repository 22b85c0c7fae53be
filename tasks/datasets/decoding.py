"""Picture files to 8-bit RGB: which formats are opened, how many pixels are decoded, and what turns a photograph upright."""

from __future__ import annotations

import io
import math
import re
import struct
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO, Any, TypeVar

from PIL import Image as Pillow

# Pillow's names of the formats behind these suffixes. A file of another format is never opened: Pillow would start Ghostscript for
# PostScript, whatever the name of the file.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "PPM", "TIFF")
MAX_DECODED_PIXELS = 1 << 28  # 16384 x 16384, which is 805 MB as RGB.
MAX_CODED_PIXELS = 89_478_485  # PIL.Image.MAX_IMAGE_PIXELS, the limit of the codecs.
CONVERTIBLE = ("1", "L", "P", "RGB", "CMYK", "YCbCr")  # Pillow modes with one obvious 8-bit RGB reading.
# Pillow warns of metadata that it cannot read, which decides nothing here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Pillow.DecompressionBombWarning, module=r"PIL\.")  # See `without_limit`.
ORIENTATION = 0x0112  # The EXIF tag.
_LIMIT = threading.Lock()  # Held while Pillow's own limit on pixels is lifted.
Decoded = TypeVar("Decoded")
TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


def open_picture(file: IO[bytes]) -> Pillow.Image:
    """A picture whose header is read, of one of FORMATS.

    `Image.open` takes the same formats, but refuses pictures by a limit of the whole process, which preprocessing cannot change.

    Raises:
        ValueError: it has another format. Pillow's plug-ins raise a dozen other types on damaged headers.
    """
    Pillow.init()
    prefix = file.read(16)
    for name in FORMATS:
        factory, accept = Pillow.OPEN.get(name, (None, None))
        accepted = factory is not None and accept is not None and accept(prefix)
        if isinstance(accepted, str):
            raise ValueError(f"this Pillow cannot read {name} ({accepted}); install Pillow's own wheel")
        if accepted and factory is not None:
            file.seek(0)
            if name == "AVIF":
                return _open_avif(file, factory)
            return without_limit(partial(factory, file, getattr(file, "name", "")), lambda: file.seek(0))
    raise ValueError(f"damaged or no image (not {', '.join(FORMATS[:-1])} or {FORMATS[-1]})")


def without_limit(decode: Callable[[], Decoded], again: Callable[[], Any] = lambda: None) -> Decoded:
    """The result of a function, called once more without Pillow's own limit on pixels if that is in its way.

    Pillow compares WebP, TIFF and crops with a limit of the whole process, of 179 megapixels. What is decoded here is bounded by
    `refuse_large`, which knows what preprocessing makes of it, and a WebP by its format (16383 x 16383).

    Args:
        decode: what opens, loads or crops a picture.
        again: called before the second call, such as to rewind a file.
    """
    try:
        return decode()
    except Pillow.DecompressionBombError:
        again()
        with _LIMIT:
            limit, Pillow.MAX_IMAGE_PIXELS = Pillow.MAX_IMAGE_PIXELS, None
            try:
                return decode()
            finally:
                Pillow.MAX_IMAGE_PIXELS = limit


def _open_avif(file: IO[bytes], factory: Callable[..., Pillow.Image]) -> Pillow.Image:
    """An AVIF, if need be without its EXIF, which Pillow writes anew when it opens a turned picture, and fails on odd tags.

    Nothing is lost, as an AVIF is turned by its own properties and not by its EXIF (ISO/IEC 23008-12).
    """
    try:
        return factory(file, getattr(file, "name", ""))
    except Exception:  # It may be damaged as well, which the second attempt tells.
        file.seek(0)
        data = file.read()
        start = data.find(b"meta")
        end = start + int.from_bytes(data[max(start - 4, 0) : start], "big")
        return factory(io.BytesIO(data[:start] + data[start:end].replace(b"Exif", b"skip") + data[end:]), "")


def refuse_large(sizes: Sequence[tuple[int, int]]) -> None:
    """Check the size of a picture before it is decoded.

    Args:
        sizes: its width and height in pixels: as decoded, and after each step of preprocessing.

    Raises:
        ValueError: more than MAX_DECODED_PIXELS would be held at once, or more than MAX_CODED_PIXELS coded.
    """
    largest = max(sizes, key=lambda size: size[0] * size[1])
    if largest[0] * largest[1] > MAX_DECODED_PIXELS:
        place = "" if largest == sizes[0] else " after a step of its preprocessing"
        raise ValueError(
            f"{largest[0]}x{largest[1]} pixels{place} are {_megapixels(*largest)} megapixels, and at most "
            f"{_megapixels(MAX_DECODED_PIXELS)} are read; shrink or cut the picture first"
        )
    width, height = sizes[-1]
    if width * height > MAX_CODED_PIXELS:
        raise ValueError(
            f"{width}x{height} pixels are {_megapixels(width, height)} megapixels, and at most {_megapixels(MAX_CODED_PIXELS)} are "
            "coded; give the dataset a `preprocessing` such as short:4096 or crop:8192x8192, or shrink or cut the picture first"
        )


def _megapixels(*sides: int) -> str:
    return f"{math.prod(sides) / 1e6:.1f}"


def find_turn(picture: Pillow.Image) -> Pillow.Transpose | None:
    """What turns a picture upright by its EXIF orientation; None if nothing has to be done.

    A picture that is opened but not loaded is not loaded for this: a PNG may hold its tags behind the pixels.

    The EXIF is walked here for this one tag, because Pillow's own reader stops at other tags of an odd type or position.
    """
    exif = picture.info.get("exif")
    value = _stored_orientation(exif) if isinstance(exif, bytes) else None
    if value is None:  # It may stand in XMP or in a text chunk, which Pillow finds.
        try:
            value = Pillow.Image.getexif(picture).get(ORIENTATION)
        except Exception:  # What Pillow cannot read at all turns nothing.
            value = None
    return TURNS.get(value) if isinstance(value, int) else None


def _stored_orientation(exif: bytes) -> int | None:
    """The orientation in the first directory of EXIF bytes, or None (TIFF 6.0, section 2; EXIF 2.3, section 4.6.4)."""
    data = exif
    while data.startswith(b"Exif\0\0"):
        data = data[6:]
    try:
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for position in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", data, position)
            if tag == ORIENTATION:
                value: int = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], data, position + 8)[0]
                return value
    except (KeyError, struct.error):
        pass
    return None


def refuse_deep(picture: Pillow.Image) -> None:
    """Raise ValueError if a picture that is opened but not loaded has more than 8 bits a sample."""
    # Pillow reads 16-bit RGB as 8-bit RGB by dropping the low byte. Only the raw mode of the file's tiles reveals it.
    if picture.mode[:1] in "IF" or any(re.search(r";(10|12|16|32)", str(tile[-1])) for tile in getattr(picture, "tile", ())):
        raise ValueError(f"more than 8 bits a sample (mode {picture.mode}); convert the image to 8 bits")


def refuse_mode(picture: Pillow.Image) -> None:
    """Raise ValueError if a picture has no one reading as RGB. Whether its pixels are translucent, only they tell."""
    if not picture.has_transparency_data and picture.mode not in CONVERTIBLE:
        raise ValueError(f"colour mode {picture.mode} is not supported; convert the image to RGB")


def to_rgb(picture: Pillow.Image) -> Pillow.Image:
    """The picture as 8-bit RGB. Raises ValueError if that needs a choice."""
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A").getextrema()
        if alpha != (255, 255):
            raise ValueError("the image has translucent pixels; flatten it on a background first")
        return picture.convert("RGBA").convert("RGB")
    refuse_mode(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
