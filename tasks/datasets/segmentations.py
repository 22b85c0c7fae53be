"""Segmentations in COCO's form, checked before pycocotools is called.

pycocotools reads neither types nor bounds: a run length that does not add up lets it run forever, a coordinate that is null ends in
a TypeError or in another mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.datasets.json_entries import flat_numbers
from icmbench.tasks.datasets.json_files import json_excerpt
from icmbench.tasks.datasets.sizes import are_shares
from icmbench.tasks.run_lengths import decode_counts

MIN_NUMBERS = 6  # Of a polygon: x and y of three points.


def full_polygons(segmentation: Any) -> Any:
    """A segmentation without polygons of fewer than three points, which cover nothing; run lengths are returned as they are."""
    if type(segmentation) is not list:
        return segmentation
    return [polygon for polygon in segmentation if type(polygon) is not list or len(polygon) >= MIN_NUMBERS]


def all_full_polygons(segmentations: Sequence[Any], side: int) -> bool:
    """Whether all are lists of polygons that `problem` finds nothing wrong with, found out for all at once.

    Args:
        segmentations: in COCO's form.
        side: the longest side of the smallest picture, in pixels.
    """
    if not set(map(type, segmentations)) <= {list} or not all(segmentations):
        return False
    polygons = [polygon for segmentation in segmentations for polygon in segmentation]
    if not set(map(type, polygons)) <= {list}:
        return False
    lengths = set(map(len, polygons))
    if lengths and (min(lengths) < MIN_NUMBERS or any(length % 2 for length in lengths)):
        return False
    numbers = flat_numbers(polygons)
    if numbers is None or not _near(numbers, side):
        return False
    starts = np.append(0, np.cumsum(list(map(len, polygons))[:-1], dtype=np.int64))
    return not polygons or bool(np.maximum.reduceat(numbers, starts).min() > 1)  # Others are looked at one by one.


def problem(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong with a segmentation.

    Args:
        segmentation: in COCO's form: a list of polygons, each x1, y1, x2, y2, ...; or run lengths, compressed or not.
        height: pixels of the picture.
        width: pixels of the picture.

    Returns:
        A phrase for a message after "the segmentation", or None if pycocotools can make a mask of it.
    """
    if segmentation is None:
        return "is missing or null"
    if type(segmentation) is list:
        return _polygons_problem(segmentation, max(height, width))
    if type(segmentation) is dict:
        return run_length_problem(segmentation, height, width)
    return f"is {json_excerpt(segmentation)}, neither a list of polygons nor run lengths"


def _polygons_problem(segmentation: list[Any], side: int) -> str | None:
    if not segmentation:
        return "has no polygon"
    for polygon in segmentation:
        if type(polygon) is not list:
            return f"holds {json_excerpt(polygon)} where a polygon should be; write [[x1, y1, x2, y2, ...]]"
        numbers = flat_numbers([polygon])
        if numbers is None:
            return f"has a polygon with a coordinate that is no finite number: {json_excerpt(polygon)}"
        if len(numbers) % 2:
            return f"has a polygon of {len(numbers)} numbers, which are no pairs of x and y"
        if not _near(numbers, side):
            return f"has a polygon far outside of its picture, of up to {np.abs(numbers).max():g}"
    if all(len(polygon) < MIN_NUMBERS for polygon in segmentation):
        return "has no polygon of three points or more"
    if side > 1 and are_shares([number for polygon in segmentation for number in polygon]):
        return "lies within the first pixel, as if it were in shares of the picture's sides, where pixels should be"
    return None


def _near(numbers: npt.NDArray[np.float64], side: int) -> bool:
    """Whether coordinates lie within 10 sides of the picture. pycocotools takes memory for every pixel of an outline."""
    return not numbers.size or bool(np.abs(numbers).max() <= 10 * side)


def run_length_problem(run_lengths: Mapping[str, Any], height: int, width: int) -> str | None:
    """What is wrong with run lengths.

    Args:
        run_lengths: `{"size": [height, width], "counts": ...}`, with counts as a list, as text or as bytes.
        height: pixels of the picture.
        width: pixels of the picture.

    Returns:
        A phrase for a message after "the segmentation" or "the mask", or None.
    """
    size = run_lengths.get("size")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        return f"has run lengths whose `size` is {json_excerpt(size)}, not [height, width]"
    if tuple(size) != (height, width):
        return f"has run lengths of {size[1]}x{size[0]} pixels, its picture has {width}x{height}"
    counts = run_counts(run_lengths.get("counts"))
    if counts is None:
        given = json_excerpt(run_lengths.get("counts"))
        return f"has run lengths whose `counts` are {given}, neither whole numbers nor their compressed text"
    if len(counts) and counts.min() < 0:
        return "has run lengths with a negative run"
    total = int(counts.sum())
    return None if total == height * width else f"has runs of {total} pixels in all, its picture has {height * width}"


def run_counts(counts: Any) -> npt.NDArray[np.int64] | None:
    """The runs of run lengths, alternately without and with pixels, int64 (n,); None if they cannot be read.

    Args:
        counts: a list of whole numbers, or COCO's compressed form as text or bytes.
    """
    if type(counts) is list:
        small = set(map(type, counts)) <= {int} and (not counts or max(map(abs, counts)) < 2**40)
        return np.array(counts, dtype=np.int64) if small else None
    if type(counts) is str:
        counts = counts.encode("utf-8", errors="replace")
    return decode_counts(counts) if type(counts) is bytes else None


def exact_area(segmentation: Any) -> float:
    """Area of a segmentation that `problem` finds nothing wrong with, in square pixels.

    For run lengths this is their number of pixels, for polygons the sum of their areas by the shoelace formula, which is what COCO
    states for all its polygons.
    """
    if type(segmentation) is dict:
        counts = run_counts(segmentation["counts"])
        assert counts is not None
        return float(counts[1::2].sum())
    return sum(_shoelace(polygon) for polygon in full_polygons(segmentation))


def _shoelace(polygon: list[float]) -> float:
    x, y = np.array(polygon, dtype=np.float64).reshape(-1, 2).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
