"""Predictions of objects in COCO's result format: a JSON list with one entry an object, of boxes, masks or keypoints.

    [{"image_id": 139, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}, ...]

`segmentation` holds the run lengths of a mask, `keypoints` x, y and a score of each of COCO's 17 points. As in COCO's own
evaluation, the box of a mask or of keypoints is the one around it where the entries have none. The list names no image without an
object, so every image of the manifest that it does not name counts as one in which nothing was detected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.json_entries import Entries, flat_numbers, is_finite
from icmbench.tasks.datasets.json_identity import positions_of
from icmbench.tasks.datasets.segmentations import run_length_problem
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.predictions_manifest import ExportedImage, read_json_of_predictions
from icmbench.tasks.models.predictions_names import Categories, image_keys

POINTS = 17  # COCO's keypoints of a person.
ObjectKind = Literal["boxes", "masks", "keypoints"]


class ObjectPredictions:
    """The objects that one file lists for the pictures of one manifest.

    Args:
        path: the JSON.
        kind: what an entry must hold.
        images: the images of the manifest.
        names: file names by number, of the annotations; empty without.
        categories: what a category id means.

    Attributes:
        digests: what decides the prediction of each image, by id.

    Raises:
        ModelError: the file cannot be read, or an entry is malformed, of an unknown image or category, or does not fit its picture.
    """

    def __init__(self, path: Path, kind: ObjectKind, images: Sequence[ExportedImage], names: Any, categories: Categories) -> None:
        self._path, self._kind = path, kind
        self._positions = {image.id: position for position, image in enumerate(images)}
        try:
            entries = Entries(path, "predictions", read_json_of_predictions(path), "image_id")
            keys = {name: self._positions[image_id] for name, image_id in image_keys(images, names).items()}
            image_of = positions_of(entries, "image_id", keys, "images` of the manifest beside it or `images")
            classes = positions_of(
                entries, "category_id", categories.positions, f"categories` of {categories.source} or `categories"
            )
            columns = {"classes": classes, "scores": _finite_column(entries, "score"), **self._columns(entries, images, image_of)}
        except DatasetError as error:
            raise ModelError(str(error)) from None
        order = np.argsort(image_of, kind="stable")
        self._rows = np.append(0, np.cumsum(np.bincount(image_of, minlength=len(images))))
        self._columns_by_name = {name: _take(column, order) for name, column in columns.items()}
        self.digests = {image.id: self._digest(image.id) for image in images}

    def output(self, image: ExportedImage) -> dict[str, Any]:
        """What a model of the task returns for an image: `boxes`, `scores` and `classes`, and `masks` or `keypoints`."""
        columns = self._of_image(image.id)
        boxes = columns.get("boxes")
        if self._kind == "masks":
            columns["masks"] = [_compressed(mask, image) for mask in columns["masks"]]
            if boxes is None:
                boxes = _boxes_of_masks(columns["masks"])
        elif self._kind == "keypoints":
            columns["keypoints"] = columns["keypoints"].reshape(-1, POINTS, 3).astype(np.float32)
            if boxes is None:
                boxes = _boxes_of_points(columns["keypoints"][..., :2])
        corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        return {**columns, "boxes": corners.astype(np.float32), "scores": columns["scores"].astype(np.float32)}

    def _columns(self, entries: Entries, images: Sequence[ExportedImage], image_of: npt.NDArray[np.int64]) -> dict[str, Any]:
        """The boxes, masks and keypoints of all entries, checked; without boxes if no entry has one and the kind needs none."""
        columns: dict[str, Any] = {}
        if self._kind == "boxes" or any(value is not None for value in entries.column("bbox")):
            boxes = entries.rows("bbox", [4] * len(entries), "x, y, width and height as finite numbers").reshape(-1, 4)
            bad = np.flatnonzero((boxes[:, 2:] < 0).any(axis=1))
            if bad.size:
                entries.refuse(int(bad[0]), "bbox", "x, y, width and height with a width and height of at least 0")
            columns["boxes"] = boxes
        if self._kind == "masks":
            columns["masks"] = entries.column("segmentation")
            for position, (mask, k) in enumerate(zip(columns["masks"], image_of.tolist(), strict=True)):
                if type(mask) is not dict:
                    entries.refuse(position, "segmentation", "run lengths with `size` and `counts`")
                if wrong := run_length_problem(mask, images[k].height, images[k].width):
                    raise ModelError(f"{self._path}: {entries.label(position)}: its `segmentation` {wrong}; correct the file")
        if self._kind == "keypoints":
            wanted = f"x, y and a score of {POINTS} keypoints as finite numbers"
            columns["keypoints"] = entries.rows("keypoints", [3 * POINTS] * len(entries), wanted).reshape(-1, 3 * POINTS)
        return columns

    def _of_image(self, image_id: str) -> dict[str, Any]:
        position = self._positions[image_id]
        rows = slice(int(self._rows[position]), int(self._rows[position + 1]))
        return {name: column[rows] for name, column in self._columns_by_name.items()}

    def _digest(self, image_id: str) -> str:
        value = hashlib.sha256()
        for name, column in sorted(self._of_image(image_id).items()):
            value.update(f"{name} {len(column)} ".encode())
            value.update(column.tobytes() if isinstance(column, np.ndarray) else repr(column).encode())
        return value.hexdigest()[:32]


def _finite_column(entries: Entries, key: str) -> npt.NDArray[np.float64]:
    numbers = flat_numbers([entries.column(key)])
    if numbers is None:
        entries.refuse_first(key, "a finite number", is_finite)
    return numbers


def _take(column: Any, order: npt.NDArray[np.int64]) -> Any:
    return column[order] if isinstance(column, np.ndarray) else [column[k] for k in order.tolist()]


def _compressed(mask: dict[str, Any], image: ExportedImage) -> dict[str, Any]:
    """A mask as COCO's compressed run lengths, `{"size": [height, width], "counts": bytes}`."""
    counts = mask["counts"]
    if isinstance(counts, list):
        from pycocotools.mask import frPyObjects

        return dict(frPyObjects({"size": [image.height, image.width], "counts": counts}, image.height, image.width))
    return {"size": [image.height, image.width], "counts": counts.encode("ascii")}


def _boxes_of_masks(masks: Sequence[dict[str, Any]]) -> npt.NDArray[np.float64]:
    """The box around each mask as x, y, width and height, float64 (n, 4)."""
    from pycocotools.mask import toBbox

    return np.array([toBbox(mask) for mask in masks], dtype=np.float64).reshape(-1, 4)


def _boxes_of_points(points: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The box around the keypoints of each object as x, y, width and height, float64 (n, 4).

    Args:
        points: float32 (n, points, 2).
    """
    corners = points.astype(np.float64)
    low = corners.min(axis=1) if len(corners) else np.zeros((0, 2))
    high = corners.max(axis=1) if len(corners) else np.zeros((0, 2))
    return np.concatenate([low, high - low], axis=1)
