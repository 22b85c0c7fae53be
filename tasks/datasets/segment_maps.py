"""Panoptic label maps compared with the JSON that lists their segments."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.images import path_inside
from icmbench.tasks.datasets.json_entries import Entries
from icmbench.tasks.datasets.json_identity import refuse_repeated
from icmbench.tasks.maps import read_map


def mask_names(folder: Path, annotations: Entries) -> list[str]:
    """The PNG of each panoptic annotation, by its path relative to the folder.

    Args:
        folder: where they lie.
        annotations: the entries that name them.

    Raises:
        DatasetError: one is named twice or missing, or the folder cannot be read.
    """
    names = annotations.texts("file_name")
    refuse_repeated(annotations, "file_name", names)
    try:
        with os.scandir(folder) as entries:  # Their names lead nowhere else and need no look at their parts.
            present = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError as error:
        raise DatasetError(
            f"{folder}: this folder cannot be read ({error.strerror}); give the folder of the PNG that {annotations.path} names"
        ) from error
    missing = []
    for position, name in enumerate(names):
        if name in present:
            continue
        try:
            file = path_inside(folder, name)
        except ValueError:
            annotations.refuse(position, "file_name", "the name of a PNG inside the folder of panoptic masks")
        if not file.is_file():
            missing.append(file)
    if missing:
        raise DatasetError(
            f"{folder}: {len(missing)} of the {len(names)} PNG that {annotations.path} names are missing, "
            f"the first is {missing[0].name}; complete the folder"
        )
    return names


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
