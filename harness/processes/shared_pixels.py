"""Pixels that cross from one process to another: each picture is a file in memory, which both map.

A picture is copied once, into its file, and never pickled. Files lie in /dev/shm, which is memory; where that is absent or full,
they lie in the folder for temporary files, and the system keeps in memory what fits.
"""

from __future__ import annotations

import itertools
import mmap
import os
import re
import shutil
import tempfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from icmbench.tasks.base import Image

SHARED_MEMORY = Path("/dev/shm")
KEPT_MAPS = 512  # Pictures that a reader keeps mapped, so that those of the originals are mapped once for all codecs of a block.
_FOLDER = re.compile(r"icmbench-(?P<pid>\d+)-.+")


class PixelFile(NamedTuple):
    """A picture in a file.

    Attributes:
        path: the file, which holds uint8 values in the order height, width, channel.
        height: in pixels.
        width: in pixels.
    """

    path: str
    height: int
    width: int


def make_folder() -> Path:
    """A new folder for the pictures of one run, which only this user can read; folders of runs that were killed are removed."""
    parents = [folder for folder in (SHARED_MEMORY, Path(tempfile.gettempdir())) if folder.is_dir() and os.access(folder, os.W_OK)]
    for parent in parents:
        for left in parent.glob("icmbench-*"):
            match = _FOLDER.fullmatch(left.name)
            if match and not psutil.pid_exists(int(match["pid"])) and left.stat().st_uid == os.getuid():
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"icmbench-{os.getpid()}-", dir=parents[0]))


class PixelWriter:
    """Writes the pictures of one process.

    Args:
        folder: as `make_folder` returned it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fallback: Path | None = None
        self._counter = itertools.count()

    def write(self, image: Image) -> PixelFile:
        """Copy a picture, uint8 (height, width, 3), into a file of its own."""
        pixels = np.ascontiguousarray(image)
        try:
            return self._write(self._folder, pixels)
        except OSError:  # No room: a file on a disk serves too.
            if self._fallback is None:
                self._fallback = Path(tempfile.mkdtemp(prefix=f"icmbench-{os.getpid()}-"))
            return self._write(self._fallback, pixels)

    def close(self) -> None:
        """Remove what lies outside of the run's folder."""
        if self._fallback is not None:
            shutil.rmtree(self._fallback, ignore_errors=True)

    def _write(self, folder: Path, pixels: Image) -> PixelFile:
        path = folder / f"{os.getpid()}-{next(self._counter)}"
        try:
            with path.open("xb") as file:
                # Claimed first: writing beyond the room of a file system in memory would end the process.
                os.posix_fallocate(file.fileno(), 0, pixels.nbytes)
                file.write(pixels.data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return PixelFile(str(path), *pixels.shape[:2])


def map_pixels(file: PixelFile) -> Image:
    """A picture, read-only uint8 (height, width, 3), which stays even if its file is removed."""
    with Path(file.path).open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8).reshape(file.height, file.width, 3)


def remove_pixels(file: PixelFile) -> None:
    """Remove a picture; who has mapped it keeps it."""
    with suppress(FileNotFoundError):
        Path(file.path).unlink()


class PixelReader:
    """Maps pictures that other processes wrote; the latest ones stay mapped."""

    def __init__(self) -> None:
        self._maps: OrderedDict[PixelFile, Image] = OrderedDict()

    def read(self, file: PixelFile) -> Image:
        """A picture, read-only uint8 (height, width, 3)."""
        if file not in self._maps:
            self._maps[file] = map_pixels(file)
            if len(self._maps) > KEPT_MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(file)
        return self._maps[file]
