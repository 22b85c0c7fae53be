"""What the numbers in files of predictions stand for: categories, classes and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco_lists import ListedCategories, ListedImages
from icmbench.tasks.models.coco_names import COCO
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.predictions_manifest import ExportedImage, read_json_of_predictions


@dataclass(frozen=True)
class Categories:
    """The categories of a model whose predictions are read.

    Attributes:
        source: what lists them, for messages.
        ids: the number of each category in files of predictions.
        names: their names, aligned.
        things: bool (categories,), which of them are countable things; None if that is not said.
    """

    source: str
    ids: tuple[int, ...]
    names: tuple[str, ...]
    things: npt.NDArray[np.bool_] | None = None

    @property
    def positions(self) -> dict[int, int]:
        """The position of each category among all by its number."""
        return {number: position for position, number in enumerate(self.ids)}

    def facts(self) -> dict[str, Any]:
        """Entries for a fingerprint."""
        return {"ids": self.ids, "names": self.names, "things": None if self.things is None else self.things.tolist()}


COCO_CATEGORIES = Categories("COCO's 80 categories", tuple(COCO), tuple(COCO.values()))


@dataclass(frozen=True)
class Annotations:
    """What a JSON in COCO's format says of the numbers in predictions.

    Attributes:
        categories: its `categories`; None if it has none.
        names: file names by the ids of its `images`; empty if it has none.
    """

    categories: Categories | None
    names: Mapping[Any, str]


def read_annotations(path: Path) -> Annotations:
    """Read categories and images of a JSON in COCO's format.

    Raises:
        ModelError: the file cannot be read, or has neither or one that is malformed.
    """
    document = read_json_of_predictions(path, "give a JSON in COCO's format")
    if type(document) is not dict or not {"categories", "images"} & set(document):
        raise ModelError(f"{path}: has neither `categories` nor `images`; give a JSON in COCO's format")
    try:
        categories, names = None, {}
        if "categories" in document:
            said = any(type(item) is dict and "isthing" in item for item in document["categories"] or ())
            listed = ListedCategories.read(path, document["categories"], panoptic=said)
            numbers = tuple(entry["id"] for entry in listed.entries)
            categories = Categories(str(path), numbers, tuple(e["name"] for e in listed.entries), listed.things if said else None)
        if "images" in document:
            listed_images = ListedImages.read(path, document["images"])
            files = list(listed_images.entries)
            names = {number: files[position] for number, position in listed_images.positions.items()}
    except DatasetError as error:
        raise ModelError(str(error)) from None
    return Annotations(categories, names)


def read_names(path: Path, first: int) -> Categories:
    """The categories that a text file names, one a line.

    Args:
        path: the file, in UTF-8.
        first: the number of the first one.

    Raises:
        ModelError: the file cannot be read, names nothing, or has an empty line or a name twice.
    """
    try:
        names = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); give a text file with one name a line") from None
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            raise ModelError(f"{path}: line {number} is {'empty' if not name else f'{name!r} again'}; write one name a line")
    if not names:
        raise ModelError(f"{path}: names nothing; write one name a line")
    return Categories(str(path), tuple(range(first, first + len(names))), tuple(names))


def image_keys(images: Sequence[ExportedImage], names: Mapping[Any, str]) -> dict[Any, str]:
    """What files of predictions may call the images of a manifest.

    An image goes by its id, by the file of its picture, by both without their suffix, and by its number: the one that the
    annotations give it, or without annotations the digits of its name, as in COCO (139 for 000000000139.jpg). What could mean two
    images means none, unless it is the id or the file of one.

    Args:
        images: the images of the manifest.
        names: file names by number, of the annotations; empty without.

    Returns:
        Image ids by what they are called.
    """
    sure: dict[Any, str] = {image.file: image.id for image in images}
    sure |= {image.id: image.id for image in images}
    if names:
        ids = {image.id for image in images}
        sure |= {number: name for number, name in names.items() if name in ids}
    loose: dict[Any, set[str]] = {}
    for image in images:
        for name in (image.id, image.file):
            stem = name.rpartition(".")[0] or name
            loose.setdefault(stem, set()).add(image.id)
            digits = stem.rpartition("/")[2]
            if not names and digits.isascii() and digits.isdecimal():
                loose.setdefault(int(digits), set()).add(image.id)
    return {name: ids.copy().pop() for name, ids in loose.items() if len(ids) == 1} | sure
