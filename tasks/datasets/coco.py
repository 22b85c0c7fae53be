"""COCO 2017 and every dataset in its JSON format."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from icmbench.tasks.base import DatasetError, Image, Target
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import MALFORMED, inside, require, require_images

GEOMETRIC = ("instances", "keypoints", "panoptic")  # kinds that stand on the photographs' own pixels


class Annotations:
    """One annotation file: its images by file name, its annotations by image id, its categories in order of id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = json.loads(path.read_bytes())
            self.images: dict[str, dict[str, Any]] = {image["file_name"]: image for image in data["images"]}
            self.rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for row in data["annotations"]:
                self.rows[row["image_id"]].append(row)
            self.categories = sorted(data.get("categories", []), key=lambda category: category["id"])
            self._index = {category["id"]: index for index, category in enumerate(self.categories)}
            strays = set(self.rows).difference(image["id"] for image in self.images.values())
        except MALFORMED as error:
            what = f"{type(error).__name__}: {error}"
            raise DatasetError(f"{path}: not in COCO's format ({what}); give the JSON of one annotation kind") from error
        if strays:
            first = min(strays, key=str)
            raise DatasetError(f"{path}: {len(strays)} annotated images have no entry under `images`, the first is {first}")

    def classes(self, rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """Category ids as int64 indices into `categories`."""
        try:
            return np.array([self._index[row["category_id"]] for row in rows], dtype=np.int64)
        except KeyError as error:
            raise DatasetError(f"{self.path}: annotations use category {error}, which `categories` does not list") from None


class Coco(ImageFolder):
    """COCO 2017: photographs with instances, person keypoints, panoptic segments and captions, or any set in its JSON format.

    images: the folder of photographs. instances, keypoints, panoptic, captions: annotation files, all optional. panoptic_masks: the
    folder of PNG files that the panoptic JSON names. The images are those that any of the given files lists; without one, the whole
    folder. `limit` keeps the first of them, by file name.
    """

    source: ClassVar[str] = (
        "Download from the COCO project val2017.zip and annotations_trainval2017.zip, for panoptic "
        "segmentation panoptic_annotations_trainval2017.zip too, and unpack them side by side: val2017/*.jpg, "
        "annotations/instances_val2017.json, annotations/panoptic_val2017/*.png."
    )

    def __init__(
        self,
        images: Path,
        instances: Path | None = None,
        keypoints: Path | None = None,
        panoptic: Path | None = None,
        panoptic_masks: Path | None = None,
        captions: Path | None = None,
        preprocessing: str = "native",
        limit: int | None = None,
        name: str = "coco",
    ) -> None:
        self._files = {
            kind: Path(path)
            for kind, path in {"instances": instances, "keypoints": keypoints, "panoptic": panoptic, "captions": captions}.items()
            if path is not None
        }
        self._masks = None if panoptic_masks is None else Path(panoptic_masks)
        for path in [*self._files.values(), *([self._masks] if self._masks else [])]:
            require(path, "annotations", self.source)
        if (self._masks is None) != ("panoptic" not in self._files):
            raise DatasetError(f"dataset {name!r}: `panoptic` (a JSON file) and `panoptic_masks` (its folder of PNG) come together")
        super().__init__(images, preprocessing, limit, name)

    def _list(self) -> list[str]:
        if not self._files:
            return super()._list()
        for file in self._annotations.values():
            require_images(self.images, file.images, file.path)
        return sorted(set().union(*(file.images for file in self._annotations.values())))

    @cached_property
    def _annotations(self) -> dict[str, Annotations]:
        return {kind: Annotations(path) for kind, path in self._files.items()}

    def read(self, image_id: str) -> Image:
        """uint8 (height, width, 3). Raises DatasetError, also where the size is not the one that an annotation file states."""
        image = super().read(image_id)
        if self.preprocessing == "native":
            for file in self._annotations.values():
                entry = file.images.get(image_id, {})
                stated = (entry.get("height", image.shape[0]), entry.get("width", image.shape[1]))
                if stated != image.shape[:2]:
                    raise DatasetError(
                        f"{self.path(image_id)}: {image.shape[1]}x{image.shape[0]} pixels, but {file.path} states "
                        f"{stated[1]}x{stated[0]}; give the photographs that were annotated"
                    )
        return image

    def annotated(self, kind: str) -> list[str]:
        """Images that the annotation file of this kind lists, also those without an object."""
        if kind not in self._files:
            return []
        self._refuse_moved(kind)
        return [image_id for image_id in self.ids if image_id in self._annotations[kind].images]

    def categories(self, kind: str) -> list[str]:
        """Category names in order of their ids; `classes` of a target index them."""
        return [category["name"] for category in self._of(kind).categories]

    def things(self, kind: str = "panoptic") -> np.ndarray:
        """bool (categories,): countable things (True) and stuff."""
        return np.array([bool(category.get("isthing", 1)) for category in self._of(kind).categories])

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """One mapping an image, with `image_id` (COCO's number), `height` and `width`, and by kind:

        instances   boxes float64 (n, 4) as x, y, width, height; classes int64 (n,) into `categories`; areas float64 (n,);
                    crowd bool (n,); ids int64 (n,); segmentations: n polygons or run lengths as in the file
        keypoints   the same, with keypoints float64 (n, k, 3) as x, y, visibility and labelled int64 (n,), how many are
        panoptic    mask: path of the PNG; segments int64 (n,) ids in it; classes; crowd; areas
        captions    captions: list of str
        """
        self._refuse_moved(kind)
        file = self._of(kind)
        build: dict[str, Callable[[Annotations, list[dict[str, Any]]], dict[str, Any]]] = {
            "instances": _instances, "keypoints": _keypoints, "panoptic": self._panoptic, "captions": _captions,
        }  # fmt: skip
        targets: list[Target] = []
        for image_id in ids:
            if image_id not in file.images:
                raise DatasetError(f"{file.path}: no {kind} for image {image_id!r}; score the images that `annotated` gives")
            entry = file.images[image_id]
            about = {"image_id": entry["id"], "height": entry.get("height"), "width": entry.get("width")}
            try:
                targets.append(about | build[kind](file, file.rows.get(entry["id"], [])))
            except MALFORMED as error:
                if isinstance(error, DatasetError):
                    raise
                what = f"{type(error).__name__}: {error}"
                raise DatasetError(f"{file.path}: an annotation of {image_id!r} is not in COCO's format ({what})") from error
        return targets

    def _of(self, kind: str) -> Annotations:
        if kind not in self._files:
            raise DatasetError(f"dataset {self.name!r} was given no {kind!r} annotations; add the key {kind!r} and their file")
        return self._annotations[kind]

    def _refuse_moved(self, kind: str) -> None:
        if kind in GEOMETRIC and self.preprocessing != "native":
            raise DatasetError(
                f"dataset {self.name!r}: {kind} annotations stand on the original pixels and do not follow preprocessing "
                f"{self.preprocessing!r}; use native, or reference: original"
            )

    def _panoptic(self, file: Annotations, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if len(rows) != 1:
            raise DatasetError(f"{file.path}: an image has {len(rows)} panoptic annotations, not 1; check the file")
        segments = rows[0]["segments_info"]
        assert self._masks is not None
        return {
            "mask": inside(self._masks, rows[0]["file_name"]),
            "segments": np.array([segment["id"] for segment in segments], dtype=np.int64),
            "classes": file.classes(segments),
            "crowd": np.array([bool(segment.get("iscrowd", 0)) for segment in segments], dtype=bool),
            "areas": np.array([segment.get("area", 0) for segment in segments], dtype=np.float64),
        }


def _instances(file: Annotations, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "boxes": np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4),
        "classes": file.classes(rows),
        "areas": np.array([row["area"] for row in rows], dtype=np.float64),
        "crowd": np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=bool),
        "ids": np.array([row["id"] for row in rows], dtype=np.int64),
        "segmentations": [row.get("segmentation") for row in rows],
    }


def _keypoints(file: Annotations, rows: list[dict[str, Any]]) -> dict[str, Any]:
    points = len(file.categories[0].get("keypoints", ())) if file.categories else 0
    return _instances(file, rows) | {
        "keypoints": np.array([row["keypoints"] for row in rows], dtype=np.float64).reshape(len(rows), points, 3),
        "labelled": np.array([row["num_keypoints"] for row in rows], dtype=np.int64),
    }


def _captions(file: Annotations, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"captions": [row["caption"] for row in rows]}
