"""Sizes of pictures from their headers, so that labels are compared with all photographs before the first one is coded.

A header costs about 0.1 ms and is read once in a process while the file stays the same. What a header does not tell (a damaged
file, tags behind the pixels of a PNG) is left to the reader of the pixels, which has the last word.
"""

from __future__ import annotations

import functools
import stat
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL.Image import Transpose

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.decoding import find_turn, open_picture

PNG_START = b"\x89PNG\r\n\x1a\n"
# Turns that exchange width and height.
SIDEWAYS = (Transpose.TRANSPOSE, Transpose.TRANSVERSE, Transpose.ROTATE_90, Transpose.ROTATE_270)
GREY_WITH_ALPHA = 4  # Colour type of a PNG.


def upright_size(path: Path) -> tuple[int, int] | None:
    """Height and width of a photograph once it is upright, in pixels; None if its header cannot be read."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return _upright_size(str(path), status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


@functools.cache
def _upright_size(path: str, size: int, mtime_ns: int) -> tuple[int, int] | None:
    try:
        with Path(path).open("rb") as file, open_picture(file) as picture:
            width, height = picture.size
            # A TIFF states its size as it will be when Pillow has turned it.
            turn = None if picture.format == "TIFF" else find_turn(picture)
    except Exception:  # Pillow raises a dozen types on damaged headers, which the reader of the pixels names.
        return None
    return (width, height) if turn in SIDEWAYS else (height, width)


def are_shares(coordinates: npt.ArrayLike) -> bool:
    """Whether coordinates are shares of a picture's sides, from 0 to 1, where pixels should be.

    All lie within the first pixel and one is no whole number, which no labels of a photograph are by chance.
    """
    numbers = np.asarray(coordinates, dtype=np.float64)
    return bool(numbers.size and numbers.min() >= 0 and numbers.max() <= 1 and (numbers % 1 != 0).any())


def check_map_header(mask: Path, photograph: Path, size: tuple[int, int] | None) -> None:
    """Check that a label map is there, is a PNG that has one label for each pixel, and has the size of its photograph.

    Args:
        mask: the PNG.
        photograph: its photograph, for the message.
        size: height and width of the photograph in pixels, or None if it is not known.

    Raises:
        DatasetError: something of it is wrong; the message names the file.
    """
    if not mask.is_file():
        raise DatasetError(f"{mask}: no such label map, or no regular file; complete the annotation folder")
    try:
        with mask.open("rb") as file:
            start = file.read(26)
    except OSError as error:
        raise DatasetError(f"{mask}: cannot be read ({error.strerror}); put the label map itself there") from None
    if not start.startswith(PNG_START) or len(start) < 26 or start[12:16] != b"IHDR":
        raise DatasetError(f"{mask}: damaged or no PNG; download it again")
    width, height, _, colour_type = struct.unpack(">IIBB", start[16:26])
    if colour_type == GREY_WITH_ALPHA:
        raise DatasetError(f"{mask}: a label map is greyscale, palette or RGB, and this one is greyscale with alpha; convert it")
    if size is not None and (height, width) != size:
        raise DatasetError(
            f"{mask}: {width}x{height} pixels, but its photograph {photograph} has {size[1]}x{size[0]}; "
            "give the annotations of these photographs"
        )
