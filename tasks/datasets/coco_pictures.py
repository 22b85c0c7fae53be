"""Photographs and panoptic label maps compared with the annotation files that state their sizes and segments.

    headers of all photographs, before anything is coded -> pixels of each photograph, where it is read

The pixels have the last word, because a header does not tell everything: a PNG may hold its EXIF tags behind the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco_annotations import AnnotationFile
from icmbench.tasks.datasets.decoding import open_picture
from icmbench.tasks.datasets.images import read_image
from icmbench.tasks.datasets.segment_maps import check_segments
from icmbench.tasks.datasets.sizes import check_map_header, upright_size

Size = tuple[int, int]  # Height and width in pixels.


class PictureChecks:
    """Compares the photographs of one dataset, without preprocessing, with its annotation files; remembers what it has read.

    Args:
        path: gives the file of an image.
        read: reads the pixels of an image and calls `compare`. It is asked only where a header does not settle the size.
    """

    def __init__(self, path: Callable[[str], Path], read: Callable[[str], Any]) -> None:
        self._path, self._read = path, read
        self._sizes: dict[str, Size] = {}  # Of the photographs that have been read.
        self._fitting: set[str] = set()  # Kinds of annotations that have been compared with the headers of all photographs.
        self._checked_maps: set[str] = set()  # Images whose panoptic PNG has been compared with the JSON.

    def compare_headers(self, kind: str, file: AnnotationFile, ids: Iterable[str]) -> None:
        """Compare the headers of all photographs and label maps with an annotation file, once for each kind.

        Args:
            kind: the kind of the annotations.
            file: the annotation file.
            ids: the images of the dataset.

        Raises:
            DatasetError: a photograph or label map has another size than the file states, a box lies outside its photograph, or
                coordinates are not in pixels.
        """
        if kind in self._fitting:
            return
        sizes = {}
        for image_id in filter(file.images.__contains__, ids):
            size = upright_size(self._path(image_id))
            if size is not None and stated_size(file.images[image_id], size) != size:
                self._read(image_id)  # Names what is wrong, unless the header did not tell all.
                size = self._sizes[image_id]
            if size is not None:
                sizes[image_id] = size
            if kind == "panoptic":
                check_map_header(file.labels(image_id)["mask"], self._path(image_id), size)
        if kind in ("instances", "keypoints"):
            file.check_coordinates(sizes)
        self._fitting.add(kind)

    def compare(self, image_id: str, size: Size, files: Mapping[str, AnnotationFile]) -> None:
        """Compare a photograph that has been read with all annotation files that list it.

        Args:
            image_id: the image.
            size: of its upright pixels.
            files: the annotation files by kind.

        Raises:
            DatasetError: a file states another size, or its panoptic PNG does not hold what the JSON says.
        """
        self._sizes[image_id] = size
        for kind, file in files.items():
            if image_id in file.images:
                self._refuse_other_size(image_id, file)
                if kind == "panoptic":
                    self.compare_segments(image_id, file, size)

    def size(self, image_id: str, file: AnnotationFile) -> Size:
        """Height and width of an image: as its file states them, else those of the photograph, which is read once for it.

        Raises:
            DatasetError: the file states one side, and it is another one than the photograph's.
        """
        entry = file.images[image_id]
        if entry.get("height") is None or entry.get("width") is None:
            if image_id not in self._sizes:
                height, width, _ = read_image(self._path(image_id)).shape
                self._sizes[image_id] = (height, width)
            self._refuse_other_size(image_id, file)
            return self._sizes[image_id]
        return entry["height"], entry["width"]

    def compare_segments(self, image_id: str, file: AnnotationFile, size: Size) -> None:
        """Compare a panoptic PNG of this size with the JSON that lists its segments; each is read once in a process.

        Raises:
            DatasetError: it holds other segments, or has another size.
        """
        if image_id not in self._checked_maps:
            labels = file.labels(image_id)
            check_segments(labels["mask"], file.path, size, labels["segments"], labels["areas"])
            self._checked_maps.add(image_id)

    def _refuse_other_size(self, image_id: str, file: AnnotationFile) -> None:
        """Raise DatasetError if a photograph that has been read has another size than its annotations."""
        height, width = self._sizes[image_id]
        stated = stated_size(file.images[image_id], (height, width))
        if stated != (height, width):
            turned = stated == _stored_size(self._path(image_id))
            reason = (
                "its EXIF orientation turns it and the annotations state the stored size; turn the annotations, or remove the tag"
                if turned
                else "give the photographs that were annotated"
            )
            raise DatasetError(
                f"{self._path(image_id)}: {width}x{height} pixels, but {file.path} states {stated[1]}x{stated[0]}; {reason}"
            )


def stated_size(entry: Mapping[str, Any], size: Size) -> Size:
    """The size that the entry of an image states; a side that it leaves out is that of the photograph, of which `size` is given."""
    return entry.get("height") or size[0], entry.get("width") or size[1]


def _stored_size(path: Path) -> Size:
    """The size of a photograph as it is stored, before its EXIF orientation turns it."""
    with path.open("rb") as file, open_picture(file) as picture:
        return picture.size[1], picture.size[0]
