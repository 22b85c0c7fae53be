"""ADE20K: SceneParse150's label maps, and the instance and panoptic sets that Mask2Former's scripts make from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from icmbench.tasks.base import DatasetError, Image, Target
from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.datasets.images import printable_name, require_path
from icmbench.tasks.datasets.lists import read_text
from icmbench.tasks.datasets.sizes import check_map_header, upright_size
from icmbench.tasks.maps import read_map

CLASSES = 150
ALIASES = {109: "pool"}  # The swimming pool's name in Mask2Former's list and in models that were trained with it.
SCRIPTS = {"instances": "prepare_ade20k_ins_seg.py", "panoptic": "prepare_ade20k_pan_seg.py"}


class Ade20k(Coco):
    """ADE20K: semantic maps of 150 classes (SceneParse150), and instance and panoptic sets once prepared.

    Args:
        root: the folder ADEChallengeData2016.
        split: which images to take.
        preprocessing: what is done to every image before coding; see `images.Preprocessing`. Annotations do not follow it, so they
            need `native`.
        limit: keep only the first images, by file name; None keeps all.
        name: the dataset's name in messages and tables.

    Raises:
        DatasetError: a file or folder of SceneParse150 is missing, or a prepared file is malformed.
    """

    source: ClassVar[str] = (
        "Download ADEChallengeData2016.zip (SceneParse150) from the MIT Scene Parsing Benchmark and unpack it: "
        "ADEChallengeData2016/images/validation/*.jpg, annotations/validation/*.png, objectInfo150.txt."
    )

    def __init__(
        self,
        root: Path,
        split: Literal["validation", "training"] = "validation",
        preprocessing: str = "native",
        limit: int | None = None,
        name: str = "ade20k",
    ) -> None:
        self.root = Path(root)
        self._maps = self.root / "annotations" / split
        short = {"validation": "val", "training": "train"}[split]
        self._prepared = {kind: self.root / f"ade20k_{kind.removesuffix('s')}_{short}.json" for kind in SCRIPTS}
        for path, content in ((self.root, "folder"), (self._maps, "annotations"), (self._classes_file, "list of classes")):
            require_path(path, content, self.source)
        self._checked_maps: set[str] = set()  # Images whose semantic map has been read.
        self._has_fitting_maps = False  # Whether the headers of all semantic maps have been compared with their photographs.
        existing = {kind: path if path.exists() else None for kind, path in self._prepared.items()}
        masks = self.root / f"ade20k_panoptic_{short}" if existing["panoptic"] else None
        super().__init__(
            self.root / "images" / split,
            instances=existing["instances"],
            panoptic=existing["panoptic"],
            panoptic_masks=masks,
            preprocessing=preprocessing,
            limit=limit,
            name=name,
        )

    @property
    def _classes_file(self) -> Path:
        return self.root / "objectInfo150.txt"

    @cached_property
    def _names(self) -> list[str]:
        """The 150 classes with their synonyms; a map's sample value is the index plus one."""
        rows = [line.split("\t") for line in read_text(self._classes_file).splitlines()[1:] if line.strip()]
        if [row[0].strip() for row in rows] != [str(number) for number in range(1, CLASSES + 1)]:
            raise DatasetError(f"{self._classes_file}: not the table of classes 1 to {CLASSES}; give the one of SceneParse150")
        names = [row[-1].strip() for row in rows]
        # In a row without its last field, the name would be a number.
        stray = next((k for k, name in enumerate(names) if not re.search(r"[^\W\d]", name) or names.index(name) != k), None)
        if stray is not None:
            raise DatasetError(
                f"{self._classes_file}: class {stray + 1} has {printable_name(names[stray])!r} as its name, which is none or that "
                "of another class; give the table of SceneParse150"
            )
        return [f"{name}, {ALIASES[index]}" if index in ALIASES else name for index, name in enumerate(names)]

    def annotated(self, kind: str) -> list[str]:
        """For `semantic`, every image; for `instances` and `panoptic`, the images that their files list.

        Raises:
            DatasetError: the instances or panoptic segments have not been prepared, or do not follow the preprocessing; or a label
                map is missing or has another size than its photograph.
        """
        if kind == "semantic":
            self._refuse_preprocessed(kind)
            if not self._has_fitting_maps and self.preprocessing == "native":
                for image_id in self.ids:
                    check_map_header(self._map(image_id), self.path(image_id), upright_size(self.path(image_id)))
                self._has_fitting_maps = True
            return list(self.ids)
        if kind in SCRIPTS and kind not in self._files.kinds:
            raise DatasetError(
                f"{self._prepared[kind]}: no such annotations; make them with Mask2Former's datasets/{SCRIPTS[kind]}, after "
                "unpacking annotations_instance.tar of the MIT Scene Parsing Benchmark (instance segmentation) into the same folder"
            )
        return super().annotated(kind)

    def categories(self, kind: str) -> list[str]:
        """Category names; for `semantic` the 150 classes, each with its synonyms between commas."""
        return list(self._names) if kind == "semantic" else super().categories(kind)

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """Labels of images.

        Returns:
            For `semantic`, per image `mask`, the path of the PNG, and `classes`, int64 (151,), the class of each sample value, with
            sample 0 ignored (-1). For `instances` and `panoptic`, see `Coco.targets`.

        Raises:
            DatasetError: the annotations do not follow the preprocessing, or as in `Coco.targets`.
        """
        if kind != "semantic":
            return super().targets(kind, ids)
        self._refuse_preprocessed(kind)
        classes = np.arange(CLASSES + 1) - 1
        return [{"mask": self._map(image_id), "classes": classes} for image_id in ids]

    def read(self, image_id: str) -> Image:
        """Decoded, upright, preprocessed pixels, uint8 (height, width, 3), RGB.

        Raises:
            DatasetError: as in `Coco.read`, or the semantic map has another size or a sample that stands for no class.
        """
        image = super().read(image_id)
        # A map that is missing is named as soon as a task asks for the annotated images.
        if self.preprocessing == "native" and image_id not in self._checked_maps and self._map(image_id).is_file():
            samples = read_map(self._map(image_id))
            check_map_header(self._map(image_id), self.path(image_id), (image.shape[0], image.shape[1]))
            if samples.max(initial=0) > CLASSES:
                raise DatasetError(
                    f"{self._map(image_id)}: holds the sample {samples.max()}, but classes have 1 to {CLASSES} and 0 is ignored; "
                    "give the maps of SceneParse150"
                )
            self._checked_maps.add(image_id)
        return image

    def _map(self, image_id: str) -> Path:
        """The semantic map of an image."""
        return (self._maps / image_id).with_suffix(".png")

    def _refuse_preprocessed(self, kind: str) -> None:
        # Semantic maps are refused in the words for panoptic ones.
        super()._refuse_preprocessed("panoptic" if kind == "semantic" else kind)
