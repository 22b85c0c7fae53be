"""The annotation files that a user gives for one folder of photographs, one of each kind, each read when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco_annotations import AnnotationFile
from icmbench.tasks.datasets.images import require_images, require_path


class AnnotationFiles:
    """Annotation files by kind.

    Args:
        dataset: the dataset's name, for messages.
        paths: the file of each kind, or None where there is none.
        masks: the folder of PNG files that the panoptic file names, or None.
        source: a sentence on what to download, for messages.

    Attributes:
        kinds: the kinds that have a file.

    Raises:
        DatasetError: a file is missing, or only one of the panoptic file and its folder of PNG is given.
    """

    def __init__(self, dataset: str, paths: Mapping[str, Path | None], masks: Path | None, source: str) -> None:
        self._dataset = dataset
        self._paths = {kind: Path(path) for kind, path in paths.items() if path is not None}
        self._masks = None if masks is None else Path(masks)
        self.kinds = frozenset(self._paths)
        for path in [*self._paths.values(), *([self._masks] if self._masks else [])]:
            require_path(path, "annotations", source)
        if (self._masks is None) != ("panoptic" not in self.kinds):
            raise DatasetError(
                f"dataset {dataset!r}: `panoptic` (a JSON file) and `panoptic_masks` (its folder of PNG) come together"
            )

    @cached_property
    def by_kind(self) -> dict[str, AnnotationFile]:
        """The files, read and checked. Raises DatasetError if one is malformed."""
        return {kind: AnnotationFile(path, kind, self._masks) for kind, path in self._paths.items()}

    def __getitem__(self, kind: str) -> AnnotationFile:
        """The file of a kind. Raises DatasetError if none was given."""
        if kind not in self.kinds:
            raise DatasetError(f"dataset {self._dataset!r} was given no {kind!r} annotations; add the key {kind!r} and their file")
        return self.by_kind[kind]

    def listed_in(self, folder: Path) -> list[str]:
        """The images that any of the files lists, sorted. Raises DatasetError if the folder lacks one."""
        for file in self.by_kind.values():
            require_images(folder, file.images, file.path)
        return sorted(set().union(*(file.images for file in self.by_kind.values())))
