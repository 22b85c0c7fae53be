"""Panoptic label maps compared with the JSON that lists their segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.maps import read_map


def check_segments(
    mask: Path, listed_in: Path, size: tuple[int, int], ids: npt.NDArray[np.int64], areas: npt.NDArray[np.float64]
) -> None:
    """Check that a PNG holds the segments that a JSON lists, no others, and each with as many pixels as it states.

    Args:
        mask: the PNG.
        listed_in: the JSON, for messages.
        size: height and width of the photograph in pixels.
        ids: int64 (n,), the listed segments.
        areas: float64 (n,), their stated areas in pixels, NaN where none is stated.

    Raises:
        DatasetError: they differ, or the PNG cannot be read.
    """
    segments = read_map(mask)
    if segments.shape != size:
        raise DatasetError(
            f"{mask}: {segments.shape[1]}x{segments.shape[0]} pixels, but its photograph has {size[1]}x{size[0]}; "
            "give the annotations of these photographs"
        )
    order = np.argsort(ids)
    known = np.append(0, ids[order])  # 0 stands for unlabelled pixels.
    position = np.minimum(np.searchsorted(known, segments.ravel()), len(ids))
    strange = segments.ravel()[known[position] != segments.ravel()]
    if strange.size:
        raise DatasetError(f"{mask}: holds segment {strange[0]}, which {listed_in} does not list for it; correct one of the two")
    pixels = np.zeros(len(ids), dtype=np.int64)
    pixels[order] = np.bincount(position, minlength=len(known))[1:]
    for index in np.flatnonzero((pixels == 0) | ~(np.isnan(areas) | (areas == pixels)))[:1].tolist():
        stated = "" if np.isnan(areas[index]) else f" with an area of {areas[index]:g}"
        raise DatasetError(
            f"{mask}: has {pixels[index]} pixels of segment {ids[index]}, which {listed_in} lists{stated}; correct one of the two"
        )
