"""The tables of Open Images: which images, which boxes, and which classes were looked for in each image.

    id list -> ImageIDs -> boxes and image-level labels of these images, each column checked as a whole -> arrays by image

A column is converted at once; only where that fails, its first bad value is looked for, to be named with its line. Rows of other
images are passed over, because the published tables are of whole subsets, and so are rows of classes that `classes` leaves out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.images import printable_name
from icmbench.tasks.datasets.json_files import is_visible
from icmbench.tasks.datasets.lists import read_csv, read_text

log = logging.getLogger(__name__)
SUFFIXES = (".jpg", ".jpeg", ".png")
DIGITS = frozenset("0123456789.eE+-")
EDGES = ("XMin", "YMin", "XMax", "YMax")


@dataclass(frozen=True)
class Columns:
    """Some columns of a CSV, as text.

    Attributes:
        file: the CSV.
        lines: line number of each row.
        texts: the columns by name, as they are written.
    """

    file: Path
    lines: Sequence[int]
    texts: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, file: Path, names: Sequence[str]) -> Columns:
        """Read the columns of these names. Raises DatasetError if the file cannot be read or lacks one; see `lists.read_csv`."""
        rows = read_csv(file, names)
        columns: list[Sequence[str]] = [*zip(*(fields for _, fields in rows))] if rows else [()] * len(names)
        return cls(file, [line for line, _ in rows], dict(zip(names, columns, strict=True)))

    def __len__(self) -> int:
        return len(self.lines)

    def of_rows(self, rows: Sequence[int]) -> Columns:
        """The same columns with some of the rows."""
        texts = {name: [column[row] for row in rows] for name, column in self.texts.items()}
        return Columns(self.file, [self.lines[row] for row in rows], texts)

    def refuse(self, row: int, name: str, wanted: str) -> DatasetError:
        """The error for a value that is not what was wanted; the caller raises it."""
        value = printable_name(self.texts[name][row][:60])
        return DatasetError(f"{self.file}: line {self.lines[row]}: `{name}` is {value!r}, not {wanted}; correct the file")

    def numbers(
        self, name: str, wanted: str, good: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]
    ) -> npt.NDArray[np.float64]:
        """A column of plain numbers, float64 (n,).

        Args:
            name: the column.
            wanted: what its values must be, for the message.
            good: tells which of the numbers are that.

        Raises:
            DatasetError: a value is no plain number, or another one than wanted.
        """
        texts = self.texts[name]
        try:
            # Python's own conversion also takes underscores, digits of other scripts, NaN and infinity.
            values = np.array(texts if set("".join(texts)) <= DIGITS else ["_"], dtype=np.str_).astype(np.float64)
        except ValueError:
            raise self.refuse(next((row for row, text in enumerate(texts) if not _is_number(text)), 0), name, wanted) from None
        bad = np.flatnonzero(~(np.isfinite(values) & good(values)))
        if bad.size:
            raise self.refuse(int(bad[0]), name, wanted)
        return values

    def flags(self, name: str, remedy: str = "") -> npt.NDArray[np.bool_]:
        """A column of 0 and 1, bool (n,). Raises DatasetError if a value is another one; `remedy` says what that may mean."""
        return self.numbers(name, f"0 or 1{remedy}", lambda values: (values == 0) | (values == 1)) == 1


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return set(text) <= DIGITS


def read_id_list(file: Path, images: Sequence[str], folder: Path) -> list[str]:
    """The photographs of a list.

    Args:
        file: a text file with one image a line, by its ImageID, with or without `.jpg` or `.png` at its end. MPEG's list for
            segmentation writes `.png`, while the published photographs are JPEG files, so that the end decides nothing.
        images: the photographs in the folder.
        folder: the folder, for messages.

    Returns:
        Their file names, sorted.

    Raises:
        DatasetError: the list is empty or names an image twice, or the folder does not have an image in just one file.
    """
    listed: dict[str, int] = {}
    by_id = photographs_by_id(images, folder)
    missing = []
    for line, text in enumerate(read_text(file).splitlines(), 1):
        image_id = image_id_of(text.strip())
        if not image_id:
            continue
        if image_id in listed:
            raise DatasetError(
                f"{file}: line {line} lists {printable_name(image_id)!r} again, after line {listed[image_id]}; remove one of them"
            )
        listed[image_id] = line
        if image_id not in by_id:
            missing.append(image_id)
    if not listed:
        raise DatasetError(f"{file}: lists no image; give one ImageID a line")
    if missing:
        raise DatasetError(
            f"{folder}: {len(missing)} of the {len(listed)} images that {file} lists are missing, the first is "
            f"{printable_name(missing[0])} (line {listed[missing[0]]}); complete the folder or give its matching list"
        )
    return sorted(by_id[image_id] for image_id in listed)


def image_id_of(name: str) -> str:
    """The ImageID in the name of a photograph: without folder and without the end of a JPEG or PNG."""
    name = name.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] if name.lower().endswith(SUFFIXES) else name


def photographs_by_id(images: Sequence[str], folder: Path) -> dict[str, str]:
    """File names by ImageID. Raises DatasetError if two photographs have one ImageID."""
    by_id: dict[str, str] = {}
    for name in images:
        other = by_id.setdefault(image_id_of(name), name)
        if other != name:
            raise DatasetError(
                f"{folder}: {printable_name(other)} and {printable_name(name)} are both image {image_id_of(name)!r}; "
                "keep one of them"
            )
    return by_id


class Vocabulary:
    """The classes by the names that the tables write.

    Args:
        file: the published table of label names and names to read, such as oidv7-class-descriptions-boxable.csv, with or without
            its header; None where the tables write the names themselves.

    Attributes:
        names: names of the classes, once all tables are read; in the order of the file, else sorted.
        file: see Args.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._index: dict[str, int] = {}
        self.names: list[str] = []
        if file is not None:
            self._read(file)

    def _read(self, file: Path) -> None:
        lines = read_text(file).splitlines()
        for line, text in enumerate(lines, 1):
            label, separator, name = (part.strip().strip('"') for part in text.partition(","))
            if not text.strip() or (line == 1 and label == "LabelName"):
                continue
            if not separator or not is_visible(name) or not label or label in self._index:
                problem = "repeats a label name" if label in self._index else "is no label name and, after a comma, a name to read"
                raise DatasetError(f"{file}: line {line} ({printable_name(text[:60])!r}) {problem}; give the published table")
            self._index[label] = len(self.names)
            self.names.append(name)
        self._refuse_alike(file)

    def learn(self, columns: Sequence[Columns]) -> None:
        """Take the classes from the tables, if no file names them. Raises DatasetError if two names differ only in spelling."""
        if self.file is None:
            for table in columns:
                blank = next((row for row, text in enumerate(table.texts["LabelName"]) if not is_visible(text)), None)
                if blank is not None:
                    raise table.refuse(blank, "LabelName", "the name of a class")
            self.names = sorted(set().union(*(table.texts["LabelName"] for table in columns)))
            self._index = {name: index for index, name in enumerate(self.names)}
            self._refuse_alike(columns[0].file)

    def indices(self, columns: Columns) -> npt.NDArray[np.int64]:
        """The class of each row, -1 where the file of classes leaves it out; int64 (n,).

        Raises:
            DatasetError: no file of classes leaves anything out, and a class is none of those of the tables that were read.
        """
        indices = np.array([self._index.get(text, -1) for text in columns.texts["LabelName"]], dtype=np.int64).reshape(-1)
        if self.file is None and (indices < 0).any():
            raise columns.refuse(int(np.argmin(indices)), "LabelName", "a class of the boxes or image-level labels")
        return indices

    def _refuse_alike(self, file: Path) -> None:
        spelled: dict[str, str] = {}
        for name in self.names:
            other = spelled.setdefault(" ".join(name.casefold().replace("_", " ").split()), name)
            if other is not name:
                raise DatasetError(
                    f"{file}: the classes {printable_name(other)!r} and {printable_name(name)!r} differ only in spelling; "
                    "write one name"
                )


