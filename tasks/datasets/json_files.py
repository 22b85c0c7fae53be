"""JSON files of annotations, read whole; a key that one object holds twice with different values is refused.

Python's reader takes the last of two values without a word. Finding that out while reading would cost a tenth of the time that the
55,000 segments of COCO val2017 take, so the keys that the document holds are first compared with the keys that the text spells:
only where the text may spell more is it read a second time, object by object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from icmbench.tasks.base import DatasetError

MAX_SHOWN = 60  # Characters of a wrong value in a message.
INVISIBLE = " \t\r\n\xa0\xad\u200b\u200c\u200d\u2060\ufeff"
_ENDS_KEY = np.zeros(256, dtype=np.bool_)  # The characters before a colon that may end a key or its blanks.
_ENDS_KEY[list(b'" \t\r\n\0')] = True  # In UTF-16 and UTF-32 a zero may come between.
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
    characters = np.frombuffer(text, dtype=np.uint8)
    before_colons = characters[np.flatnonzero(characters == ord(":")) - 1]
    return int(np.count_nonzero(_ENDS_KEY[before_colons])) > _count_keys(document if type(document) is list else [document])


def _count_keys(values: Iterable[Any]) -> int:
    """How many keys objects and those within them have; where objects are unlike the first one, perhaps fewer, but never more."""
    objects = [value for value in values if type(value) is dict]
    if not objects:
        return 0
    count = sum(map(len, objects))
    for key, example in objects[0].items():
        if type(example) in (dict, list):
            column = [value.get(key) for value in objects]
            count += _count_keys(column)
            if type(example) is list and example and type(example[0]) is dict:
                count += _count_keys(chain.from_iterable(value for value in column if type(value) is list))
    return count
