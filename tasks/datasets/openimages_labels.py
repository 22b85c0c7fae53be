"""What the tables of Open Images say of each photograph of a dataset, read whole and checked whole.

boxes, image-level labels, classes, masks (openimages_tables.py, openimages_masks.py) -> labels by image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.images import printable_name, require_path
from icmbench.tasks.datasets.openimages_masks import StoredMask, read_masks
from icmbench.tasks.datasets.openimages_tables import EDGES, Columns, Vocabulary, image_id_of, read_boxes, read_verified


@dataclass(frozen=True)
class Tables:
    """The files that a user gives.

    Attributes:
        boxes: the CSV of boxes.
        labels: the CSV of image-level labels.
        masks: the CSV of masks, or None.
        mask_folder: the folder of mask PNG files, or None where `masks` holds the masks.
        classes: the CSV of label names and names to read, or None.
        image_list: the list of images, or None.
    """

    boxes: Path
    labels: Path
    masks: Path | None
    mask_folder: Path | None
    classes: Path | None
    image_list: Path | None

    def require(self, dataset: str, source: str) -> None:
        """Check that all are there.

        Args:
            dataset: the dataset's name, for messages.
            source: a sentence on what to download.

        Raises:
            DatasetError: a file or folder is missing, or the folder of masks comes without their CSV.
        """
        for path in (self.boxes, self.labels, self.masks, self.mask_folder, self.classes, self.image_list):
            if path is not None:
                require_path(path, "annotations", source)
        if self.mask_folder is not None and (self.masks is None or not self.mask_folder.is_dir()):
            raise DatasetError(
                f"dataset {dataset!r}: `mask_folder` is the folder of the PNG files that `masks`, a CSV, names; give both"
            )


class ImageLabels:
    """The labels of a dataset's images.

    Args:
        tables: the files.
        ids: file names of the images.

    Attributes:
        categories: names of the classes.
        has_masks: whether there is a table of masks.

    Raises:
        DatasetError: a table is malformed, or an image has no labels.
    """

    def __init__(self, tables: Tables, ids: Sequence[str]) -> None:
        self._tables = tables
        self._positions = {image_id_of(name): position for position, name in enumerate(ids)}
        boxes = Columns.read(tables.boxes, ["ImageID", "LabelName", *EDGES, "IsGroupOf"])
        labels = Columns.read(tables.labels, ["ImageID", "LabelName", "Confidence"])
        self._vocabulary = Vocabulary(tables.classes)
        self._vocabulary.learn([boxes, labels])
        self._boxes = read_boxes(boxes, self._positions, self._vocabulary)
        self._verified = read_verified(labels, self._positions, self._vocabulary)
        self._verified[self._boxes.image, self._boxes.category] = True
        self._refuse_bare(ids)
        order = np.argsort(self._boxes.image, kind="stable")
        ends = np.cumsum(np.bincount(self._boxes.image, minlength=len(ids)))
        self._rows = np.split(order, ends[:-1])
        self.categories, self.has_masks = self._vocabulary.names, tables.masks is not None

    def _refuse_bare(self, ids: Sequence[str]) -> None:
        bare = np.flatnonzero(~self._verified.any(axis=1))
        if bare.size:
            raise DatasetError(
                f"{self._tables.labels}: {bare.size} of the {len(ids)} images have neither labels nor boxes, the first is "
                f"{printable_name(ids[int(bare[0])])!r}; give the tables of these images, or an `image_list` without them"
            )

    @cached_property
    def _masks(self) -> list[StoredMask | None]:
        """The mask of each box."""
        tables = self._tables
        assert tables.masks is not None
        return read_masks(tables.masks, tables.mask_folder, self._positions, self._vocabulary, self._boxes, tables.boxes)

    def masks(self, image_id: str) -> list[StoredMask | None]:
        """The mask of each box of an image; none at all if there is no table of masks."""
        return [self._masks[row] for row in self._rows[self._positions[image_id_of(image_id)]].tolist()] if self.has_masks else []

    def of_image(self, image_id: str) -> dict[str, Any]:
        """The labels of an image; see `OpenImages.targets`."""
        position = self._positions[image_id_of(image_id)]
        rows = self._rows[position]
        labels = {
            "annotated_in": self._tables.boxes,
            "corners": self._boxes.corners[rows],
            "classes": self._boxes.category[rows],
            "group": self._boxes.group[rows],
            "verified": np.flatnonzero(self._verified[position]),
        }
        return labels | ({"masks": self.masks(image_id)} if self.has_masks else {})