def rows_of_images(columns: Columns, positions: Mapping[str, int]) -> tuple[Columns, npt.NDArray[np.int64]]:
    """The rows of the dataset's images, and which image each of them is of.

    Args:
        columns: a table with the column `ImageID`.
        positions: positions of the images by ImageID.

    Raises:
        DatasetError: an id is blank, or one of the dataset's written in another way, such as with its file's ending.
    """
    folded: dict[str, str] | None = None
    rows, image_of = [], []
    for row, text in enumerate(columns.texts["ImageID"]):
        position = positions.get(text)
        if position is None:
            folded = {image_id.casefold(): image_id for image_id in positions} if folded is None else folded
            meant = folded.get(image_id_of(text).casefold())
            if not text or meant is not None:
                wanted = "the ImageID of an image" if meant is None else f"{meant!r}, which is the ImageID in the list or folder"
                raise columns.refuse(row, "ImageID", wanted)
            continue
        rows.append(row)
        image_of.append(position)
    if len(rows) < len(columns):
        log.info(
            "%s: %d of %d rows are of images that the dataset does not have", columns.file, len(columns) - len(rows), len(columns)
        )
    return columns.of_rows(rows), np.array(image_of, dtype=np.int64)


@dataclass(frozen=True)
class BoxTable:
    """The boxes of the dataset's images, in the order of the file.

    Attributes:
        image: int64 (n,), position of each box's image.
        category: int64 (n,), class of each box.
        corners: float64 (n, 4), x1, y1, x2, y2 in shares of the photograph's sides.
        group: bool (n,), whether the box is around a group of objects.
        lines: line number of each box in the file.
    """

    image: npt.NDArray[np.int64]
    category: npt.NDArray[np.int64]
    corners: npt.NDArray[np.float64]
    group: npt.NDArray[np.bool_]
    lines: Sequence[int]


