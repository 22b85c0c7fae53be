"""COCO 2017 and every dataset in its JSON format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from icmbench.tasks.base import DatasetError, Image, Target
from icmbench.tasks.datasets.coco_annotations import AnnotationFile
from icmbench.tasks.datasets.decoding import open_picture
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import read_image, require_images, require_path
from icmbench.tasks.datasets.segment_maps import check_segments
from icmbench.tasks.datasets.sizes import check_map_header, upright_size

GEOMETRIC = ("instances", "keypoints", "panoptic")  # Kinds whose coordinates are pixels of the photographs as annotated.


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

    costly_targets: ClassVar[frozenset[str]] = frozenset({"panoptic"})  # Kinds whose `targets` reads the pixels of label maps.

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
        self._sizes: dict[str, tuple[int, int]] = {}  # Height and width of the photographs that have been read.
        self._checked: set[str] = set()  # Images whose panoptic PNG has been compared with the JSON.
        self._fitting: set[str] = set()  # Kinds of annotations that have been compared with the headers of all photographs.
        super().__init__(images, preprocessing, limit, name)

    def _list(self) -> list[str]:
        if not self._files:
            return super()._list()
        for file in self._annotations.values():
            require_images(self.images, file.images, file.path)
        return sorted(set().union(*(file.images for file in self._annotations.values())))

    @cached_property
    def _annotations(self) -> dict[str, AnnotationFile]:
        return {kind: AnnotationFile(path, kind, self._masks) for kind, path in self._files.items()}

    def read(self, image_id: str) -> Image:
        """Decoded, upright, preprocessed pixels.

        Returns:
            uint8 (height, width, 3), RGB.

        Raises:
            DatasetError: the file cannot be read, or its size is not the one that an annotation file states.
        """
        image = super().read(image_id)
        if self.preprocessing == "native":
            self._sizes[image_id] = (image.shape[0], image.shape[1])
            for kind, file in self._annotations.items():
                if image_id in file.images:
                    self._check_size(image_id, file, kind)
        return image

    def _check_headers(self, kind: str, file: AnnotationFile) -> None:
        """Compare the headers of all photographs and label maps with an annotation file, once.

        Raises:
            DatasetError: a photograph or label map has another size than the file states, a box lies outside its photograph, or
                coordinates are not in pixels.
        """
        sizes = {}
        for image_id in filter(file.images.__contains__, self.ids):
            entry = file.images[image_id]
            size = upright_size(self.path(image_id))
            if size is not None and (entry.get("height") or size[0], entry.get("width") or size[1]) != size:
                self.read(image_id)  # Names what is wrong, unless the header did not tell all.
                size = self._sizes[image_id]
            if size is not None:
                sizes[image_id] = size
            if kind == "panoptic":
                check_map_header(file.labels(image_id)["mask"], self.path(image_id), size)
        if kind in ("instances", "keypoints"):
            file.check_coordinates(sizes)
        self._fitting.add(kind)

    def _check_size(self, image_id: str, file: AnnotationFile, kind: str) -> None:
        """Raise DatasetError if a photograph that has been read has another size than its annotations."""
        height, width = self._sizes[image_id]
        entry = file.images[image_id]
        stated = (entry.get("height") or height, entry.get("width") or width)
        if stated != (height, width):
            turned = stated == stored_size(self.path(image_id))
            reason = (
                "its EXIF orientation turns it and the annotations state the stored size; turn the annotations, or remove the tag"
                if turned
                else "give the photographs that were annotated"
            )
            raise DatasetError(
                f"{self.path(image_id)}: {width}x{height} pixels, but {file.path} states {stated[1]}x{stated[0]}; {reason}"
            )
        if kind == "panoptic":
            self._check_segments(image_id, height, width)

    def _size(self, image_id: str, file: AnnotationFile) -> tuple[int, int]:
        """Height and width of an image: as the file states them, else those of the photograph."""
        entry = file.images[image_id]
        if entry.get("height") is None or entry.get("width") is None:
            if image_id not in self._sizes:
                height, width, _ = read_image(self.path(image_id)).shape
                self._sizes[image_id] = (height, width)
            self._check_size(image_id, file, "size")
            return self._sizes[image_id]
        return entry["height"], entry["width"]

    def _check_segments(self, image_id: str, height: int, width: int) -> None:
        """Raise DatasetError if a panoptic PNG does not hold what the JSON says; each is read once in a process."""
        if image_id not in self._checked:
            file = self._annotations["panoptic"]
            labels = file.labels(image_id)
            check_segments(labels["mask"], file.path, (height, width), labels["segments"], labels["areas"])
            self._checked.add(image_id)

    def annotated(self, kind: str) -> list[str]:
        """The images that the annotation file of this kind lists, including those without an object.

        A task asks for them before anything is coded, so this is where the headers of all photographs are read, once.

        Raises:
            DatasetError: the annotations do not follow the preprocessing, a photograph or label map has another size than the file
                states, a box lies outside its photograph, or coordinates are not in pixels.
        """
        if kind not in self._files:
            return []
        self._refuse_preprocessed(kind)
        if kind not in self._fitting and self.preprocessing == "native":
            self._check_headers(kind, self._annotations[kind])
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
        return self._annotation_file(kind).things.copy()

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """Labels of images.

        Returns:
            One mapping per image, with `image_id` (COCO's number), `annotated_in`, the path of the file, and for all kinds but
            captions `height` and `width` in pixels, taken from the photograph if the file does not say. And by kind:

                instances   boxes float64 (n, 4) as x, y, width, height; classes int64 (n,) into `categories`; areas float64 (n,),
                            of the segmentation or box if the file does not say; crowd bool (n,); ids int64 (n,);
                            segmentations: n polygons or run lengths as in the file, which are not checked here
                keypoints   those of instances; keypoints float64 (n, k, 3) as x, y, visibility; labelled int64 (n,): the number
                            of labelled keypoints
                panoptic    mask: path of the PNG; segments int64 (n,): ids in the PNG; classes, crowd and areas of the
                            segments, areas NaN if the file does not say
                captions    captions: list of texts

        Raises:
            DatasetError: no file of this kind was given, it does not list an image, or a panoptic PNG is missing or holds other
                segments than the file lists.
        """
        self._refuse_preprocessed(kind)
        file = self._annotation_file(kind)
        return [self._image_labels(file, kind, image_id) for image_id in ids]

    def _image_labels(self, file: AnnotationFile, kind: str, image_id: str) -> Target:
        if image_id not in file.images:
            raise DatasetError(f"{file.path}: no {kind} for image {image_id!r}; score the images that `annotated` gives")
        facts = {"image_id": file.images[image_id]["id"], "annotated_in": file.path}
        if kind == "captions":
            return facts | file.labels(image_id)
        height, width = self._size(image_id, file)
        if kind == "panoptic":
            self._check_segments(image_id, height, width)
        return facts | {"height": height, "width": width} | file.labels(image_id)

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


def stored_size(path: Path) -> tuple[int, int]:
    """Height and width of a photograph as it is stored, before its EXIF orientation turns it."""
    with path.open("rb") as file, open_picture(file) as picture:
        return picture.size[1], picture.size[0]
