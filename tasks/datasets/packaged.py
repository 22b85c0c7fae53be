"""Photographs that ship inside Python packages, for a first try without any download."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from icmbench.tasks.base import DatasetError, Image, Target
from icmbench.tasks.datasets.images import Preprocessing, read_image

# Folder and files of the colour photographs, by package. The names of foolbox's files end in their ImageNet class index.
PHOTOGRAPHS = {
    "foolbox": ("data", "imagenet_*.jpg"),
    "skimage": ("data", "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"),
    "sklearn": ("datasets/images", "china.jpg", "flower.jpg"),
}


class PackagedPhotos:
    """27 photographs out of foolbox, scikit-image and scikit-learn, 20 of them with ImageNet labels.

    Args:
        preprocessing: what is done to every image before coding: `native` (nothing), or steps such as `resize:512x512` or
            `short:768,crop:768x768`; see `images.Preprocessing`.
        limit: keep only the first images, by name; None keeps all.
        name: the dataset's name in messages and tables.

    Raises:
        ModuleNotFoundError: a package is not installed.
        DatasetError: a package lacks some of its photographs, or `preprocessing` is invalid.
    """

    extra: ClassVar[str] = "photos"

    def __init__(self, preprocessing: str = "native", limit: int | None = None, name: str = "photos") -> None:
        self.name = name
        self.limit = limit
        self._preprocess = Preprocessing.parse(preprocessing)
        self.preprocessing = self._preprocess.text
        self._paths: dict[str, Path] = {}
        for package, (folder, *patterns) in PHOTOGRAPHS.items():
            spec = find_spec(package)  # The package is not imported: foolbox would import its deep learning frameworks.
            if spec is None or not spec.submodule_search_locations:
                raise ModuleNotFoundError(f"no package {package}", name=package)
            directory = Path(spec.submodule_search_locations[0], folder)
            files = [file for pattern in patterns for file in sorted(directory.glob(pattern))]
            if len(files) < len(patterns):
                raise DatasetError(f"{directory}: some of {', '.join(patterns)} are missing; reinstall {package}")
            self._paths.update({f"{package}/{file.name}": file for file in files})
        self.ids: list[str] = sorted(self._paths)[:limit]

    def path(self, image_id: str) -> Path:
        """The file behind an image."""
        return self._paths[image_id]

    def read(self, image_id: str) -> Image:
        """Decoded, upright, preprocessed pixels, uint8 (height, width, 3), RGB."""
        return read_image(self.path(image_id), self._preprocess)

    def annotated(self, kind: str) -> list[str]:
        """For `class`, the photographs of foolbox."""
        return [image_id for image_id in self.ids if image_id.startswith("foolbox/")] if kind == "class" else []

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """For `class`, one `class_index` in 0..999 per image.

        Raises:
            DatasetError: an image has no annotations of this kind.
        """
        if kind != "class" or set(ids) - set(self.annotated(kind)):
            raise DatasetError(f"dataset {self.name!r} has no {kind!r} annotations of all these images; use reference: original")
        return [{"class_index": int(Path(image_id).stem.rsplit("_", 1)[1])} for image_id in ids]
