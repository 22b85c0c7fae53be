"""Ids of the objects in a JSON of annotations, each unlike all others, and the keys of other objects that point to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.json_entries import Entries
from icmbench.tasks.datasets.json_files import json_excerpt


def unique_ids(entries: Entries, key: str = "id") -> list[Any]:
    """The values of a key that must be whole numbers, or else texts, and each unlike all others.

    Raises:
        DatasetError: a value is neither, has another type than the first one, or stands there twice.
    """
    values = entries.column(key)
    kinds = set(map(type, values))
    if len(kinds) > 1 or not kinds <= {int, str}:
        first = type(values[0]) if type(values[0]) in (int, str) else int
        wanted = "a text as that of the first entry" if first is str else "a whole number"
        entries.refuse_first(key, wanted, lambda value: type(value) is first)
    refuse_repeated(entries, key, values)
    return values


def refuse_repeated(entries: Entries, key: str, values: Sequence[Any]) -> None:
    """Raise DatasetError if two entries have the same value; None is no value.

    Args:
        entries: the objects.
        key: the key, for the message.
        values: one hashable value per entry, possibly normalised.
    """
    if len(set(values)) == len(values):
        return
    first: dict[Any, int] = {}
    for position, value in enumerate(values):
        if value is not None and first.setdefault(value, position) != position:
            given = json_excerpt(entries.items[position].get(key))
            raise DatasetError(
                f"{entries.path}: {entries.label(first[value])} and {entries.label(position)} have the same `{key}`, {given}; "
                "correct or remove one of them"
            )


def refuse_repeated_within(entries: Entries, key: str, groups: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> None:
    """Raise DatasetError if two entries of one group have the same value.

    Args:
        entries: the objects.
        key: the key, for the message.
        groups: int64 (entries,), which group an entry belongs to, from 0.
        values: int64 (entries,), from 0.
    """
    numbers = groups * (int(values.max(initial=0)) + 1) + values
    ordered = np.sort(numbers, kind="stable")  # Fast where the groups stand in order.
    if (ordered[1:] == ordered[:-1]).any():
        refuse_repeated(entries, key, numbers.tolist())


def positions_of(entries: Entries, key: str, targets: Mapping[Any, int], listed_in: str) -> npt.NDArray[np.int64]:
    """Where the ids that a key points to stand, int64 (entries,).

    Args:
        entries: the objects.
        key: the key.
        targets: position by id; the ids are of one type.
        listed_in: the list of the targets, for the message.

    Raises:
        DatasetError: an id has another type than those of the targets, or is none of them.
    """
    values = entries.column(key)
    kinds = set(map(type, targets)) or {int}
    if not set(map(type, values)) <= kinds:
        wanted = "a whole number" if int in kinds else "a text"
        entries.refuse_first(key, f"{wanted} as the ids under `{listed_in}`", lambda value: type(value) in kinds)
    try:
        return np.fromiter(map(targets.__getitem__, values), np.int64, len(values))
    except KeyError:
        strays = [value for value in values if value not in targets]
        label = entries.label(values.index(strays[0]))
        raise DatasetError(
            f"{entries.path}: {label}: `{key}` is {json_excerpt(strays[0])}, which `{listed_in}` does not list "
            f"({len(set(strays))} such ids in all); correct or complete the file"
        ) from None
