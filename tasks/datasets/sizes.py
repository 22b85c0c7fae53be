"""Sizes and modes of pictures from their headers, so that all of them are looked at before the first one is coded.

A header costs about 0.1 ms and is read once in a process while the file stays the same. What a header does not tell (a damaged
file, tags behind the pixels of a PNG) is left to the reader of the pixels, which has the last word.
"""

from __future__ import annotations

import functools
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL.Image import Image, Transpose

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.decoding import find_turn, open_picture, refuse_deep, refuse_mode

PNG_START = b"\x89PNG\r\n\x1a\n"
# Turns that exchange width and height.
SIDEWAYS = (Transpose.TRANSPOSE, Transpose.TRANSVERSE, Transpose.ROTATE_90, Transpose.ROTATE_270)
GREY_WITH_ALPHA = 4  # Colour type of a PNG.


@dataclass(frozen=True)
class PictureHeader:
    """What the header of a photograph tells.

    Attributes:
        stored: width and height in pixels as it is stored.
        upright: height and width in pixels once it is upright.
        is_convertible: whether it can become 8-bit RGB, as far as a header tells: not with 16 bits a sample, for one.
    """

    stored: tuple[int, int]
    upright: tuple[int, int]
    is_convertible: bool


def picture_header(path: Path) -> PictureHeader | None:
    """The header of a photograph; None if it cannot be read."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return _picture_header(str(path), status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def upright_size(path: Path) -> tuple[int, int] | None:
    """Height and width of a photograph once it is upright, in pixels; None if its header cannot be read."""
    header = picture_header(path)
    return None if header is None else header.upright


@functools.cache
def _picture_header(path: str, size: int, mtime_ns: int) -> PictureHeader | None:
    try:
        with Path(path).open("rb") as file, open_picture(file) as picture:
            width, height = picture.size
            # A TIFF states its size as it will be when Pillow has turned it.
            turn = None if picture.format == "TIFF" else find_turn(picture)
            is_convertible = _is_convertible(picture)
    except Exception:  # Pillow raises a dozen types on damaged headers, which the reader of the pixels names.
        return None
    return PictureHeader((width, height), (width, height) if turn in SIDEWAYS else (height, width), is_convertible)


def _is_convertible(picture: Image) -> bool:
    try:
        refuse_deep(picture)
        refuse_mode(picture)
    except ValueError:
        return False
    return True


def are_shares(coordinates: npt.ArrayLike) -> bool:
    """Whether coordinates are shares of a picture's sides, from 0 to 1, where pixels should be.

    All lie within the first pixel and one is no whole number, which no labels of a photograph are by chance.
    """
    numbers = np.asarray(coordinates, dtype=np.float64)
    return bool(numbers.size and numbers.min() >= 0 and numbers.max() <= 1 and (numbers % 1 != 0).any())


@dataclass(frozen=True)
class MapHeader:
    """What the header of a label map tells.

    Attributes:
        size: height and width in pixels.
        depth: bits of a sample.
        colour: colour type of the PNG: 0 greyscale, 2 RGB, 3 palette, 6 RGB with alpha.
    """

    size: tuple[int, int]
    depth: int
    colour: int


def check_map_header(mask: Path, photograph: Path, size: tuple[int, int] | None) -> None:
    """Check that a label map is there, is a PNG that has one label for each pixel, and has the size of its photograph.

    Args:
        mask: the PNG.
        photograph: its photograph, for the message.
        size: height and width of the photograph in pixels, or None if it is not known.

    Raises:
        DatasetError: something of it is wrong; the message names the file.
    """
    header = read_map_header(mask, str(mask))
    if size is not None and header.size != size:
        raise refuse_map_size(str(mask), header.size, str(photograph), size)


def read_map_header(mask: Path | bytes, named: str) -> MapHeader:
    """The header of a label map.

    Args:
        mask: the PNG, or its bytes.
        named: what names it in messages.

    Raises:
        DatasetError: it is missing, no PNG, or greyscale with alpha.
    """
    start = mask[:26] if isinstance(mask, bytes) else _read_start(mask)
    if not start.startswith(PNG_START) or len(start) < 26 or start[12:16] != b"IHDR":
        raise DatasetError(f"{named}: damaged or no PNG; download it again")
    width, height, depth, colour = struct.unpack(">IIBB", start[16:26])
    if colour == GREY_WITH_ALPHA:
        raise DatasetError(f"{named}: a label map is greyscale, palette or RGB, and this one is greyscale with alpha; convert it")
    return MapHeader((height, width), depth, colour)


def refuse_map_size(named: str, size: tuple[int, int], photograph: str, wanted: tuple[int, int]) -> DatasetError:
    """The error for a label map of another size than its photograph, both as height and width; the caller raises it."""
    return DatasetError(
        f"{named}: {size[1]}x{size[0]} pixels, but its photograph {photograph} has {wanted[1]}x{wanted[0]}; "
        "give the annotations of these photographs"
    )


def _read_start(mask: Path) -> bytes:
    """The first bytes of a PNG, up to the colour type."""
    if not mask.is_file():
        raise DatasetError(f"{mask}: no such label map, or no regular file; complete the annotation folder")
    try:
        with mask.open("rb") as file:
            return file.read(26)
    except OSError as error:
        raise DatasetError(f"{mask}: cannot be read ({error.strerror}); put the label map itself there") from None
