"""Checks of the lists of objects that a JSON of annotations holds, one key at a time for all objects of a list.

A whole column passes or fails at once, which costs a few milliseconds for the 36,781 boxes of COCO val2017; only a column that
fails is searched for the entry that the message names. JSON's null counts as a missing key everywhere. What ids have to fulfil, and
what points to them, stands in `json_identity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.json_files import all_visible, all_whole_unicode, is_visible, is_whole_unicode, json_excerpt

INT64 = 2**63
NUMBERS = {int, float}  # Types of JSON's numbers. Python's bool is a subclass of int, so types are compared, never isinstance.
FLAGS = {int, float, bool, type(None)}


def is_finite(value: Any) -> bool:
    """Whether a value of a JSON is a finite number; true and false are none."""
    try:
        return type(value) in NUMBERS and math.isfinite(value)
    except OverflowError:  # An integer beyond the range of floating point.
        return False


class Entries:
    """The objects under one key of a JSON of annotations.

    Args:
        path: the file, for messages.
        key: the key of the list, for messages.
        items: what the file has there.
        name: the key whose value names an entry in messages.
        owner: gives the image id of an entry by its position, for messages, if the entries are those of several lists.

    Raises:
        DatasetError: it is no list of objects.
    """

    def __init__(self, path: Path, key: str, items: Any, name: str = "id", owner: Callable[[int], Any] | None = None) -> None:
        self.path, self.key, self._name, self._owner = path, key, name, owner
        if type(items) is not list:
            raise DatasetError(f"{path}: `{key}` is {json_excerpt(items)}, not a list; give the JSON of one annotation kind")
        self.items: list[dict[str, Any]] = items
        if not set(map(type, items)) <= {dict}:
            position = next(k for k, item in enumerate(items) if type(item) is not dict)
            place = f"{key}[{position}]" if owner is None else f"an entry of `{key}` of image_id {json_excerpt(owner(position))}"
            raise DatasetError(f"{path}: {place} is {json_excerpt(items[position])}, not an object; correct the file")

    def __len__(self) -> int:
        return len(self.items)

    def column(self, key: str) -> list[Any]:
        """The values of one key, None where it is missing or null."""
        try:
            return list(map(itemgetter(key), self.items))
        except KeyError:
            return [item.get(key) for item in self.items]

    def label(self, position: int) -> str:
        """An entry's name for a message."""
        name = self.items[position].get(self._name)
        named = "" if name is None else f" ({self._name} {json_excerpt(name)})"
        if self._owner is None:
            return f"{self.key}[{position}]{named}"
        return f"{self.key}{named} of image_id {json_excerpt(self._owner(position))}"

    def refuse(self, position: int, key: str, wanted: str) -> NoReturn:
        """Raise DatasetError because an entry's key has another value than is wanted."""
        value = json_excerpt(self.items[position].get(key))
        raise DatasetError(f"{self.path}: {self.label(position)}: `{key}` is {value}, not {wanted}; correct the file")

    def refuse_first(self, key: str, wanted: str, fits: Callable[[Any], bool]) -> NoReturn:
        """Raise DatasetError for the first entry whose key does not have the value that is wanted."""
        self.refuse(next(k for k, item in enumerate(self.items) if not fits(item.get(key))), key, wanted)

    def texts(self, key: str) -> list[str]:
        """The values of a key that must be text with something in it."""
        values = self.column(key)
        if not set(map(type, values)) <= {str} or not all_visible(values):
            self.refuse_first(key, "a text", lambda value: type(value) is str and is_visible(value))
        if not all_whole_unicode(values):
            self.refuse_first(key, "a text of whole Unicode characters, which a file can hold", is_whole_unicode)
        return values

    def whole_numbers(self, key: str, low: int = -INT64, high: int = INT64 - 1) -> npt.NDArray[np.int64]:
        """The values of a key that must be whole numbers, int64 (entries,).

        Args:
            key: the key.
            low: the lowest number.
            high: the highest number.
        """
        values = self.column(key)
        array = _integers(values) if set(map(type, values)) <= {int} else None
        if array is None or (array.size and not low <= array.min() <= array.max() <= high):
            above = f"of at least {low}" if high == INT64 - 1 else f"of {low} to {high}"
            wanted = f"a whole number {above}" if low > -INT64 else "a whole number"
            self.refuse_first(key, wanted, lambda value: type(value) is int and low <= value <= high)
        return array

    def optional_whole_numbers(self, key: str, low: int) -> list[int | None]:
        """The values of a key that must be whole numbers of at least `low`, or missing or null, which is None."""
        values = self.column(key)
        present = [value for value in values if value is not None]
        if not set(map(type, present)) <= {int} or (present and not low <= min(present) <= max(present) < INT64):
            self.refuse_first(key, f"a whole number of at least {low}", lambda value: _is_whole_or_none(value, low))
        return values

    def flags(self, key: str, optional: bool = True) -> npt.NDArray[np.bool_]:
        """The values of a key that must be 0 or 1, bool (entries,); a missing one is 0 if the key is optional."""
        values = self.column(key)
        allowed = {0, 1, None} if optional else {0, 1}
        try:
            fit = set(values) <= allowed  # Of JSON's values, only numbers, true and false are equal to one of these.
        except TypeError:  # Lists and objects cannot stand in a set.
            fit = False
        if not fit:
            self.refuse_first(key, "0 or 1", lambda value: type(value) in FLAGS and value in allowed)
        return np.array(values, dtype=np.bool_)

    def numbers(self, key: str, optional: bool = False) -> npt.NDArray[np.float64]:
        """The values of a key that must be finite numbers of at least 0, float64 (entries,); NaN for a missing optional one."""
        values = self.column(key)
        kinds = set(map(type, values))
        array = _floats(values) if kinds <= NUMBERS | ({type(None)} if optional else set()) else None
        missing = np.array([value is None for value in values]) if type(None) in kinds else np.False_
        if array is None or not (np.isfinite(array) & (array >= 0) | missing).all():
            wanted = "a finite number of at least 0"
            self.refuse_first(key, wanted, lambda v: (optional and v is None) or (is_finite(v) and v >= 0))
        return array

    def rows(self, key: str, lengths: Sequence[int], wanted: str) -> npt.NDArray[np.float64]:
        """The values of a key that must be lists of finite numbers, end to end, float64 (sum of lengths,).

        Args:
            key: the key.
            lengths: how many numbers each entry must have.
            wanted: what the numbers are, for the message.
        """
        values = self.column(key)
        array = None
        if set(map(type, values)) <= {list} and list(map(len, values)) == list(lengths):
            array = flat_numbers(values)
        if array is None:
            position = next(
                k
                for k, (value, length) in enumerate(zip(values, lengths, strict=True))
                if type(value) is not list or len(value) != length or not all(map(is_finite, value))
            )
            self.refuse(position, key, wanted)
        return array


def flat_numbers(lists: Iterable[Sequence[Any]]) -> npt.NDArray[np.float64] | None:
    """The numbers of all lists, end to end, float64 (n,); None if one is no finite number."""
    flat = list(chain.from_iterable(lists))
    if not set(map(type, flat)) <= NUMBERS:
        return None
    array = _floats(flat)
    return array if array is not None and np.isfinite(array).all() else None


def _is_whole_or_none(value: Any, low: int) -> bool:
    return value is None or (type(value) is int and low <= value < INT64)


def _integers(values: list[int]) -> npt.NDArray[np.int64] | None:
    """Whole numbers as int64 (n,); None if one is beyond its range."""
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        return None


def _floats(values: list[Any]) -> npt.NDArray[np.float64] | None:
    """Numbers and None as float64 (n,), with None as NaN; None if an integer is beyond the range of floating point."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return None
