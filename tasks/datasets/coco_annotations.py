"""Annotation files in COCO's JSON format: read whole, checked whole, and kept as columns in order of the images.

    JSON -> images, categories -> annotations, each key checked for all of them -> columns by image

Whatever would lead to a wrong score is a DatasetError that names the file, the entry and the key, before anything is coded.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.json_entries import Entries
from icmbench.tasks.datasets.json_files import json_excerpt, read_json
from icmbench.tasks.datasets.plausibility import refuse_boxes_outside, refuse_other_units, warn_of_oddities
from icmbench.tasks.datasets.segment_maps import mask_files
from icmbench.tasks.datasets.segmentations import exact_area, problem

MAX_SEGMENT = 256**3 - 1  # R + 256 G + 65536 B of a panoptic PNG; 0 is unlabelled.
_SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
PERSON_JOINTS = [
    "nose",
    *(f"{side}_{joint}" for joint in _SIDED for side in ("left", "right")),
]  # In COCO's order.


class AnnotationFile:
    """One annotation file.

    Args:
        path: a JSON in COCO's format.
        kind: "instances", "keypoints", "panoptic" or "captions".
        masks: the folder of PNG files that a panoptic file names.

    Attributes:
        images: the entries under `images`, by file name.
        categories: the entries under `categories`, in order of their ids; none in a file of captions.

    Raises:
        DatasetError: the file is not in COCO's format, or an entry would lead to a wrong score.
    """

    def __init__(self, path: Path, kind: str, masks: Path | None = None) -> None:
        self.path, self._masks = path, masks
        with _without_collector():
            self._read(kind)

    def _read(self, kind: str) -> None:
        path = self.path
        data = _load(path)
        images = Entries(path, "images", data.get("images"), "file_name")
        categories = Entries(path, "categories", [] if kind == "captions" else data.get("categories"), "name")
        annotations = Entries(path, "annotations", data.get("annotations"))
        self._read_images(images)
        self._read_categories(categories, kind)
        image_of = annotations.positions("image_id", self._position, "images")
        reader: dict[str, Callable[[Entries], dict[str, Any]]] = {
            "instances": self._instances,
            "keypoints": self._keypoints,
            "captions": self._captions,
        }
        if kind == "panoptic":
            self._columns, self._starts = self._panoptic(annotations, image_of)
        else:
            if kind == "captions":
                self._require_each(image_of, "caption")
            self._columns, self._starts = self._by_image(reader[kind](annotations), image_of)

    def labels(self, file_name: str) -> dict[str, Any]:
        """The columns of one image's annotations; see `Coco.targets`."""
        position = self._position[self.images[file_name]["id"]]
        start, end = self._starts[position], self._starts[position + 1]
        labels = {key: values[start:end] for key, values in self._columns.items()}
        return labels | {key: values[position] for key, values in self._image_columns.items()}

    def check_coordinates(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Check coordinates and areas against the sizes of the pictures, once these are known; see `plausibility`.

        Args:
            sizes: height and width in pixels by file name; the labels of other images are not looked at.

        Raises:
            DatasetError: a box lies outside its picture, or coordinates or areas are not in pixels.
        """
        images = list(self.images)
        shapes = np.array([sizes.get(name, (np.nan, np.nan)) for name in images], dtype=np.float64).reshape(-1, 2)
        image_of = np.repeat(np.arange(len(images)), np.diff(self._starts))
        refuse_boxes_outside(self.path, self._columns, [images[k] for k in image_of.tolist()], shapes[image_of])
        refuse_other_units(self.path, self._columns)
        warn_of_oddities(self.path, self._columns, image_of, shapes[image_of])

    def _read_images(self, images: Entries) -> None:
        """Check and keep the list of images; one that is listed twice in the same words counts once."""
        names = images.column("file_name")
        if set(map(type, names)) <= {str} and len(set(names)) != len(names):
            first: dict[str, dict[str, Any]] = {}
            unlike = [image for image in images.items if first.setdefault(image["file_name"], image) != image]
            if not unlike:
                images = Entries(images.path, "images", list(first.values()), "file_name")
        names = images.texts("file_name")
        images.refuse_repeated("file_name", names)
        self._position = {number: position for position, number in enumerate(images.ids())}
        for key in ("height", "width"):
            images.whole_numbers(key, 1, optional=True)
        self.images: dict[str, dict[str, Any]] = dict(zip(names, images.items))
        self._image_columns: dict[str, list[Any]] = {}

    def _read_categories(self, categories: Entries, kind: str) -> None:
        categories.ids()
        names = categories.texts("name")
        # Names are matched with a model's in any case and with underscores as spaces, so that is how they must differ.
        categories.refuse_repeated("name", [" ".join(name.casefold().replace("_", " ").split()) for name in names])
        self.things = categories.flags("isthing", optional=kind != "panoptic")
        if kind != "panoptic":
            self.things |= np.array([value is None for value in categories.column("isthing")], dtype=np.bool_)
        order = sorted(range(len(categories)), key=lambda k: categories.items[k]["id"])
        self.things = self.things[order]
        self.categories = [categories.items[k] for k in order]
        self._category_index = {category["id"]: index for index, category in enumerate(self.categories)}

    def _by_image(self, columns: dict[str, Any], image_of: npt.NDArray[np.int64]) -> tuple[dict[str, Any], list[int]]:
        """Columns in order of the images, those of one image in the order of the file, and where each image starts."""
        starts = np.append(0, np.cumsum(np.bincount(image_of, minlength=len(self._position)))).tolist()
        order = np.argsort(image_of, kind="stable")
        return {
            key: values[order] if isinstance(values, np.ndarray) else [values[k] for k in order.tolist()]
            for key, values in columns.items()
        }, starts

    def _require_each(self, image_of: npt.NDArray[np.int64], what: str) -> None:
        """Raise DatasetError if an image has no annotation."""
        bare = np.flatnonzero(np.bincount(image_of, minlength=len(self._position)) == 0)
        if bare.size:
            name = list(self.images)[int(bare[0])]
            raise DatasetError(
                f"{self.path}: {bare.size} of the {len(self.images)} images have no {what}, the first is {json_excerpt(name)}; "
                f"complete the file, or remove them from `images`"
            )

    def _instances(self, annotations: Entries, area_from_box: bool = True) -> dict[str, Any]:
        ids = annotations.whole_numbers("id", -(2**63))
        annotations.refuse_repeated("id", ids)
        boxes = _boxes(annotations)
        return {
            "boxes": boxes,
            "classes": annotations.positions("category_id", self._category_index, "categories"),
            "areas": _areas(annotations, boxes if area_from_box else None),
            "crowd": annotations.flags("iscrowd"),
            "ids": np.array(ids, dtype=np.int64),
            "segmentations": annotations.column("segmentation"),
        }

    def _keypoints(self, annotations: Entries) -> dict[str, Any]:
        labels = self._instances(annotations, area_from_box=False)
        joints = self._joints(set(labels["classes"].tolist()) or set(range(len(self.categories))))
        wanted = f"x, y and visibility, finite numbers, of each of the {joints} keypoints of its category"
        keypoints = annotations.rows("keypoints", [3 * joints] * len(annotations), wanted).reshape(-1, joints, 3)
        labelled = (keypoints[..., 2] > 0).sum(axis=1)
        stated = annotations.whole_numbers("num_keypoints", 0, optional=True)
        for position, (number, counted) in enumerate(zip(stated, labelled.tolist(), strict=True)):
            # Persons with 0 keypoints do not count in the score, so that only this contradiction would change it.
            if number is not None and (number == 0) != (counted == 0):
                annotations.refuse(position, "num_keypoints", f"{counted}, the number of keypoints with a visibility above 0")
        return labels | {"keypoints": keypoints, "labelled": labelled.astype(np.int64)}

    def _joints(self, used: set[int]) -> int:
        """How many keypoints the categories in use have."""
        counts = {}
        for index in sorted(used):
            category = self.categories[index]
            names = category.get("keypoints")
            label = f"{self.path}: category {category['id']} ({json_excerpt(category['name'])})"
            if type(names) is not list or not names or not set(map(type, names)) <= {str}:
                raise DatasetError(
                    f"{label}: `keypoints` is {json_excerpt(names)}, not the list of its keypoints' names; correct the file"
                )
            if names != PERSON_JOINTS and sorted(names) == sorted(PERSON_JOINTS):
                raise DatasetError(
                    f"{label}: its `keypoints` are those of COCO in another order; write all keypoints in COCO's order"
                )
            counts[len(names)] = label
        if len(counts) > 1:
            raise DatasetError(
                f"{self.path}: categories have different numbers of keypoints, {sorted(counts)}; give one file for each"
            )
        return next(iter(counts), len(PERSON_JOINTS))

    def _captions(self, annotations: Entries) -> dict[str, Any]:
        numbers = annotations.column("id")
        if not set(map(type, numbers)) <= {int, str, type(None)}:
            annotations.ids()
        annotations.refuse_repeated("id", numbers)
        return {"captions": annotations.texts("caption")}

    def _panoptic(self, annotations: Entries, image_of: npt.NDArray[np.int64]) -> tuple[dict[str, Any], list[int]]:
        self._require_each(image_of, "panoptic annotation")
        annotations.refuse_repeated("image_id", image_of.tolist())
        order = np.argsort(image_of).tolist()
        annotations = Entries(self.path, "annotations", [annotations.items[k] for k in order], "image_id")
        assert self._masks is not None
        self._image_columns = {"mask": mask_files(self._masks, annotations)}
        lists = annotations.column("segments_info")
        for position in (k for k, segments in enumerate(lists) if type(segments) is not list):
            annotations.refuse(position, "segments_info", "a list of segments")
        counts = list(map(len, lists))
        owners = chain.from_iterable([entry["image_id"]] * count for entry, count in zip(annotations.items, counts, strict=True))
        segments = Entries(self.path, "segments_info", list(chain.from_iterable(lists)), owners=list(owners))
        ids = np.array(segments.whole_numbers("id", 1, MAX_SEGMENT), dtype=np.int64)
        segments.refuse_repeated("id", (np.repeat(np.arange(len(counts)), counts) * (MAX_SEGMENT + 1) + ids).tolist())
        columns = {
            "segments": ids,
            "classes": segments.positions("category_id", self._category_index, "categories"),
            "crowd": segments.flags("iscrowd"),
            "areas": segments.numbers("area", optional=True),
        }
        return columns, np.append(0, np.cumsum(counts, dtype=np.int64)).tolist()


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector from searching millions of new numbers and lists, where it finds nothing to free."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if not gc.get_freeze_count():  # Counts all objects as old, so that the collector does not search them once it is on.
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _load(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    data = read_json(path)
    if type(data) is not dict:
        raise DatasetError(f"{path}: not in COCO's format ({json_excerpt(data)}); give the JSON of one annotation kind")
    return data


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
