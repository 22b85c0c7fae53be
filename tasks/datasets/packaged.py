"""Photographs that ship inside Python packages, for a first look without any download."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from icmbench.tasks.base import DatasetError, Image, Target
from icmbench.tasks.datasets.images import Preprocessing, read_image

# Colour photographs, by package; those of foolbox carry their ImageNet class index at the end of their names.
PHOTOGRAPHS = {
    "foolbox": ("data", "imagenet_*.jpg"),
    "skimage": ("data", "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"),
    "sklearn": ("datasets/images", "china.jpg", "flower.jpg"),
}


class PackagedPhotos:
    """27 photographs out of foolbox, scikit-image and scikit-learn, 20 of them with ImageNet labels.

    preprocessing: `native`, `resize:512x512`, `short:768,crop:768x768`. limit: only the first images.
    """

    extra: ClassVar[str] = "photos"

    def __init__(self, preprocessing: str = "native", limit: int | None = None, name: str = "photos") -> None:
        self.name = name
        self.limit = limit
        self._preprocess = Preprocessing.parse(preprocessing)
        self.preprocessing = self._preprocess.text
        self._paths: dict[str, Path] = {}
        for package, (folder, *patterns) in PHOTOGRAPHS.items():
            found = find_spec(package)  # nothing is imported: foolbox would want its frameworks
            if found is None or not found.submodule_search_locations:
                raise ModuleNotFoundError(f"no package {package}", name=package)
            place = Path(found.submodule_search_locations[0], folder)
            files = [file for pattern in patterns for file in sorted(place.glob(pattern))]
            if len(files) < len(patterns):
                raise DatasetError(f"{place}: some of {', '.join(patterns)} are missing; reinstall {package}")
            self._paths.update({f"{package}/{file.name}": file for file in files})
        self.ids: list[str] = sorted(self._paths)[:limit]

    def path(self, image_id: str) -> Path:
        return self._paths[image_id]

    def read(self, image_id: str) -> Image:
        """uint8 (height, width, 3). Raises DatasetError."""
        return read_image(self.path(image_id), self._preprocess)

    def annotated(self, kind: str) -> list[str]:
        """Foolbox's photographs have a `class`."""
        return [image_id for image_id in self.ids if image_id.startswith("foolbox/")] if kind == "class" else []

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """Kind `class`: `class_index`, an int in 0..999, an image."""
        if kind != "class" or set(ids) - set(self.annotated(kind)):
            raise DatasetError(f"dataset {self.name!r} has no {kind!r} annotations of all these images; use reference: original")
        return [{"class_index": int(Path(image_id).stem.rsplit("_", 1)[1])} for image_id in ids]
