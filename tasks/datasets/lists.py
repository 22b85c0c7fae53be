"""Lists of labels as they are found on disk, JSON and CSV, read by key and type.

Every value is asked for by its type, so that what is missing, null or of another type is named with its file, its item and its key.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.images import printable_name
from icmbench.tasks.datasets.json_files import is_visible, is_whole_unicode

SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a JSON file. Null counts as missing.

    Attributes:
        file: the JSON file, for messages.
        item: where the object stands in it, such as `images[3]`.
        values: the object's keys and values.
    """

    file: Path
    item: str
    values: Mapping[str, Any]

    def refuse(self, reason: str) -> DatasetError:
        """The error that names file and item; the caller raises it."""
        return DatasetError(f"{self.file}: {self.item}: {reason}; correct the file")

    def text(self, key: str) -> str:
        """A text that can be seen, and that Unicode can write.

        Raises:
            DatasetError: it is missing, null, blank or no text.
        """
        value = self._get(key)
        if not isinstance(value, str):
            raise self.refuse(f"`{key}` is {describe_value(value)}, not a text")
        if not is_whole_unicode(value):
            raise self.refuse(f"`{key}` holds half a Unicode character, {describe_value(value)}")
        if not is_visible(value):
            raise self.refuse(f"`{key}` is {describe_value(value)}, in which nothing can be read")
        return value

    def identifier(self, key: str) -> int | str:
        """A whole number or text. `1` and `"1"` are two identifiers.

        Raises:
            DatasetError: it is missing, null, or neither.
        """
        value = self._get(key)
        if type(value) not in (int, str):
            raise self.refuse(f"`{key}` is {describe_value(value)}, neither a whole number nor a text")
        identifier: int | str = value
        return identifier

    def side(self, key: str) -> int | None:
        """Width or height of a picture in pixels, or None if the file does not tell.

        Raises:
            DatasetError: it is no whole number from 1.
        """
        value = self.values.get(key)
        if value is not None and (type(value) not in (int, float) or not 1 <= value < math.inf or value != int(value)):
            raise self.refuse(f"`{key}` is {describe_value(value)}, not a whole number of pixels")
        return None if value is None else int(value)

    def box(self, key: str) -> list[float]:
        """A box as x, y, width and height.

        Raises:
            DatasetError: it is missing, or not four finite numbers with a positive width and height.
        """
        value = self._get(key)
        if not isinstance(value, list) or len(value) != 4 or any(type(side) not in (int, float) for side in value):
            raise self.refuse(f"`{key}` is {describe_value(value)}, not the four numbers [x, y, width, height]")
        try:
            box = [float(side) for side in value]
        except OverflowError:
            box = [math.inf] * 4
        if not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
            raise self.refuse(f"`{key}` is {describe_value(value)}, which must be finite with a width and height above 0")
        return box

    def records(self, key: str) -> list[Record]:
        """The objects of a list.

        Raises:
            DatasetError: it is missing or null, or no list of objects.
        """
        return records_of(self.file, key if self.item == "the file" else f"{self.item}.{key}", self._get(key))

    def _get(self, key: str) -> Any:
        value = self.values.get(key)
        if value is None:
            raise self.refuse(f"`{key}` is {'null' if key in self.values else 'missing'}")
        return value


def records_of(file: Path, item: str, value: Any) -> list[Record]:
    """The objects of a list at `item` of a JSON file.

    Raises:
        DatasetError: it is no list of objects.
    """
    if not isinstance(value, list):
        raise DatasetError(f"{file}: {item} is {describe_value(value)}, not a list; correct the file")
    stray = next((number for number, entry in enumerate(value) if not isinstance(entry, dict)), None)
    if stray is not None:
        raise DatasetError(f"{file}: {item}[{stray}] is {describe_value(value[stray])}, not an object; correct the file")
    return [Record(file, f"{item}[{number}]", entry) for number, entry in enumerate(value)]


