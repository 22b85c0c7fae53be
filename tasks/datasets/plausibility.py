"""Labels in COCO's form that are well formed, and still cannot be what their pictures show.

A box outside its picture, or coordinates in shares of its sides, would count as missed by every model, and lower every score alike.
What may be right is not refused: boxes that reach beyond their pictures, and annotations that stand there twice, are warned of.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.json_files import json_excerpt
from icmbench.tasks.datasets.sizes import are_shares

log = logging.getLogger(__name__)
Columns = Mapping[str, Any]  # As `AnnotationFile` keeps them: boxes, areas, classes, ids, and keypoints, one row per annotation.
BEYOND = 2  # Pixels by which rounding may move the edge of a box out of its picture.


def refuse_boxes_outside(path: Path, columns: Columns, images: Sequence[str], sizes: npt.NDArray[np.float64]) -> None:
    """Check that every box has a part of its picture. Boxes that only begin or end outside stay as they are, as in COCO.

    Args:
        path: the annotation file, for messages.
        columns: boxes float64 (n, 4) and ids int64 (n,).
        images: the file name of each annotation's image, for messages.
        sizes: float64 (n, 2), height and width of its picture; the boxes of NaN are not looked at.

    Raises:
        DatasetError: a box lies outside its picture.
    """
    left, top, width, height = columns["boxes"].T
    beyond = (left >= sizes[:, 1]) | (top >= sizes[:, 0])
    before = ((left + width <= 0) | (top + height <= 0)) & ~np.isnan(sizes[:, 0])
    outside = np.flatnonzero(beyond | before)
    if outside.size:
        row = int(outside[0])
        raise DatasetError(
            f"{path}: annotation {columns['ids'][row]} of image {json_excerpt(images[row])}: `bbox` is "
            f"{columns['boxes'][row].tolist()}, which lies outside its picture of {sizes[row, 1]:.0f}x{sizes[row, 0]:.0f} pixels "
            f"({outside.size} such boxes in all); correct it, or remove the annotation"
        )


def refuse_other_units(path: Path, columns: Columns) -> None:
    """Check that boxes, keypoints and areas are in pixels.

    Raises:
        DatasetError: all boxes or keypoints are shares of the pictures' sides, or all areas are tiny beside their boxes.
    """
    boxes, areas = columns["boxes"], columns["areas"]
    keypoints = columns["keypoints"][columns["keypoints"][..., 2] > 0, :2] if "keypoints" in columns else []
    for key, coordinates in (("bbox", boxes), ("keypoints", keypoints)):
        if are_shares(coordinates):
            raise DatasetError(
                f"{path}: all `{key}` lie within the first pixel of their pictures, as if they were shares of the pictures' sides; "
                "write pixels"
            )
    if areas.any() and (areas < boxes[:, 2] * boxes[:, 3] / 1000).all():
        raise DatasetError(
            f"{path}: every `area` is less than a thousandth of its `bbox`, so that it is not in pixels; write square pixels, or "
            "leave out the key"
        )


def warn_of_oddities(path: Path, columns: Columns, image_of: npt.NDArray[np.int64], sizes: npt.NDArray[np.float64]) -> None:
    """Warn of boxes that reach beyond their pictures, if they are many, of areas of 0, and of annotations that stand there twice.

    Args:
        path: the annotation file, for messages.
        columns: boxes float64 (n, 4), areas float64 (n,), classes int64 (n,) and crowd bool (n,).
        image_of: int64 (n,), which image an annotation belongs to.
        sizes: as in `refuse_boxes_outside`.
    """
    boxes = columns["boxes"]
    far = boxes[:, :2] + boxes[:, 2:] > sizes[:, ::-1] + BEYOND
    count = int(far.any(axis=1).sum())
    if count > len(boxes) / 5:
        log.warning(
            "%s: %d of the %d boxes reach beyond their pictures; they are read as x, y, width, height", path, count, len(boxes)
        )
    if len(boxes) and not columns["areas"].any():
        log.warning("%s: every area is 0, so that all objects count as small; leave out the key to have areas computed", path)
    rows = np.column_stack([boxes, image_of, columns["classes"]])[~columns["crowd"]]
    if "keypoints" in columns:
        rows = np.column_stack([rows, columns["keypoints"][~columns["crowd"]].reshape(len(rows), -1)])
    twins = len(rows) - len(set(map(bytes, np.ascontiguousarray(rows))))
    if twins:
        log.warning("%s: annotations that repeat image, category and box of another one: %d; each counts as an object", path, twins)
