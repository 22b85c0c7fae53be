"""Run lengths compared with the boxes and areas that stand beside them.

    run lengths -> runs of all masks, end to end -> box and pixels of each mask -> compared with `bbox` and `area`

Run lengths that were written row by row, or that begin with the object, are well formed: they have the picture's size and add up to
its pixels, and stand for other masks than those that were meant. Only the boxes tell, unless they are those of whole pictures. What
is refused is never a single mask, but a set of masks of which

- more than a fifth have their boxes by another reading of the same runs, and not by COCO's. A mask has its box if all edges lie
  within EDGE pixels, which leaves room for rounding and for both ways of counting the last pixel.
- or more than half overlap their boxes by an IoU below IOU, which leaves room for boxes around hidden parts.

COCO's own crowds have exactly their boxes and areas. Areas only decide which objects count as small, medium and large, so that a
difference is warned of.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError, Target
from icmbench.tasks.datasets.json_files import json_excerpt
from icmbench.tasks.datasets.segmentations import run_counts

log = logging.getLogger(__name__)
EDGE = 2  # Pixels by which an edge of a box may differ from that of its mask.
IOU = 0.5  # Below this overlap, a box is not that of its mask.
AREA_FACTOR = 4  # By which an area may differ from the pixels of its mask before it is called another one.
RUNS_AT_ONCE = 1 << 20
# What else run lengths may have been written as: options of `mask_boxes`, and how to mend them.
READINGS: list[tuple[dict[str, Any], str]] = [
    (
        {"by_rows": True},
        "read row by row they do, and COCO's runs go column by column; encode the masks anew, in column-major order",
    ),
    (
        {"first": 0},
        "read as beginning with the object they do, and COCO's first run counts background; write a run of 0 before such runs",
    ),
]
Boxes = npt.NDArray[np.float64]  # (n, 4), x, y, width and height in pixels.


@dataclass(frozen=True)
class StatedMasks:
    """The run lengths of a dataset's labels, and what their annotations say of them. All lists and arrays are aligned.

    Attributes:
        names: what names each annotation in a message.
        runs: int64 (runs,) each, alternately of background and object, which add up to the picture's pixels.
        sizes: int64 (n, 2), height and width of the pictures.
        boxes: float64 (n, 4), stated.
        areas: float64 (n,), stated, in pixels; NaN where none is stated.
    """

    names: list[str]
    runs: list[npt.NDArray[np.int64]]
    sizes: npt.NDArray[np.int64]
    boxes: Boxes
    areas: npt.NDArray[np.float64]


def check_run_lengths(source: str, ids: Sequence[str], targets: Sequence[Target]) -> None:
    """Compare the run lengths of a dataset's labels with their boxes and areas, and warn if many differ.

    Args:
        source: the file or dataset, for messages.
        ids: image ids.
        targets: labels of these images as of `instances`, whose segmentations `problem` finds nothing wrong with.

    Raises:
        DatasetError: the masks do not fit their boxes, by the rules at the top of this module.
    """
    masks = _stated_masks(ids, targets)
    if not masks.names:
        return
    boxes, pixels = mask_boxes(masks.runs, masks.sizes)
    whole = _are_near(np.hstack([np.zeros((len(boxes), 2)), masks.sizes[:, ::-1]]), masks.boxes)
    misfits = ~_are_near(boxes, masks.boxes) & ~whole
    for options, remedy in READINGS if misfits.sum() * 5 > len(boxes) else ():
        explained = misfits & _are_near(mask_boxes(masks.runs, masks.sizes, **options)[0], masks.boxes)
        if explained.sum() * 5 > len(boxes):
            raise DatasetError(f"{_first_misfit(source, masks, boxes, explained)}: {remedy}")
    strange = misfits & (_iou(boxes, masks.boxes) < IOU)
    if strange.sum() * 2 > len(boxes):
        raise DatasetError(f"{_first_misfit(source, masks, boxes, strange)}; give the masks of these boxes, or correct `bbox`")
    if strange.sum() * 5 > len(boxes):
        log.warning("%s; they are scored as they are", _first_misfit(source, masks, boxes, strange))
    with np.errstate(invalid="ignore"):
        other_area = int((np.abs(np.log(np.maximum(masks.areas, 1) / np.maximum(pixels, 1))) > np.log(AREA_FACTOR)).sum())
    if other_area * 2 > len(boxes):
        log.warning(
            "%s: %d of the %d masks of run lengths have another `area` than their pixels, by a factor of over %d; it decides which "
            "objects count as small, medium and large",
            source,
            other_area,
            len(boxes),
            AREA_FACTOR,
        )


def _first_misfit(source: str, masks: StatedMasks, boxes: Boxes, misfits: npt.NDArray[np.bool_]) -> str:
    """The first of the masks that do not fit their boxes, and how many these are, for a message."""
    first = int(np.argmax(misfits))
    covered, stated = (json_excerpt([round(float(side), 2) for side in each[first]]) for each in (boxes, masks.boxes))
    return (
        f"{source}: {masks.names[first]}: its run lengths cover the box {covered}, but `bbox` is {stated} "
        f"({int(misfits.sum())} of the {len(misfits)} masks of run lengths do not fit their boxes)"
    )


def mask_boxes(
    runs: Sequence[npt.NDArray[np.int64]], sizes: npt.NDArray[np.int64], by_rows: bool = False, first: int = 1
) -> tuple[Boxes, npt.NDArray[np.int64]]:
    """The smallest box around each mask, and its pixels, without making the masks.

    Args:
        runs: int64 (runs,) per mask, which add up to height x width.
        sizes: int64 (masks, 2), height and width.
        by_rows: whether the runs go row by row; COCO's go column by column.
        first: the first run of the object; 1, or 0 if the runs begin with it.

    Returns:
        Boxes, of width and height 0 for a mask without a pixel, and pixels, int64 (masks,).

    Example:
        >>> boxes, pixels = mask_boxes([np.array([5, 2, 2, 2, 1])], np.array([[4, 3]]))
        >>> boxes.tolist(), pixels.tolist()
        ([[1.0, 1.0, 2.0, 2.0]], [4])
    """
    boxes, pixels = np.zeros((len(runs), 4)), np.zeros(len(runs), np.int64)
    ends = np.cumsum([len(counts) for counts in runs])
    start = 0
    while start < len(runs):
        end = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + RUNS_AT_ONCE)))
        boxes[start:end], pixels[start:end] = _boxes_of_part(runs[start:end], sizes[start:end], by_rows, first)
        start = end
    return boxes, pixels


def _boxes_of_part(
    runs: Sequence[npt.NDArray[np.int64]], sizes: npt.NDArray[np.int64], by_rows: bool, first: int
) -> tuple[Boxes, npt.NDArray[np.int64]]:
    lengths = np.concatenate([counts[first::2] for counts in runs])
    stops = np.concatenate([np.cumsum(counts)[first::2] for counts in runs])
    mask = np.repeat(np.arange(len(runs)), [len(counts[first::2]) for counts in runs])
    mask, stops, lengths = mask[lengths > 0], stops[lengths > 0], lengths[lengths > 0]
    pixels = np.bincount(mask, lengths, len(runs)).astype(np.int64)
    boxes = np.zeros((len(runs), 4))
    if not len(mask):
        return boxes, pixels
    line = sizes[mask, 1 if by_rows else 0]  # Pixels of a column or row.
    low, high = (stops - lengths) // line, (stops - 1) // line
    # A run that goes on into the next line reaches both of its ends.
    inner, outer = np.where(low == high, (stops - lengths) % line, 0), np.where(low == high, (stops - 1) % line, line - 1)
    present, groups = np.unique(mask, return_index=True)
    across = np.minimum.reduceat(low, groups), np.maximum.reduceat(high, groups) + 1
    along = np.minimum.reduceat(inner, groups), np.maximum.reduceat(outer, groups) + 1
    (left, right), (top, bottom) = (along, across) if by_rows else (across, along)
    boxes[present] = np.stack([left, top, right - left, bottom - top], axis=1)
    return boxes, pixels


def _stated_masks(ids: Sequence[str], targets: Sequence[Target]) -> StatedMasks:
    names, runs, rows = [], [], []
    for image_id, target in zip(ids, targets, strict=True):
        if "boxes" not in target:
            continue
        for number, shape in enumerate(target["segmentations"]):
            if type(shape) is dict:
                counts = run_counts(shape["counts"])
                assert counts is not None
                named = f"annotation {target['ids'][number]}" if "ids" in target else f"object {number}"
                names.append(f"{named} of image {image_id!r}")
                runs.append(counts)
                area = target["areas"][number] if "areas" in target else np.nan
                rows.append((target["height"], target["width"], area, *target["boxes"][number]))
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    return StatedMasks(names, runs, table[:, :2].astype(np.int64), table[:, 3:], table[:, 2])


def _corners(boxes: Boxes) -> Boxes:
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def _are_near(boxes: Boxes, stated: Boxes) -> npt.NDArray[np.bool_]:
    """Which boxes have all edges within EDGE pixels of the stated ones, bool (n,)."""
    near: npt.NDArray[np.bool_] = np.all(np.abs(_corners(boxes) - _corners(stated)) <= EDGE, axis=1)
    return near


def _iou(boxes: Boxes, stated: Boxes) -> npt.NDArray[np.float64]:
    """IoU of each box and the stated one, float64 (n,)."""
    first, second = _corners(boxes), _corners(stated)
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    return shared / (boxes[:, 2:].prod(axis=1) + stated[:, 2:].prod(axis=1) - shared)
