"""JSON objects that hold a digest of themselves: one that lost a line, or was edited, is never taken for a whole one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from icmbench.harness.store.formats import FORMAT, KEY, parse_object
from icmbench.harness.store.keys import digest

GUARD = "sha256"  # Key of the digest of all else.


def guarded_bytes(content: Mapping[str, Any]) -> bytes:
    """The file of an object.

    Args:
        content: the object, without format number and digest.

    Example:
        >>> from icmbench.harness.store.guarded_json import guarded_bytes, parse_guarded
        >>> data = guarded_bytes({"run": "a"})
        >>> parse_guarded("x.json", data)
        {'run': 'a'}
        >>> parse_guarded("x.json", data.replace(b'"a"', b'"b"'))
        Traceback (most recent call last):
        ValueError: its content is not what was written
    """
    described = {**content, KEY: FORMAT}
    return (json.dumps({**described, GUARD: digest(described)}, indent=1, sort_keys=True) + "\n").encode()


def parse_guarded(path: str, data: bytes) -> dict[str, Any]:
    """The object in a file, without format number and digest.

    Args:
        path: the file, named in the error message.
        data: its content.

    Raises:
        ValueError: the content is not what `guarded_bytes` made.
        FormatError: another version of icmbench wrote it.
    """
    content = {key: value for key, value in parse_object(path, data).items() if key not in (KEY, GUARD)}
    if guarded_bytes(content) != data:
        raise ValueError("its content is not what was written")
    return content
