"""What an annotation file in COCO's format lists for its annotations to point to: images and categories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.json_entries import Entries
from icmbench.tasks.datasets.json_files import json_excerpt
from icmbench.tasks.datasets.json_identity import refuse_repeated, unique_ids


@dataclass(frozen=True)
class ListedImages:
    """The images of an annotation file.

    Attributes:
        path: the file.
        entries: the entries under `images`, by file name.
        positions: where an image stands among them, by its id.
    """

    path: Path
    entries: dict[str, dict[str, Any]]
    positions: dict[Any, int]

    @classmethod
    def read(cls, path: Path, items: Any) -> ListedImages:
        """Check the list under `images`; an image that is listed twice in the same words counts once.

        Raises:
            DatasetError: an entry lacks a file name or an id of its own, or states a side that is no whole number of pixels.
        """
        images = Entries(path, "images", items, "file_name")
        names = images.column("file_name")
        if set(map(type, names)) <= {str} and len(set(names)) != len(names):
            first: dict[str, dict[str, Any]] = {}
            unlike = [image for image in images.items if first.setdefault(image["file_name"], image) != image]
            if not unlike:
                images = Entries(path, "images", list(first.values()), "file_name")
        names = images.texts("file_name")
        refuse_repeated(images, "file_name", names)
        positions = {number: position for position, number in enumerate(unique_ids(images))}
        for side in ("height", "width"):
            images.optional_whole_numbers(side, 1)
        return cls(path, dict(zip(names, images.items, strict=True)), positions)

    def require_each(self, image_of: npt.NDArray[np.int64], what: str) -> None:
        """Check that every image has an annotation.

        Args:
            image_of: int64 (annotations,), the position of each annotation's image.
            what: what an image must have, for the message.

        Raises:
            DatasetError: an image has none.
        """
        bare = np.flatnonzero(np.bincount(image_of, minlength=len(self.entries)) == 0)
        if bare.size:
            name = list(self.entries)[int(bare[0])]
            raise DatasetError(
                f"{self.path}: {bare.size} of the {len(self.entries)} images have no {what}, the first is {json_excerpt(name)}; "
                f"complete the file, or remove them from `images`"
            )


@dataclass(frozen=True)
class ListedCategories:
    """The categories of an annotation file, in order of their ids.

    Attributes:
        entries: the entries under `categories`.
        things: bool (categories,), which of them are countable things; without a word on it, all are.
        positions: where a category stands among them, by its id.
    """

    entries: list[dict[str, Any]]
    things: npt.NDArray[np.bool_]
    positions: dict[Any, int]

    @classmethod
    def read(cls, path: Path, items: Any, panoptic: bool) -> ListedCategories:
        """Check the list under `categories`.

        Args:
            path: the file, for messages.
            items: the list.
            panoptic: whether each category must say if it is a thing.

        Raises:
            DatasetError: an entry lacks an id or name of its own, or `isthing` is neither 0 nor 1.
        """
        categories = Entries(path, "categories", items, "name")
        unique_ids(categories)
        names = categories.texts("name")
        # Names are matched with a model's in any case and with underscores as spaces, so that is how they must differ.
        refuse_repeated(categories, "name", [" ".join(name.casefold().replace("_", " ").split()) for name in names])
        things = categories.flags("isthing", optional=not panoptic)
        things |= np.array([value is None for value in categories.column("isthing")], dtype=np.bool_)
        order = sorted(range(len(categories)), key=lambda k: categories.items[k]["id"])
        entries = [categories.items[k] for k in order]
        return cls(entries, things[order], {category["id"]: index for index, category in enumerate(entries)})
