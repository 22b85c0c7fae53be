"""COCO 2017 and every dataset in its JSON format."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from icmbench.tasks.base import DatasetError, Image, Target
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import MALFORMED, path_inside, require_images, require_path

GEOMETRIC = ("instances", "keypoints", "panoptic")  # Kinds whose coordinates are pixels of the photographs as annotated.


class AnnotationFile:
    """One annotation file.

    Args:
        path: a JSON in COCO's format.

    Attributes:
        images: the entries under `images`, by file name.
        annotations: the entries under `annotations`, by image id.
        categories: the entries under `categories`, in order of their ids.

    Raises:
        DatasetError: the file is not in COCO's format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = json.loads(path.read_bytes())
            self.images: dict[str, dict[str, Any]] = {image["file_name"]: image for image in data["images"]}
            self.annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for annotation in data["annotations"]:
                self.annotations[annotation["image_id"]].append(annotation)
            self.categories = sorted(data.get("categories", []), key=lambda category: category["id"])
            self._index = {category["id"]: index for index, category in enumerate(self.categories)}
            strays = set(self.annotations).difference(image["id"] for image in self.images.values())
        except MALFORMED as error:
            cause = f"{type(error).__name__}: {error}"
            raise DatasetError(f"{path}: not in COCO's format ({cause}); give the JSON of one annotation kind") from error
        if strays:
            first = min(strays, key=str)
            raise DatasetError(f"{path}: {len(strays)} annotated images have no entry under `images`, the first is {first}")

    def classes(self, entries: Sequence[dict[str, Any]]) -> np.ndarray:
        """Indices into `categories`, int64 (n,), of annotations or segments.

        Raises:
            DatasetError: a category id is not listed.
        """
        try:
            return np.array([self._index[entry["category_id"]] for entry in entries], dtype=np.int64)
        except KeyError as error:
            raise DatasetError(f"{self.path}: annotations use category {error}, which `categories` does not list") from None


