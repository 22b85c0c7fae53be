"""The format number of the files that icmbench writes and reads again: Parquet files, and the JSON files of a run folder.

The number stands in the metadata of the Parquet schema and in the JSON object, under the key `format`. It is raised when a reader
of the old format would misread the new one. Files from before the number was introduced have none and are of format 1.

A file that holds or names rates which a codec estimated has the number 3, because a reader of format 2 would look for streams and
take the rates for measured ones. All others stay at 2, so that both read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icmbench.harness.config.errors import UserError

FORMAT = 2  # 2: rows are found by content; 1 named shards by labels and blocks.
ESTIMATED_FORMAT = 3  # Of a shard of estimated rates, and of the environment.json of a run that has a codec which estimates.
READ = f"formats {FORMAT} and {ESTIMATED_FORMAT}"
KEY = "format"


class FormatError(UserError):
    """A file of another version of icmbench. Unlike a damaged file, it must never be replaced or treated as absent."""


def check_format(path: str | Path, number: Any) -> None:
    """Refuse a file of another format.

    Args:
        path: the file, named in the error message.
        number: its format number; anything but a positive integer is refused too.

    Raises:
        FormatError: the number is neither `FORMAT` nor `ESTIMATED_FORMAT`.
    """
    is_number = isinstance(number, int) and not isinstance(number, bool) and number >= 1
    if is_number and number < FORMAT:
        remedy = "run the experiment into a new folder"
        raise FormatError(f"{path} has format {number}, of an older icmbench; this one reads {READ}: {remedy}")
    if not is_number or number > ESTIMATED_FORMAT:
        raise FormatError(f"{path} has format {repr(number)[:40]}, and this icmbench reads {READ}: use a newer icmbench")


def check_metadata(path: str | Path, metadata: Mapping[bytes, bytes] | None) -> None:
    """Refuse a Parquet file of another format.

    Args:
        path: the file, named in the error message.
        metadata: the metadata of its schema; None if it has none.

    Raises:
        FormatError: as for `check_format`.
    """
    text = (metadata or {}).get(KEY.encode(), b"1").decode("ascii", "backslashreplace")
    check_format(path, int(text) if text.isdecimal() and len(text) < 10 else text)


def parse_object(path: str | Path, text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object of a run folder.

    Args:
        path: the file that holds the text, named in the error message.
        text: the content of the file.

    Raises:
        ValueError: the text is no JSON object.
        FormatError: the object has a format that this icmbench does not read.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    check_format(path, value.get(KEY, 1))
    return value
