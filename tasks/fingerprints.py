"""Texts that tell what decides a prediction, and hashes of weight files and of pixels."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def fingerprint(**facts: Any) -> str:
    """Canonical JSON of everything that decides a prediction, readable so that two runs can be compared fact by fact."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)


@functools.cache
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    value = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):  # Python 3.10, in which a guest may run this, has no hashlib.file_digest.
            value.update(chunk)
    return value.hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a weight file in hex, remembered for this process while path, size and mtime stay the same."""
    stat = Path(path).stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


def walk_files(folder: Path, skip: Callable[[Path], bool]) -> Iterator[Path]:
    """Every regular file in a folder and its subfolders.

    Links are followed, each folder once, so that a link to a folder above does not lead in circles. What is no regular file, such
    as a pipe, is left out, because reading it may never end.

    Args:
        folder: the folder.
        skip: whether a file, or a folder with all that it holds, is left out.

    Raises:
        OSError: a folder cannot be read.
    """
    waiting, visited = [folder], set[Path]()
    while waiting:
        current = waiting.pop()
        if current.resolve() in visited:
            continue
        visited.add(current.resolve())
        for path in sorted(current.iterdir(), reverse=True):
            if skip(path):
                continue
            if path.is_dir():
                waiting.append(path)
            elif path.is_file():
                yield path


def pixel_sha256(image: npt.NDArray[np.uint8]) -> str:
    """SHA-256 of an image's shape and pixels, in hexadecimal.

    The shape enters as three little-endian 32-bit numbers, height, width and 3; the samples follow row by row, R, G and B of each
    pixel. By this rule the store finds predictions, and the manifest of an export names pixels (`models/predictions_manifest.py`).

    Args:
        image: uint8 array [height, width, 3].
    """
    value = hashlib.sha256(np.array(image.shape, "<u4").tobytes())
    value.update(np.ascontiguousarray(image).data)
    return value.hexdigest()
