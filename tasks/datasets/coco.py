"""COCO 2017 and every dataset in its JSON format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from icmbench.tasks.base import DatasetError, Image, Target
from icmbench.tasks.datasets.coco_annotations import AnnotationFile
from icmbench.tasks.datasets.coco_files import AnnotationFiles
from icmbench.tasks.datasets.coco_pictures import PictureChecks
from icmbench.tasks.datasets.folder import ImageFolder

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
        given = {"instances": instances, "keypoints": keypoints, "panoptic": panoptic, "captions": captions}
        self._files = AnnotationFiles(name, given, panoptic_masks, self.source)
        self._checks = PictureChecks(self.path, self.read)
        super().__init__(images, preprocessing, limit, name)

    def _list(self) -> list[str]:
        return self._files.listed_in(self.images) if self._files.kinds else super()._list()

    def read(self, image_id: str) -> Image:
        """Decoded, upright, preprocessed pixels.

        Returns:
            uint8 (height, width, 3), RGB.

        Raises:
            DatasetError: the file cannot be read, or its size is not the one that an annotation file states.
        """
        image = super().read(image_id)
        if self.preprocessing == "native":
            self._checks.compare(image_id, (image.shape[0], image.shape[1]), self._files.by_kind)
        return image

    def annotated(self, kind: str) -> list[str]:
        """The images that the annotation file of this kind lists, including those without an object.

        A task asks for them before anything is coded, so this is where the headers of all photographs are read, once.

        Raises:
            DatasetError: the annotations do not follow the preprocessing, a photograph or label map has another size than the file
                states, a box lies outside its photograph, or coordinates are not in pixels.
        """
        if kind not in self._files.kinds:
            return []
        self._refuse_preprocessed(kind)
        if self.preprocessing == "native":
            self._checks.compare_headers(kind, self._files[kind], self.ids)
        return [image_id for image_id in self.ids if image_id in self._files[kind].images]

    def categories(self, kind: str) -> list[str]:
        """Category names in order of their ids; the `classes` of a target index them.

        Raises:
            DatasetError: no file of this kind was given.
        """
        return [category["name"] for category in self._files[kind].categories]

    def things(self, kind: str = "panoptic") -> np.ndarray:
        """Which categories are countable things (True) and which are stuff, bool (categories,).

        Raises:
            DatasetError: no file of this kind was given.
        """
        return self._files[kind].things.copy()

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
        file = self._files[kind]
        return [self._image_labels(file, kind, image_id) for image_id in ids]

    def _image_labels(self, file: AnnotationFile, kind: str, image_id: str) -> Target:
        if image_id not in file.images:
            raise DatasetError(f"{file.path}: no {kind} for image {image_id!r}; score the images that `annotated` gives")
        facts = {"image_id": file.images[image_id]["id"], "annotated_in": file.path}
        if kind == "captions":
            return facts | file.labels(image_id)
        height, width = self._checks.size(image_id, file)
        if kind == "panoptic":
            self._checks.compare_segments(image_id, file, (height, width))
        return facts | {"height": height, "width": width} | file.labels(image_id)

    def _refuse_preprocessed(self, kind: str) -> None:
        """Raise DatasetError if annotations of this kind do not fit the preprocessed pixels."""
        if kind in GEOMETRIC and self.preprocessing != "native":
            raise DatasetError(
                f"dataset {self.name!r}: {kind} annotations stand on the original pixels and do not follow preprocessing "
                f"{self.preprocessing!r}; use native, or reference: original"
            )
