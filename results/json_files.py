"""JSON files that a run left or a user gave, read so that damage is an error of one kind."""

from __future__ import annotations

import json
from typing import Any

# The deepest nesting of a file; deeper ones exhaust the recursion of what reads or writes them.
MAX_DEPTH = 60


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: the data are no JSON, name a key twice, or are nested too deeply. The message says which.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_depth(value, MAX_DEPTH)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len({*keys}) < len(keys):
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return dict(pairs)


def _check_depth(value: Any, depth: int) -> None:
    """Raise ValueError if a value is nested more than `depth` deep."""
    if depth == 0:
        raise ValueError("nested too deeply")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(part, depth - 1)
