"""Predicted maps: a class or a segment for every pixel, as PNG files named as the pictures that they belong to.

    labels/000000000139.png                         the number of a category for every pixel, greyscale or palette
    panoptic.json and panoptic/000000000139.png     COCO's panoptic result: segments, and their numbers as R + 256 G + 65536 B

A map that is missing, of another size, or with a number that means nothing is refused, never scored as an empty one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.json_entries import Entries
from icmbench.tasks.datasets.json_identity import positions_of, refuse_repeated, unique_ids
from icmbench.tasks.fingerprints import file_sha256
from icmbench.tasks.maps import LabelMap, read_map, relabel
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.predictions_manifest import ExportedImage, read_json_of_predictions
from icmbench.tasks.models.predictions_names import Categories, image_keys

REMEDY = "write the predictions again"


class LabelMapPredictions:
    """The label maps of one folder, each named as the picture that it belongs to.

    Args:
        folder: the folder of the maps.
        images: the images of the manifest.
        categories: what the samples of a map mean.

    Attributes:
        digests: what decides the prediction of each image that has a map, by id: SHA-256 of the file.
    """

    def __init__(self, folder: Path, images: Sequence[ExportedImage], categories: Categories) -> None:
        self._folder, self._categories = folder, categories
        self.digests = {image.id: file_sha256(path) for image in images if (path := folder / image.file).is_file()}

    def output(self, image: ExportedImage) -> npt.NDArray[np.int64]:
        """The index of the category of every pixel, int64 (height, width).

        Raises:
            ModelError: the map is missing or damaged, a picture of colours, of another size, or has a sample of no category.
        """
        path = self._folder / image.file
        if not path.is_file():
            raise ModelError(f"{path}: no such label map, so that {image.id!r} has no prediction; {REMEDY}")
        samples = _read_map(path, image, numbers_in_colours=False)
        ids = np.array(self._categories.ids, np.int64)
        labels = relabel(samples, ids, np.arange(len(ids)), -1)
        if (labels < 0).any():
            strange = int(samples[labels < 0][0])
            raise ModelError(f"{path}: has a pixel of {strange}, which is no category of {self._categories.source}; {REMEDY}")
        return labels


class PanopticPredictions:
    """Segments in COCO's panoptic result format.

    Args:
        path: the JSON; the folder of its PNG files has the same name without the suffix.
        images: the images of the manifest.
        names: file names by number, of the annotations; empty without.
        categories: what a category id means.

    Attributes:
        digests: what decides the prediction of each image that the file lists, by id.

    Raises:
        ModelError: the JSON cannot be read, or is malformed.
    """

    def __init__(self, path: Path, images: Sequence[ExportedImage], names: Mapping[Any, str], categories: Categories) -> None:
        self._path, self._folder = path, path.with_suffix("")
        self._segments: dict[str, tuple[Path, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
        document = read_json_of_predictions(path)
        if type(document) is not dict:
            raise ModelError(f"{path}: is no object with `annotations`, as COCO's panoptic results are; {REMEDY}")
        try:
            annotations = Entries(path, "annotations", document.get("annotations"), "image_id")
            positions = {image.id: position for position, image in enumerate(images)}
            keys = {name: positions[image_id] for name, image_id in image_keys(images, names).items()}
            image_of = positions_of(annotations, "image_id", keys, "images` of the manifest beside it or `images")
            refuse_repeated(annotations, "image_id", image_of.tolist())
            for item, position in zip(annotations.items, image_of.tolist(), strict=True):
                self._segments[images[position].id] = self._read(item, images[position], categories)
        except DatasetError as error:
            raise ModelError(str(error)) from None
        self.digests = {image_id: self._digest(image_id) for image_id in self._segments}

    def output(self, image: ExportedImage) -> dict[str, npt.NDArray[np.int64]]:
        """`segments` int64 (height, width), `segment_ids` and `classes` of an image.

        Raises:
            ModelError: the image is not listed, or its PNG is missing, damaged, of another size, or holds a segment that is not.
        """
        if image.id not in self._segments:
            raise ModelError(f"{self._path}: does not list the image {image.id!r}; {REMEDY}")
        path, ids, classes = self._segments[image.id]
        segments = _read_map(path, image, numbers_in_colours=True)
        unlisted = np.setdiff1d(segments, np.append(ids, 0))
        if unlisted.size:
            raise ModelError(f"{path}: holds segment {unlisted[0]}, which {self._path} does not list for {image.id!r}; {REMEDY}")
        return {"segments": segments, "segment_ids": ids, "classes": classes}

    def _read(self, item: Mapping[str, Any], image: ExportedImage, categories: Categories) -> Any:
        """The PNG, segment ids and classes of one image."""
        segments = Entries(self._path, "segments_info", item.get("segments_info"), "id", lambda _: image.id)
        ids = np.array(segments.whole_numbers("id", 1, 2**24 - 1))
        unique_ids(segments)
        classes = positions_of(segments, "category_id", categories.positions, f"categories` of {categories.source} or `categories")
        name = item.get("file_name", image.file)
        if type(name) is not str or not name or name.startswith("/") or ".." in name.split("/"):
            raise ModelError(f"{self._path}: the `file_name` of image {image.id!r} is no file of {self._folder}; {REMEDY}")
        return self._folder / name, ids, classes

    def _digest(self, image_id: str) -> str:
        path, ids, classes = self._segments[image_id]
        content = file_sha256(path) if path.is_file() else None
        return json.dumps([content, ids.tolist(), classes.tolist()])


def _read_map(path: Path, image: ExportedImage, numbers_in_colours: bool) -> LabelMap:
    """The map in a PNG, int64 (height, width), compared with the size of its picture."""
    try:
        labels = read_map(path)
        with Pillow.open(path, formats=["PNG"]) as picture:
            is_coloured = picture.mode in ("RGB", "RGBA")
    except (DatasetError, OSError) as error:
        raise ModelError(f"{str(error).rpartition(';')[0] or error}; {REMEDY}") from None
    if is_coloured and not numbers_in_colours:
        raise ModelError(f"{path}: is a picture in colours, not a map of category numbers; write it as greyscale")
    if labels.shape != (image.height, image.width):
        size = f"{labels.shape[1]}x{labels.shape[0]}"
        raise ModelError(f"{path}: is {size}, but the picture of {image.id!r} is {image.width}x{image.height}; {REMEDY}")
    return labels
