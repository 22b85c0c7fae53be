"""Photographs as they are coded: decoded, upright, 8-bit RGB, in one declared preprocessing.

    file -> Pillow -> EXIF orientation -> RGB -> preprocessing -> uint8 (height, width, 3)

Images that cannot become 8-bit RGB without a choice (16 bits per sample, translucent pixels) are refused by name. Embedded colour
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
# What the code that reads a JSON by its keys raises if the JSON has another structure.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)
CONVERTIBLE = ("1", "L", "P", "RGB", "CMYK", "YCbCr")  # Pillow modes with one obvious 8-bit RGB reading.
MAX_NAME = 200  # Characters of a file name in a message.


@dataclass(frozen=True)
class Preprocessing:
    """What is done to every image before coding, as comma-separated steps; `native` does nothing.

        resize:512x512              to width x height; the aspect ratio is not kept
        short:768                   shorter side to 768 pixels; the aspect ratio is kept
        short:768,crop:768x768      ... and then the central 768 x 768 pixels

    Resampling is Pillow's bicubic, whose kernel widens when it shrinks an image (antialiasing). The longer side is rounded to the
    nearest pixel and the crop's margin down, as in guided-diffusion's `center_crop_arr`.

    Attributes:
        text: the steps in canonical form.
        steps: the steps, each a name with (pixels,) of the shorter side or (width, height).
    """

    text: str
    steps: tuple[tuple[Literal["resize", "short", "crop"], tuple[int, ...]], ...]

    @classmethod
    def parse(cls, text: str) -> Preprocessing:
        """Read the syntax above.

        Raises:
            DatasetError: a step is not in this syntax.

        Example:
            >>> Preprocessing.parse("short:768, crop:768x512").steps
            (('short', (768,)), ('crop', (768, 512)))
        """
        if text == "native":
            return cls(text, ())
        steps: list[tuple[Any, tuple[int, ...]]] = []
        for step in text.split(","):
            match = re.fullmatch(r"(?:(short):([1-9]\d{0,4})|(resize|crop):([1-9]\d{0,4})x([1-9]\d{0,4}))", step.strip())
            if match is None:
                raise DatasetError(
                    f"preprocessing {text!r}: {step.strip()!r} is no step; "
                    "write native, or resize:WxH, short:N and crop:WxH separated by commas"
                )
            short, side, name, width, height = match.groups()
            steps.append((short, (int(side),)) if short else (name, (int(width), int(height))))
        return cls(",".join(f"{name}:{'x'.join(map(str, size))}" for name, size in steps), tuple(steps))

    def __call__(self, picture: Pillow.Image) -> Pillow.Image:
        """Apply the steps.

        Raises:
            ValueError: the picture is smaller than a crop.
        """
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
    """Pixels of a photograph.

    Args:
        path: the file.
        preprocessing: applied to the upright RGB image.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        DatasetError: the file is missing, damaged, cannot become 8-bit RGB without a choice, or is smaller than the crop; the
            message names the file.
    """
    try:
        with Pillow.open(path) as picture:
            _refuse_deep(picture)
            rgb = _rgb(ImageOps.exif_transpose(picture))
        return np.asarray(preprocessing(rgb))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such image") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error ... on bad files.
        sentence = str(error) if isinstance(error, ValueError) else f"damaged or no image ({error})"
        raise DatasetError(f"{path}: {sentence}") from error


def _refuse_deep(picture: Pillow.Image) -> None:
    # Pillow reads 16-bit RGB as 8-bit RGB by dropping the low byte. Only the raw mode of the file's tiles reveals it.
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
    """All images below a folder, without hidden files and folders.

    Returns:
        Sorted POSIX paths relative to `folder`.

    Raises:
        DatasetError: a file name is not valid Unicode.
    """
    names = []
    for directory, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        inner = Path(directory).relative_to(folder)
        names += [(inner / name).as_posix() for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    undecodable = next((name for name in names if not name.isascii() and name != name.encode(errors="replace").decode()), None)
    if undecodable is not None:
        raise DatasetError(
            f"{folder}: the file name {printable_name(undecodable)} is no UTF-8; rename the file, or set LC_ALL=C.UTF-8 if it is"
        )
    return sorted(names)


def require_path(path: Path, content: str, source: str) -> None:
    """Check that a file or folder of a dataset exists.

    Args:
        path: the file or folder.
        content: what it holds, for the message.
        source: a sentence on what to download, from where, into which layout.

    Raises:
        DatasetError: it does not exist.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such {content}. {source}")


def path_inside(folder: Path, name: str) -> Path:
    """The file of a name from an annotation file, below a folder.

    Raises:
        ValueError: the name leads out of the folder.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"the file name {printable_name(name)} leads out of its folder")
    return folder / path


def printable_name(name: str) -> str:
    """A file name for a message: one line of bounded length."""
    if len(name) <= MAX_NAME and name.isprintable():
        return name
    return f"{name[:MAX_NAME]!a}{f'... ({len(name)} characters)' if len(name) > MAX_NAME else ''}"


def require_images(images: Path, names: Iterable[str], listed_in: Path) -> None:
    """Check that the images of an annotation file exist.

    Args:
        images: the folder of images.
        names: their paths relative to the folder.
        listed_in: the annotation file, for the message.

    Raises:
        DatasetError: an image is missing, or a name is no text.
    """
    names = set(names)
    nameless = [name for name in names if not isinstance(name, str)]
    if nameless:
        raise DatasetError(f"{listed_in}: lists an image named {nameless[0]!r}, which is no text; correct the file")
    missing = sorted(names.difference(list_images(images)))
    if missing:
        raise DatasetError(
            f"{images}: {len(missing)} of the {len(names)} images that {listed_in} lists are missing, "
            f"the first is {printable_name(missing[0])}; complete the folder or give its matching annotations"
        )
