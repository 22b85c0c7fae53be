"""Photographs as they are coded: decoded, upright, 8-bit RGB, in one declared preprocessing.

    file -> Pillow -> RGB -> EXIF orientation -> preprocessing -> uint8 (height, width, 3)

Images that cannot become 8-bit RGB without a choice (16 bits per sample, translucent pixels) are refused by name. Embedded colour
profiles are not applied: codecs and models see the stored samples. Of all metadata only the orientation is read, so that a sound
photograph is read whatever its other tags hold.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError, Image
from icmbench.tasks.datasets.decoding import find_turn, open_picture, refuse_deep, refuse_large, to_rgb, without_limit
from icmbench.tasks.geometry import centre_crop, resize_short

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".ppm", ".tif", ".tiff")
MAX_NAME = 200  # Characters of a file name in a message.
# What a run writes into its folder or its store: two of the marks tell that it is one, and its folders hold no photographs.
RUN_MARKS = frozenset({"environment.json", "experiment.yaml", "derived.json", "streams", "predictions"})
RUN_FOLDERS = frozenset(
    {"sources", "store", "streams", "predictions", "reconstructions", "contexts", "replicates", "analyses", "report", "bundle"}
)


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

    def sizes(self, width: int, height: int) -> list[tuple[int, int]]:
        """Width and height of a picture after each step, without any work on pixels."""
        sizes = []
        for name, size in self.steps:
            if name == "short":
                short, long = sorted((width, height))
                longer = round(size[0] * long / short)
                width, height = (size[0], longer) if width <= height else (longer, size[0])
            else:
                width, height = size
            sizes.append((width, height))
        return sizes

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
        DatasetError: the file is missing, damaged, no regular file, of another format or of too many pixels, cannot become 8-bit
            RGB without a choice, or is smaller than the crop; the message names the file.
    """
    try:
        if not path.is_file() and path.exists():
            raise ValueError("no regular file; leave it out, or put the photograph itself there")
        with path.open("rb") as file, open_picture(file) as picture:
            # Turning a picture swaps its sides, which changes no number of pixels.
            refuse_large([picture.size, *preprocessing.sizes(*picture.size)])
            refuse_deep(picture)
            without_limit(picture.load)  # TIFF turns itself here; PNG may hold its tags behind the pixels.
            turn = find_turn(picture)
            rgb = to_rgb(picture)
        upright = rgb if turn is None else rgb.transpose(turn)
        return np.asarray(without_limit(lambda: preprocessing(upright)))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such image") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error ... on bad files.
        sentence = str(error) if isinstance(error, ValueError) else f"damaged or no image ({error})"
        raise DatasetError(f"{path}: {sentence}") from error


def list_images(folder: Path) -> list[str]:
    """All images below a folder, without hidden files and folders and without what runs of icmbench wrote.

    Each folder and file counts once, however many links lead to it.

    Returns:
        Sorted POSIX paths relative to `folder`.

    Raises:
        DatasetError: a file name is not valid Unicode, an image is no regular file, or a folder cannot be read.
    """
    entries = _walk(folder)
    names = [name for name, _ in entries]
    undecodable = next((name for name in names if not name.isascii() and name != name.encode(errors="replace").decode()), None)
    if undecodable is not None:
        raise DatasetError(
            f"{folder}: the file name {printable_name(undecodable)} is no UTF-8; rename the file, or set LC_ALL=C.UTF-8 if it is"
        )
    stray = next((name for name, entry in entries if not _is_file(entry)), None)
    if stray is not None:
        raise DatasetError(f"{folder / stray}: a broken link, or no regular file; delete it, or put the photograph itself there")
    return sorted(names)


def _walk(root: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """All entries below a folder that are named like images, with their POSIX paths relative to it.

    Folders are read before links to folders, so that a photograph is called by the path without links.
    """
    found: list[tuple[str, os.DirEntry[str]]] = []
    # Each folder with the prefix that makes a path relative to the root of the name of an entry.
    folders: list[tuple[Path, str]] = [(root, "")]
    links: list[tuple[Path, str]] = []
    visited: set[tuple[int, int]] = set()
    while folders or links:
        folder, prefix = folders.pop() if folders else links.pop(0)
        try:
            status = folder.stat()
            with os.scandir(folder) as iterator:
                entries = sorted(iterator, key=attrgetter("name"))
        except OSError as error:
            raise DatasetError(
                f"{folder}: this folder cannot be read ({error.strerror}); make it readable, or delete it"
            ) from error
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        is_run = _is_run({entry.name for entry in entries})
        if is_run and folder != root:
            continue
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if _is_folder(entry):
                if not name.startswith("__MACOSX") and not (is_run and name in RUN_FOLDERS):
                    (links if entry.is_symlink() else folders).append((Path(entry.path), f"{prefix}{name}/"))
            elif name.lower().endswith(SUFFIXES):
                found.append((prefix + name, entry))
    return _without_second_names(found)


def _is_run(names: set[str]) -> bool:
    """Whether a folder of these entries was written by `icmbench run` or `icmbench bundle`: its pictures are no photographs."""
    return len(names & RUN_MARKS) > 1 or {"provenance.json", "figures"} <= names


def _without_second_names(found: list[tuple[str, os.DirEntry[str]]]) -> list[tuple[str, os.DirEntry[str]]]:
    """Files without the links to others of them."""
    linked = {name for name, entry in found if entry.is_symlink() and _is_file(entry)}
    if not linked:
        return found
    originals = {_device_and_inode(entry) for name, entry in found if not entry.is_symlink()}
    return [(name, entry) for name, entry in found if name not in linked or _device_and_inode(entry) not in originals]


def _device_and_inode(entry: os.DirEntry[str]) -> tuple[int, int]:
    """What tells a file from all others, whatever link leads to it."""
    status = entry.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def require_path(path: Path, content: str, source: str) -> None:
    """Check that a file or folder of a dataset exists.

    Args:
        path: the file or folder.
        content: what it holds, for the message.
        source: a sentence on what to download, from where, into which layout.

    Raises:
        DatasetError: it does not exist, or is a device, a pipe or the like, which may never end.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such {content}. {source}")
    if not path.is_file() and not path.is_dir():
        raise DatasetError(f"{path}: neither a file nor a folder; give the {content} as a regular file or folder")


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
    # A listed name may lead through a link, or to a folder that a search leaves out.
    missing = sorted(
        name for name in names.difference(name for name, entry in _walk(images) if _is_file(entry)) if not _exists(images, name)
    )
    if missing:
        raise DatasetError(
            f"{images}: {len(missing)} of the {len(names)} images that {listed_in} lists are missing, "
            f"the first is {printable_name(missing[0])}; complete the folder or give its matching annotations"
        )


def _exists(images: Path, name: str) -> bool:
    """Whether a listed name is that of a regular file in its one spelling: `./a.jpg` would count `a.jpg` again."""
    try:
        return path_inside(images, name).is_file() and Path(name).as_posix() == name and name.lower().endswith(SUFFIXES)
    except (OSError, ValueError):
        return False
