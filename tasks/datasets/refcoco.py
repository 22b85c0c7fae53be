"""RefCOCO, RefCOCO+, RefCOCOg and RefGTA: phrases that each mean one box of a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from icmbench.tasks.base import DatasetError, Image, Target
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import require_images, require_path
from icmbench.tasks.datasets.refcoco_files import ReferenceFiles
from icmbench.tasks.datasets.sizes import upright_size


class RefCoco(ImageFolder):
    """Referring expressions: RefCOCO, RefCOCO+, RefCOCOg, RefGTA, or a plain JSON of phrases and boxes.

    Args:
        images: the folder of photographs.
        refs: the refer toolbox's references, converted to JSON, together with `instances` and `split`; or a JSON list of objects
            with `file_name`, `sentence` and `bbox_xywh`, which needs neither.
        instances: the refer toolbox's instances.json, which holds the boxes.
        split: which references to take: val, testA, testB, test, ...
        preprocessing: must be `native`, because boxes do not follow other pixels.
        limit: keep only the first images, by file name; None keeps all.
        name: the dataset's name in messages and tables.

    Raises:
        DatasetError: a file is missing, malformed or a pickle, the split does not exist, or `preprocessing` is not `native`.
    """

    source: ClassVar[str] = (
        "Download the annotations of RefCOCO, RefCOCO+ or RefCOCOg from the refer toolbox and COCO's train2014.zip, or RefGTA's "
        "annotations and images from the authors' project (easy-to-understand-REG), and unpack: refcoco/instances.json, "
        "refcoco/refs(unc).p and train2014/*.jpg."
    )

    def __init__(
        self,
        images: Path,
        refs: Path,
        instances: Path | None = None,
        split: str | None = None,
        preprocessing: str = "native",
        limit: int | None = None,
        name: str = "refcoco",
    ) -> None:
        self._refs, self._instances, self._split = Path(refs), None if instances is None else Path(instances), split
        for path in (self._refs, self._instances):
            if path is not None:
                require_path(path, "annotations", self.source)
        self._fitting = False  # Whether the headers of all photographs have been compared with the annotations.
        super().__init__(images, preprocessing, limit, name)
        if self.preprocessing != "native":
            raise DatasetError(
                f"dataset {name!r}: boxes stand on the original pixels and do not follow preprocessing {self.preprocessing!r}; "
                "use native"
            )

    def _list(self) -> list[str]:
        self._references = ReferenceFiles(self._refs, self._instances, self._split)
        require_images(self.images, self._references.phrases, self._refs)
        return sorted(self._references.phrases)

    def read(self, image_id: str) -> Image:
        """Decoded, upright pixels, uint8 (height, width, 3), RGB.

        Raises:
            DatasetError: as for every dataset; or the photograph is not as large as the annotations say, or a box lies outside it.
        """
        image = super().read(image_id)
        misfit = self._references.misfit(self.path(image_id), image_id, image.shape[0], image.shape[1])
        if misfit is not None:
            raise DatasetError(misfit)
        return image

    def annotated(self, kind: str) -> list[str]:
        """For `referring`, every image.

        A task asks for them before anything is coded, so this is where the headers of all photographs are read, once.

        Raises:
            DatasetError: a photograph is not as large as the annotations say, or a box lies outside it.
        """
        if kind != "referring":
            return []
        for image_id in [] if self._fitting else self.ids:
            size = upright_size(self.path(image_id))
            if size is not None and self._references.misfit(self.path(image_id), image_id, *size) is not None:
                self.read(image_id)  # Names what is wrong, unless the header did not tell all.
        self._fitting = True
        return list(self.ids)

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """For `referring`, a list of texts `sentences` per image, and their `boxes`, float64 (n, 4) as x, y, width, height.

        Raises:
            DatasetError: another kind is asked for.
        """
        if kind != "referring":
            raise DatasetError(f"dataset {self.name!r} has no {kind!r} annotations, only `referring`; use reference: original")
        targets: list[Target] = []
        for image_id in ids:
            sentences, boxes = zip(*self._references.phrases[image_id], strict=True)
            targets.append({"sentences": list(sentences), "boxes": np.array(boxes, dtype=np.float64)})
        return targets