class Coco(ImageFolder):
    """COCO 2017, or any set in its JSON format: instances, person keypoints, panoptic segments, captions.

    The dataset has the images that any of the given files lists; without files, the whole folder.

    Args:
        images: the folder of photographs.
        instances: a JSON of boxes and masks, or None.
        keypoints: a JSON of person keypoints, or None.
        panoptic: a JSON of panoptic segments, or None.
        panoptic_masks: the folder of PNG files that `panoptic` names; given if and only if `panoptic` is.
        captions: a JSON of captions, or None.
        preprocessing: what is done to every image before coding; see `images.Preprocessing`. Boxes, masks and keypoints do not
            follow it, so they need `native`.
        limit: keep only the first images, by file name; None keeps all.
        name: the dataset's name in messages and tables.

    Raises:
        DatasetError: a file is missing or malformed, or lists images that the folder does not have.
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
            require_path(path, "annotations", self.source)
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
    def _annotations(self) -> dict[str, AnnotationFile]:
        return {kind: AnnotationFile(path) for kind, path in self._files.items()}

    def read(self, image_id: str) -> Image:
        """Decoded, upright, preprocessed pixels.

        Returns:
            uint8 (height, width, 3), RGB.

        Raises:
            DatasetError: the file cannot be read, or its size is not the one that an annotation file states.
        """
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
        """The images that the annotation file of this kind lists, including those without an object.

        Raises:
            DatasetError: the annotations do not follow the preprocessing.
        """
        if kind not in self._files:
            return []
        self._refuse_preprocessed(kind)
        return [image_id for image_id in self.ids if image_id in self._annotations[kind].images]

    def categories(self, kind: str) -> list[str]:
        """Category names in order of their ids; the `classes` of a target index them.

        Raises:
            DatasetError: no file of this kind was given.
        """
        return [category["name"] for category in self._annotation_file(kind).categories]

    def things(self, kind: str = "panoptic") -> np.ndarray:
        """Which categories are countable things (True) and which are stuff, bool (categories,).

        Raises:
            DatasetError: no file of this kind was given.
        """
        return np.array([bool(category.get("isthing", 1)) for category in self._annotation_file(kind).categories])

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """Labels of images.

        Returns:
            One mapping per image, with `image_id` (COCO's number), `height` and `width` in pixels (None if the file does not say),
            and by kind:

                instances   boxes float64 (n, 4) as x, y, width, height; classes int64 (n,) into `categories`; areas float64 (n,);
                            crowd bool (n,); ids int64 (n,); segmentations: n polygons or run lengths as in the file
                keypoints   those of instances; keypoints float64 (n, k, 3) as x, y, visibility; labelled int64 (n,): the number
                            of labelled keypoints
                panoptic    mask: path of the PNG; segments int64 (n,): ids in the PNG; classes, crowd and areas of the segments
                captions    captions: list of texts

        Raises:
            DatasetError: no file of this kind was given, it does not list an image, or an annotation is malformed.
        """
        self._refuse_preprocessed(kind)
        file = self._annotation_file(kind)
        return [_image_labels(file, kind, image_id, self._masks) for image_id in ids]

    def _annotation_file(self, kind: str) -> AnnotationFile:
        if kind not in self._files:
            raise DatasetError(f"dataset {self.name!r} was given no {kind!r} annotations; add the key {kind!r} and their file")
        return self._annotations[kind]

    def _refuse_preprocessed(self, kind: str) -> None:
        """Raise DatasetError if annotations of this kind do not fit the preprocessed pixels."""
        if kind in GEOMETRIC and self.preprocessing != "native":
            raise DatasetError(
                f"dataset {self.name!r}: {kind} annotations stand on the original pixels and do not follow preprocessing "
                f"{self.preprocessing!r}; use native, or reference: original"
            )


def _image_labels(file: AnnotationFile, kind: str, image_id: str, masks: Path | None) -> Target:
    """The labels of one image; see `Coco.targets`."""
    if image_id not in file.images:
        raise DatasetError(f"{file.path}: no {kind} for image {image_id!r}; score the images that `annotated` gives")
    build: dict[str, Callable[[AnnotationFile, list[dict[str, Any]]], dict[str, Any]]] = {
        "instances": _instance_labels,
        "keypoints": _keypoint_labels,
        "panoptic": partial(_panoptic_labels, masks),
        "captions": _caption_labels,
    }
    entry = file.images[image_id]
    image_facts = {"image_id": entry["id"], "height": entry.get("height"), "width": entry.get("width")}
    try:
        return image_facts | build[kind](file, file.annotations.get(entry["id"], []))
    except MALFORMED as error:
        if isinstance(error, DatasetError):
            raise
        cause = f"{type(error).__name__}: {error}"
        raise DatasetError(f"{file.path}: an annotation of {image_id!r} is not in COCO's format ({cause})") from error


def _instance_labels(file: AnnotationFile, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "boxes": np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4),
        "classes": file.classes(annotations),
        "areas": np.array([annotation["area"] for annotation in annotations], dtype=np.float64),
        "crowd": np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=bool),
        "ids": np.array([annotation["id"] for annotation in annotations], dtype=np.int64),
        "segmentations": [annotation.get("segmentation") for annotation in annotations],
    }


def _keypoint_labels(file: AnnotationFile, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    points = len(file.categories[0].get("keypoints", ())) if file.categories else 0
    labels = _instance_labels(file, annotations)
    keypoints = np.array([annotation["keypoints"] for annotation in annotations], dtype=np.float64)
    return labels | {
        "keypoints": keypoints.reshape(len(annotations), points, 3),
        "labelled": np.array([annotation["num_keypoints"] for annotation in annotations], dtype=np.int64),
    }


def _panoptic_labels(masks: Path | None, file: AnnotationFile, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    if len(annotations) != 1:
        raise DatasetError(f"{file.path}: an image has {len(annotations)} panoptic annotations, not 1; check the file")
    segments = annotations[0]["segments_info"]
    assert masks is not None
    return {
        "mask": path_inside(masks, annotations[0]["file_name"]),
        "segments": np.array([segment["id"] for segment in segments], dtype=np.int64),
        "classes": file.classes(segments),
        "crowd": np.array([bool(segment.get("iscrowd", 0)) for segment in segments], dtype=bool),
        "areas": np.array([segment.get("area", 0) for segment in segments], dtype=np.float64),
    }


def _caption_labels(file: AnnotationFile, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"captions": [annotation["caption"] for annotation in annotations]}
