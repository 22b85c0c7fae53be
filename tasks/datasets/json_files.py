"""JSON files of annotations, read whole; a key that one object holds twice with different values is refused.

Python's reader takes the last of two values without a word. Finding that out while reading would cost a tenth of the time that the
55,000 segments of COCO val2017 take, so the keys that the document holds are first compared with the keys that the text spells:
only where the text may spell more is it read a second time, object by object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain, filterfalse
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from icmbench.tasks.base import DatasetError

MAX_SHOWN = 60  # Characters of a wrong value in a message.
INVISIBLE = " \t\r\n\xa0\xad\u200b\u200c\u200d\u2060\ufeff"
# Up to the quotation mark lie all characters that may stand before the colon of a key: blanks, and in UTF-16 and UTF-32 a zero.
LAST_BEFORE_COLON = ord('"')
PIECE = 1 << 18  # Bytes that are compared at once, so that the processor's cache holds what is computed of them.
NAMING_KEYS = ("id", "ref_id", "file_name", "filename", "image_id")  # What names an object in a message.


def json_excerpt(value: Any) -> str:
    """A value for a message: in JSON's words, on one line of bounded length."""
    if value is None:
        return "missing or null"
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def is_whole_unicode(text: str) -> bool:
    """Whether a text can be written to a file; JSON can spell one half of a surrogate pair, which cannot."""
    return text.isascii() or text.encode(errors="replace").decode() == text


def is_visible(text: str) -> bool:
    """Whether a text has a character that can be seen: something else than blanks and marks without width."""
    return bool(text.strip()) and (text.isascii() or bool(text.strip(INVISIBLE)))


def all_visible(texts: Iterable[str]) -> bool:
    """Whether `is_visible` holds for all texts; most have plain characters only, which are looked at without a call for each."""
    texts = list(texts)
    return all(map(str.strip, texts)) and all(map(is_visible, filterfalse(str.isascii, texts)))


def all_whole_unicode(texts: Iterable[str]) -> bool:
    """Whether `is_whole_unicode` holds for all texts."""
    return all(map(is_whole_unicode, filterfalse(str.isascii, texts)))


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DatasetError: it cannot be read, is no JSON, or gives a key of one object two values.
    """
    try:
        text = file.read_bytes()
        document = json.loads(text)
        return json.loads(text, object_pairs_hook=_unique) if _may_repeat_keys(text, document) else document
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{file}: not JSON ({type(error).__name__}: {error}); give the annotations as a whole JSON file"
            if not isinstance(error, _RepeatedKeyError)
            else f"{file}: {error}; keep one of them"
        ) from error


class _RepeatedKeyError(ValueError):
    """An object has two values of one key."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values. Raises _RepeatedKeyError unless all values of a key are spelled alike."""
    values = dict(pairs)
    if len(values) != len(pairs):
        for key, value in pairs:
            if repr(values[key]) != repr(value):
                naming = next((name for name in NAMING_KEYS if name != key and name in values), None)
                named = "" if naming is None else f" ({naming} {json_excerpt(values[naming])})"
                raise _RepeatedKeyError(
                    f"an object{named} has the key {json_excerpt(key)} twice, with {json_excerpt(value)} and "
                    f"{json_excerpt(values[key])}"
                )
    return values


def _may_repeat_keys(text: bytes, document: Any) -> bool:
    """Whether the text of a document may spell a key of one object twice; where this is False, it does not.

    Every key of the text ends in a quotation mark and a colon, with or without blanks between them. Texts may hold such marks too,
    so that there may be more of them than keys, but never fewer.
    """
    spelled = _count_marks(text)
    values = document if type(document) is list else [document]
    return spelled > _count_keys(values) and spelled > _count_keys(values, thorough=True)


def _count_marks(text: bytes) -> int:
    """How many colons of a text stand behind a character that may end a key."""
    characters, count = np.frombuffer(text, dtype=np.uint8), 0
    for start in range(0, len(text), PIECE):
        piece = characters[start : start + PIECE + 1]
        count += int(np.count_nonzero((piece[1:] == ord(":")) & (piece[:-1] <= LAST_BEFORE_COLON)))
    return count


def _count_keys(values: Iterable[Any], thorough: bool = False) -> int:
    """How many keys objects and those within them have; where objects are unlike the first one, perhaps fewer, but never more.

    Args:
        values: the objects, perhaps among other values.
        thorough: whether to look for objects where the first one has a list of other values too, as for run lengths among polygons.
    """
    values = list(values)
    objects = values if set(map(type, values)) == {dict} else [value for value in values if type(value) is dict]
    if not objects:
        return 0
    count = sum(map(len, objects))
    for key, example in objects[0].items():
        if type(example) is dict or (type(example) is list and thorough):
            count += _count_keys(_column(objects, key), thorough)
        if type(example) is list and example and type(example[0]) is dict:
            count += _count_keys(chain.from_iterable(value for value in _column(objects, key) if type(value) is list), thorough)
    return count


def _column(objects: list[dict[str, Any]], key: str) -> list[Any]:
    """The value of a key in each object, None where it is missing."""
    try:
        return list(map(itemgetter(key), objects))
    except KeyError:
        return [value.get(key) for value in objects]
