"""Annotation files in COCO's JSON format: read whole, checked whole, and kept as columns in order of the images.

    JSON -> images, categories (coco_lists.py) -> annotations (coco_columns.py) -> columns by image

Whatever would lead to a wrong score is a DatasetError that names the file, the entry and the key, before anything is coded.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco_columns import caption_columns, instance_columns, keypoint_columns, segment_columns
from icmbench.tasks.datasets.coco_lists import ListedCategories, ListedImages
from icmbench.tasks.datasets.json_entries import Entries
from icmbench.tasks.datasets.json_files import json_excerpt, read_json
from icmbench.tasks.datasets.json_identity import positions_of, refuse_repeated
from icmbench.tasks.datasets.plausibility import refuse_boxes_outside, refuse_other_units, warn_of_oddities
from icmbench.tasks.datasets.segment_maps import mask_names

Columns = Mapping[str, Any]  # Aligned arrays and lists by name.


class AnnotationFile:
    """One annotation file.

    Args:
        path: a JSON in COCO's format.
        kind: "instances", "keypoints", "panoptic" or "captions".
        masks: the folder of PNG files that a panoptic file names.

    Attributes:
        path: see Args.
        images: the entries under `images`, by file name.
        categories: the entries under `categories`, in order of their ids; none in a file of captions.
        things: bool (categories,), which of them are countable things.

    Raises:
        DatasetError: the file is not in COCO's format, or an entry would lead to a wrong score.
    """

    def __init__(self, path: Path, kind: str, masks: Path | None = None) -> None:
        self.path, self._masks = path, masks
        with _without_collector():
            data = _load(path)
            self._listed = ListedImages.read(path, data.get("images"))
            categories = ListedCategories.read(path, [] if kind == "captions" else data.get("categories"), kind == "panoptic")
            self.images, self.categories, self.things = self._listed.entries, categories.entries, categories.things
            self._mask_names: list[str] | None = None
            self._columns, self._starts = self._read(kind, Entries(path, "annotations", data.get("annotations")), categories)

    def labels(self, file_name: str) -> dict[str, Any]:
        """The columns of one image's annotations; see `Coco.targets`."""
        position = self._listed.positions[self.images[file_name]["id"]]
        start, end = self._starts[position], self._starts[position + 1]
        labels = {key: values[start:end] for key, values in self._columns.items()}
        if self._masks is not None and self._mask_names is not None:
            labels["mask"] = self._masks / self._mask_names[position]
        return labels

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

    def _read(self, kind: str, annotations: Entries, categories: ListedCategories) -> tuple[Columns, list[int]]:
        """The columns of all annotations in order of the images, and where those of each image start."""
        image_of = positions_of(annotations, "image_id", self._listed.positions, "images")
        if kind == "panoptic":
            return self._read_segments(annotations, image_of, categories)
        if kind == "captions":
            self._listed.require_each(image_of, "caption")
        readers: dict[str, Callable[[], dict[str, Any]]] = {
            "instances": lambda: instance_columns(annotations, categories),
            "keypoints": lambda: keypoint_columns(annotations, categories),
            "captions": lambda: caption_columns(annotations),
        }
        counts = np.bincount(image_of, minlength=len(self.images)).tolist()
        return _ordered(readers[kind](), image_of), _starts(counts)

    def _read_segments(
        self, annotations: Entries, image_of: npt.NDArray[np.int64], categories: ListedCategories
    ) -> tuple[Columns, list[int]]:
        """As `_read`, for a panoptic file, whose annotations each list the segments of an image."""
        assert self._masks is not None
        self._listed.require_each(image_of, "panoptic annotation")
        refuse_repeated(annotations, "image_id", image_of.tolist())
        order = np.argsort(image_of).tolist()
        ordered = Entries(self.path, "annotations", [annotations.items[k] for k in order], "image_id")
        self._mask_names = mask_names(self._masks, ordered)
        columns, counts = segment_columns(ordered, categories)
        return columns, _starts(counts)


def _ordered(columns: dict[str, Any], image_of: npt.NDArray[np.int64]) -> Columns:
    """Columns in order of the images, those of one image in the order of the file."""
    order = np.argsort(image_of, kind="stable")
    return {
        key: values[order] if isinstance(values, np.ndarray) else list(map(values.__getitem__, order.tolist()))
        for key, values in columns.items()
    }


def _starts(counts: Sequence[int]) -> list[int]:
    """Where the annotations of each image start, and where the last ones end."""
    return np.append(0, np.cumsum(counts, dtype=np.int64)).tolist()


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
