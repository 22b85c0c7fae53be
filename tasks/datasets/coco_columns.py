"""The annotations of each kind in COCO's format, each key checked for all of them, as columns in the order of the file.

    entries under `annotations` -> checks -> {name of a column: one value per annotation}

What the columns hold stands in `Coco.targets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco_lists import ListedCategories
from icmbench.tasks.datasets.json_entries import Entries
from icmbench.tasks.datasets.json_files import json_excerpt
from icmbench.tasks.datasets.json_identity import positions_of, refuse_repeated, refuse_repeated_within, unique_ids
from icmbench.tasks.datasets.segmentations import exact_area, problem

MAX_SEGMENT = 256**3 - 1  # R + 256 G + 65536 B of a panoptic PNG; 0 is unlabelled.
_SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
PERSON_JOINTS = [
    "nose",
    *(f"{side}_{joint}" for joint in _SIDED for side in ("left", "right")),
]  # In COCO's order.


def instance_columns(annotations: Entries, categories: ListedCategories, area_from_box: bool = True) -> dict[str, Any]:
    """Boxes, classes, areas, crowd, ids and segmentations.

    Args:
        annotations: the entries under `annotations`.
        categories: what `category_id` points to.
        area_from_box: whether an area that neither the file nor a segmentation tells is that of the box.

    Raises:
        DatasetError: a value would change a score; the message names the entry and the key.
    """
    ids = annotations.whole_numbers("id")
    refuse_repeated(annotations, "id", ids.tolist())
    boxes = _boxes(annotations)
    return {
        "boxes": boxes,
        "classes": positions_of(annotations, "category_id", categories.positions, "categories"),
        "areas": _areas(annotations, boxes if area_from_box else None),
        "crowd": annotations.flags("iscrowd"),
        "ids": ids,
        "segmentations": annotations.column("segmentation"),
    }


def keypoint_columns(annotations: Entries, categories: ListedCategories) -> dict[str, Any]:
    """The columns of instances, keypoints, and how many of them are labelled.

    Raises:
        DatasetError: as in `instance_columns`; or an annotation has not the keypoints of its category.
    """
    labels = instance_columns(annotations, categories, area_from_box=False)
    used = set(labels["classes"].tolist()) or set(range(len(categories.entries)))
    joints = _joints(annotations, [categories.entries[index] for index in sorted(used)])
    wanted = f"x, y and visibility, finite numbers, of each of the {joints} keypoints of its category"
    keypoints = annotations.rows("keypoints", [3 * joints] * len(annotations), wanted).reshape(-1, joints, 3)
    labelled = (keypoints[..., 2] > 0).sum(axis=1)
    stated = annotations.optional_whole_numbers("num_keypoints", 0)
    for position, (number, counted) in enumerate(zip(stated, labelled.tolist(), strict=True)):
        # Persons with 0 keypoints do not count in the score, so that only this contradiction would change it.
        if number is not None and (number == 0) != (counted == 0):
            annotations.refuse(position, "num_keypoints", f"{counted}, the number of keypoints with a visibility above 0")
    return labels | {"keypoints": keypoints, "labelled": labelled.astype(np.int64)}


def caption_columns(annotations: Entries) -> dict[str, Any]:
    """The captions.

    Raises:
        DatasetError: one is no text, or two annotations have one id.
    """
    numbers = annotations.column("id")
    if not set(map(type, numbers)) <= {int, str, type(None)}:
        unique_ids(annotations)
    refuse_repeated(annotations, "id", numbers)
    return {"captions": annotations.texts("caption")}


def segment_columns(annotations: Entries, categories: ListedCategories) -> tuple[dict[str, Any], list[int]]:
    """The segments of all images, end to end.

    Args:
        annotations: the entries under `annotations`, one per image.
        categories: what `category_id` points to.

    Returns:
        Columns segments, classes, crowd and areas; and how many segments each image has.

    Raises:
        DatasetError: a value would change a score; the message names the image, the segment and the key.
    """
    lists = annotations.column("segments_info")
    if not set(map(type, lists)) <= {list}:
        annotations.refuse_first("segments_info", "a list of segments", lambda segments: type(segments) is list)
    counts = list(map(len, lists))
    image_of = np.repeat(np.arange(len(counts)), counts)
    segments = Entries(
        annotations.path,
        "segments_info",
        list(chain.from_iterable(lists)),
        owner=lambda position: annotations.items[image_of[position]]["image_id"],
    )
    ids = segments.whole_numbers("id", 1, MAX_SEGMENT)
    refuse_repeated_within(segments, "id", image_of, ids)
    columns = {
        "segments": ids,
        "classes": positions_of(segments, "category_id", categories.positions, "categories"),
        "crowd": segments.flags("iscrowd"),
        "areas": segments.numbers("area", optional=True),
    }
    return columns, counts


def _boxes(annotations: Entries) -> npt.NDArray[np.float64]:
    """float64 (n, 4), x, y, width and height, which are positive."""
    wanted = "four finite numbers x, y, width, height with a positive width and height"
    boxes = annotations.rows("bbox", [4] * len(annotations), wanted).reshape(-1, 4)
    flat = np.flatnonzero((boxes[:, 2:] <= 0).any(axis=1))
    if flat.size:
        entry = annotations.items[int(flat[0])]
        raise DatasetError(
            f"{annotations.path}: {annotations.label(int(flat[0]))}: `bbox` is {json_excerpt(entry['bbox'])}, not {wanted} "
            f"({flat.size} such boxes in all); remove the annotation, or state the box of its segmentation"
        )
    return boxes


def _areas(annotations: Entries, boxes: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
    """Areas in square pixels, float64 (n,): as stated, else of the segmentation, else of the box if boxes are given."""
    areas = annotations.numbers("area", optional=True)
    for position in np.flatnonzero(np.isnan(areas)).tolist():
        entry = annotations.items[position]
        segmentation = entry.get("segmentation")
        if segmentation:
            # The picture's own size is compared where masks are asked for; here run lengths need only fit their own.
            size = segmentation.get("size") if type(segmentation) is dict else None
            height, width = MAX_SEGMENT, MAX_SEGMENT
            if type(size) is list and len(size) == 2 and set(map(type, size)) <= {int}:
                height, width = size
            wrong = problem(segmentation, height, width)
            if wrong is not None:
                annotations.refuse(position, "area", f"a number, and cannot be taken from its segmentation, which {wrong}")
            areas[position] = exact_area(segmentation)
        elif boxes is None:
            annotations.refuse(position, "area", "the area of the person, which its box does not tell")
        else:
            areas[position] = boxes[position, 2] * boxes[position, 3]
    return areas


def _joints(annotations: Entries, categories: Sequence[dict[str, Any]]) -> int:
    """How many keypoints the categories in use have."""
    counts = {}
    for category in categories:
        names = category.get("keypoints")
        label = f"{annotations.path}: category {category['id']} ({json_excerpt(category['name'])})"
        if type(names) is not list or not names or not set(map(type, names)) <= {str}:
            raise DatasetError(
                f"{label}: `keypoints` is {json_excerpt(names)}, not the list of its keypoints' names; correct the file"
            )
        if names != PERSON_JOINTS and sorted(names) == sorted(PERSON_JOINTS):
            raise DatasetError(f"{label}: its `keypoints` are those of COCO in another order; write all keypoints in COCO's order")
        counts[len(names)] = label
    if len(counts) > 1:
        raise DatasetError(
            f"{annotations.path}: categories have different numbers of keypoints, {sorted(counts)}; give one file for each"
        )
    return next(iter(counts), len(PERSON_JOINTS))