def shares(columns: Columns, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Boxes in shares of the photograph's sides, float64 (n, 4).

    Args:
        columns: a table.
        names: its columns of x1, y1, x2 and y2.

    Raises:
        DatasetError: a value is no number from 0 to 1, or a box has no width or height.
    """
    wanted = "a share of the photograph's side, from 0 to 1"
    corners = np.stack([columns.numbers(name, wanted, lambda values: (values >= 0) & (values <= 1)) for name in names], axis=1)
    for low, high in ((0, 2), (1, 3)):
        flat = np.flatnonzero(corners[:, low] >= corners[:, high])
        if flat.size:
            text = columns.texts[names[low]][flat[0]]
            raise columns.refuse(int(flat[0]), names[high], f"more than `{names[low]}`, which is {text}")
    return corners


def read_boxes(columns: Columns, positions: Mapping[str, int], vocabulary: Vocabulary) -> BoxTable:
    """The boxes of the dataset's images.

    Raises:
        DatasetError: an id, number or flag is wrong, a box has no size, or one box stands there twice.
    """
    columns, image_of = rows_of_images(columns, positions)
    category = vocabulary.indices(columns)
    corners, group = shares(columns, EDGES), columns.flags("IsGroupOf", " (-1 is unknown, which cannot be scored)")
    known = np.flatnonzero(category >= 0)
    lines = [columns.lines[row] for row in known.tolist()]
    boxes = BoxTable(image_of[known], category[known], corners[known], group[known], lines)
    _refuse_repeated(columns.of_rows(known.tolist()), boxes)
    return boxes


def _refuse_repeated(columns: Columns, boxes: BoxTable) -> None:
    """Raise DatasetError if one box stands there twice; the boxes are those of the rows."""
    keys = np.column_stack([boxes.image, boxes.category, boxes.corners, boxes.group])
    order = np.lexsort(keys.T[::-1])  # Stable: equal boxes stand in the order of the file.
    again = np.flatnonzero((keys[order][1:] == keys[order][:-1]).all(axis=1)) + 1
    if again.size:
        first, second = int(order[again[0] - 1]), int(order[again[0]])
        raise DatasetError(
            f"{columns.file}: line {columns.lines[second]} repeats the box of line {columns.lines[first]} (image "
            f"{columns.texts['ImageID'][second]!r}, {columns.texts['LabelName'][second]!r}), so that one of them would always be "
            f"missed ({again.size} such lines in all); remove it"
        )


def read_verified(columns: Columns, positions: Mapping[str, int], vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
    """Which classes people looked for in each image, bool (images, classes).

    `Confidence` says what they found, present (1) or absent (0), and decides nothing: a detection counts if its class was looked
    for. MPEG's list for segmentation has rows of both for one class of an image.

    Raises:
        DatasetError: an id is wrong, or a confidence is neither 0 nor 1, such as a machine's.
    """
    columns, image_of = rows_of_images(columns, positions)
    columns.flags("Confidence", ", as people's verifications have it (shares between are a machine's guesses: leave them out)")
    category = vocabulary.indices(columns)
    verified = np.zeros((len(positions), len(vocabulary.names)), np.bool_)
    verified[image_of[category >= 0], category[category >= 0]] = True
    return verified