def describe_value(value: Any) -> str:
    """A value of a JSON file for a message, short."""
    if isinstance(value, str):
        return f"the text {printable_name(value[:60])!r}"
    return "null" if value is None else printable_name(json.dumps(value)[:80])


def read_text(file: Path) -> str:
    """The content of a text file, without a byte order mark.

    Raises:
        DatasetError: it cannot be read or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"{file}: not a text file ({error}); give a list of labels, saved as UTF-8") from error


def read_csv(file: Path, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """The rows of a CSV with a header; fields are separated by commas, semicolons or tabs, as the header has them.

    Args:
        file: the CSV.
        columns: the columns that are needed; others are passed over.

    Returns:
        Line number and the fields of `columns` in their order, without blanks around them, per row.

    Raises:
        DatasetError: the file cannot be read, lacks a column or has it twice, a row has not as many fields as the header, or a
            column without a name holds more than the numbers of the rows in front.
    """
    text = read_text(file)
    header_line = text.partition("\n")[0]
    separator = max(SEPARATORS, key=header_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        rows = [(reader.line_num, [field.strip() for field in row]) for row in reader if row]
    except csv.Error as error:
        raise DatasetError(f"{file}: line {reader.line_num} is no CSV ({error}); correct the file") from error
    header = rows[0][1] if rows else []
    if wrong := next((column for column in columns if header.count(column) != 1), None):
        needed, existing = " and ".join(f"`{name}`" for name in columns), printable_name(", ".join(header)) or "none"
        count = "twice" if wrong in header else "not"
        raise DatasetError(
            f"{file}: needs the columns {needed}, separated by commas, has {existing}: `{wrong}` stands there {count}; "
            "correct the file"
        )
    for line, row in rows[1:]:
        # A column without a name is an index in front, or what a trailing comma makes; else a number was cut at a decimal comma.
        unnamed = [field for name, field in zip(header[1:], row[1:], strict=False) if not name and field]
        if len(row) != len(header) or unnamed:
            fields = (
                f"{len(row)} fields under {len(header)} columns" if not unnamed else f"{unnamed[0]!r} under a column without a name"
            )
            raise DatasetError(
                f"{file}: line {line} has {fields}; write one field per column, numbers with a point and without thousands "
                "separators, and names that hold a separator in quotes"
            )
    _check_index(file, header, rows[1:])
    positions = [header.index(column) for column in columns]
    return [(line, [row[position] for position in positions]) for line, row in rows[1:]]


def _check_index(file: Path, header: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]]) -> None:
    """Raise DatasetError if the first column has no name and is no index, as pandas writes one in front: numbers that differ."""
    if header[0]:
        return
    fields: dict[str, int] = {}
    for line, row in rows:
        if not (row[0].isascii() and row[0].isdigit()) or fields.setdefault(row[0], line) != line:
            raise DatasetError(
                f"{file}: line {line} has {row[0]!r} under a first column without a name, which may only number the rows; name the "
                "column or leave it out"
            )


def whole_number(text: str) -> int:
    """A whole number in plain digits.

    Raises:
        ValueError: it is anything else, such as `1_000`, `1.0` or digits of other scripts, which `int` partly takes.
    """
    if not (text.isascii() and text.lstrip("-").isdigit()) or len(text) > 18:
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def unique_labels(file: Path, rows: Iterable[tuple[int, str, int]]) -> dict[str, int]:
    """Labels by file name.

    Args:
        file: the list, for messages.
        rows: line number, file name and label.

    Raises:
        DatasetError: a file has two labels, or no name.
    """
    labels: dict[str, int] = {}
    lines: dict[str, int] = {}
    for line, name, label in rows:
        if not name:
            raise DatasetError(f"{file}: line {line} names no file; correct the file")
        if labels.setdefault(name, label) != label:
            raise DatasetError(
                f"{file}: {printable_name(name)!r} has class {labels[name]} in line {lines[name]}, but {label} in line {line}; "
                "keep one of them"
            )
        lines.setdefault(name, line)
    return labels
