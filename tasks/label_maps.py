"""Label maps of a dataset, compared with their images and with the classes of the labels before anything is coded.

    headers of all maps -> a PNG with one label per pixel, of its image's size
    pixels of a few     -> samples that stand for a class
    pixels of all       -> the same, when they are scored

A header takes 0.15 ms together with its photograph's, and the pixels of a map 1 ms (5 ms if it is RGB), so that all pixels of
20,000 maps would take up to 100 seconds in each process. Mistakes that concern a whole folder, such as RGB colours where class
indices should be, are found by MAPS_READ maps of each kind of PNG (bits and colour type), spread evenly over the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, DatasetError, Target
from icmbench.tasks.datasets.sizes import MapHeader, read_map_header, refuse_map_size, upright_size
from icmbench.tasks.labels import label_classes
from icmbench.tasks.maps import LabelMap, read_map

MAPS_READ = 8
IMAGES_AT_ONCE = 256  # Images whose targets are asked for together; they may hold the bytes of their maps.


class LabelMaps:
    """The label maps of one kind of annotations.

    Args:
        dataset: the dataset.
        kind: the kind of annotations, whose targets have `mask`, a PNG or its bytes, and `classes`.
        ids: the images with annotations of this kind.
    """

    def __init__(self, dataset: Dataset, kind: str, ids: Sequence[str]) -> None:
        self._dataset, self._kind, self._ids = dataset, kind, ids
        # Other packages may cut images out of their files, and their preprocessing may move labels as well.
        self._headers_tell_sizes = dataset.preprocessing == "native" and hasattr(dataset, "path")

    def check(self, classes: int) -> None:
        """Check the headers of all maps and the pixels of a few.

        Args:
            classes: how many classes the labels have.

        Raises:
            DatasetError: a map is missing or no PNG with one label per pixel, has another size than its image, or holds a sample
                that stands for no class.
        """
        kinds: dict[tuple[int, int], list[str]] = {}
        for start in range(0, len(self._ids), IMAGES_AT_ONCE):
            ids = self._ids[start : start + IMAGES_AT_ONCE]
            for image_id, target in zip(ids, self._dataset.targets(self._kind, ids), strict=True):
                if not isinstance(target.get("mask"), Path | bytes):
                    raise DatasetError(
                        f"{self._name(image_id, target)}: `mask` is neither the path of a PNG nor its bytes; mend it"
                    )
                header = read_map_header(target["mask"], self._name(image_id, target))
                self._check_size(image_id, target, header)
                kinds.setdefault((header.depth, header.colour), []).append(image_id)
        for ids in kinds.values():
            spread = np.unique(np.linspace(0, len(ids) - 1, MAPS_READ).round().astype(int))
            for image_id in (ids[position] for position in spread.tolist()):
                (target,) = self._dataset.targets(self._kind, [image_id])
                label_classes(self._dataset, image_id, target, "classes")
                classes_of_pixels(read_map(target["mask"]), target, classes, self._name(image_id, target))

    def _check_size(self, image_id: str, target: Target, header: MapHeader) -> None:
        if not self._headers_tell_sizes:
            return
        photograph = self._dataset.path(image_id)
        size = upright_size(photograph)
        if size is None or size == header.size:
            return
        height, width = self._dataset.read(image_id).shape[:2]  # The pixels have the last word.
        if header.size != (height, width):
            raise refuse_map_size(self._name(image_id, target), header.size, str(photograph), (height, width))
        self._headers_tell_sizes = False

    def _name(self, image_id: str, target: Target) -> str:
        mask = target.get("mask")
        return str(mask) if isinstance(mask, Path) else f"dataset {self._dataset.name!r}: the label map of image {image_id!r}"


def classes_of_pixels(samples: LabelMap, target: Target, classes: int, named: str) -> npt.NDArray[Any]:
    """The class of every pixel, -1 where it is ignored.

    Args:
        samples: int64 (height, width), the samples of a label map.
        target: its target, with `classes`, the class of each sample value. This table may list more classes than there are, as long
            as no pixel has them.
        classes: how many classes the labels have.
        named: what names the map in messages.

    Raises:
        DatasetError: a sample stands for no class, or for one that the dataset does not have.
    """
    if samples.size and samples.max() >= len(target["classes"]):
        raise DatasetError(
            f"{named}: a label map holds {samples.max()}, which stands for no class; give maps of these categories, as greyscale "
            "or palette PNG (of RGB, R + 256 G + 65536 B is the sample)"
        )
    labels = target["classes"][samples]
    if labels.size and labels.max() >= classes:
        raise DatasetError(
            f"{named}: a label map holds class {labels.max()}, but the categories are 0 to {classes - 1}; number classes from 0 in "
            "the order of the dataset's categories, and ignored samples -1"
        )
    return labels
