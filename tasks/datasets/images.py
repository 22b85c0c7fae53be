"""Photographs as they are coded: decoded, upright, 8-bit RGB, in one declared preprocessing.

    file -> Pillow -> EXIF orientation -> RGB -> preprocessing -> uint8 (height, width, 3)

What cannot become 8-bit RGB without a choice (16 bits a sample, translucent pixels) is refused by name. Embedded colour
profiles are not applied: codecs and models see the stored samples.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from icmbench.tasks.base import DatasetError, Image
from icmbench.tasks.geometry import centre_crop, resize_short

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".ppm", ".tif", ".tiff")
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)  # what reading JSON by keys raises
CONVERTIBLE = ("1", "L", "P", "RGB", "CMYK", "YCbCr")  # modes with one obvious 8-bit RGB reading


@dataclass(frozen=True)
class Preprocessing:
    """What is done to every image before coding, as comma-separated steps; `native` does nothing.

        resize:512x512              to width x height, the aspect ratio not kept
        short:768                   shorter side to 768, the aspect ratio kept
        short:768,crop:768x768      ... then the centre 768x768

    Resampling is Pillow's bicubic, which widens its kernel when it shrinks (antialiasing). The longer side is rounded to the
    nearest pixel and the crop's margin down, as in guided-diffusion's `center_crop_arr`.
    """

    text: str
    steps: tuple[tuple[Literal["resize", "short", "crop"], tuple[int, ...]], ...]

    @classmethod
    def parse(cls, text: str) -> Preprocessing:
        """Raises DatasetError where `text` is not in the syntax above."""
        if text == "native":
            return cls(text, ())
        steps: list[tuple[Any, tuple[int, ...]]] = []
        for part in text.split(","):
            match = re.fullmatch(r"(?:(short):([1-9]\d{0,4})|(resize|crop):([1-9]\d{0,4})x([1-9]\d{0,4}))", part.strip())
            if match is None:
                raise DatasetError(
                    f"preprocessing {text!r}: {part.strip()!r} is no step; "
                    "write native, or resize:WxH, short:N and crop:WxH separated by commas"
                )
            short, side, name, width, height = match.groups()
            steps.append((short, (int(side),)) if short else (name, (int(width), int(height))))
        return cls(",".join(f"{name}:{'x'.join(map(str, size))}" for name, size in steps), tuple(steps))

    def __call__(self, picture: Pillow.Image) -> Pillow.Image:
        """Raises ValueError where the picture is smaller than the crop."""
        for name, size in self.steps:
            if name == "resize":
                picture = picture.resize((size[0], size[1]), Pillow.Resampling.BICUBIC)
            elif name == "short":
                picture = resize_short(picture, size[0])
            elif picture.width < size[0] or picture.height < size[1]:
                raise ValueError(f"{picture.width}x{picture.height} is less than crop:{size[0]}x{size[1]}; put short:N before it")
            else:
                picture = centre_crop(picture, size[0], size[1])
        return picture


NATIVE = Preprocessing.parse("native")


def read_image(path: Path, preprocessing: Preprocessing = NATIVE) -> Image:
    """Pixels of a photograph: uint8, (height, width, 3). Raises DatasetError that names the file."""
    try:
        with Pillow.open(path) as picture:
            _refuse_deep(picture)
            rgb = _rgb(ImageOps.exif_transpose(picture))
        return np.asarray(preprocessing(rgb))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such image") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error ... on bad files
        sentence = str(error) if isinstance(error, ValueError) else f"damaged or no image ({error})"
        raise DatasetError(f"{path}: {sentence}") from error


def _refuse_deep(picture: Pillow.Image) -> None:
    # Pillow reads 16-bit RGB as 8-bit RGB by dropping the low byte; only the raw mode of the file's tiles tells.
    if picture.mode[:1] in "IF" or any(re.search(r";(10|12|16|32)", str(tile[-1])) for tile in getattr(picture, "tile", ())):
        raise ValueError(f"more than 8 bits a sample (mode {picture.mode}); convert the image to 8 bits")


def _rgb(picture: Pillow.Image) -> Pillow.Image:
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A").getextrema()
        if alpha != (255, 255):
            raise ValueError("the image has translucent pixels; flatten it on a background first")
        return picture.convert("RGBA").convert("RGB")
    if picture.mode not in CONVERTIBLE:
        raise ValueError(f"colour mode {picture.mode} is not supported; convert the image to RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def list_images(folder: Path) -> list[str]:
    """Sorted POSIX paths, relative to `folder`, of all images below it; hidden files and folders are left out.

    Raises DatasetError for a file name that is no Unicode.
    """
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        inner = Path(place).relative_to(folder)
        found += [(inner / name).as_posix() for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    strange = next((name for name in found if not name.isascii() and name != name.encode(errors="replace").decode()), None)
    if strange is not None:
        raise DatasetError(f"{folder}: the file name {shown(strange)} is no UTF-8; rename the file, or set LC_ALL=C.UTF-8 if it is")
    return sorted(found)


def require(path: Path, what: str, source: str) -> None:
    """Raises DatasetError unless `path` exists; `source` says what to get, from where, into which layout."""
    if not path.exists():
        raise DatasetError(f"{path}: no such {what}. {source}")


def inside(folder: Path, name: str) -> Path:
    """The file of that name below a folder. ValueError where the name leads out of it."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"the file name {shown(name)} leads out of its folder")
    return folder / path


def shown(name: str) -> str:
    """A name as one bounded line."""
    if len(name) <= 200 and name.isprintable():
        return name
    return f"{name[:200]!a}{f'... ({len(name)} characters)' if len(name) > 200 else ''}"


def require_images(images: Path, wanted: Iterable[str], listed_in: Path) -> None:
    """Raises DatasetError where images that `listed_in` names are not below the folder `images`."""
    wanted = set(wanted)
    nameless = next((name for name in wanted if not isinstance(name, str)), None)
    if nameless is not None:
        raise DatasetError(f"{listed_in}: lists an image named {nameless!r}, which is no text; correct the file")
    missing = sorted(wanted.difference(list_images(images)))
    if missing:
        raise DatasetError(
            f"{images}: {len(missing)} of the {len(wanted)} images that {listed_in} lists are missing, "
            f"the first is {shown(missing[0])}; complete the folder or give its matching annotations"
        )
