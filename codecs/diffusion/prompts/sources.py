"""Where the words come from that users bring themselves: text files, and functions of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from icmbench.codecs.base import CodecError


def function_name(function: Any) -> str:
    """The name of a function or other callable in fingerprints: its attribute `fingerprint`, otherwise its qualified name.

    Example:
        >>> function_name(len)
        'len'
    """
    return str(getattr(function, "fingerprint", None) or getattr(function, "__qualname__", type(function).__qualname__))


def read_text(path: Path) -> str:
    """The content of a text file in UTF-8.

    Raises:
        CodecError: the file cannot be read or is not UTF-8.
    """
    if path.exists() and not path.is_file():  # Reading a pipe might never end.
        raise CodecError(f"{path} cannot be read (it is no regular file): name a text file in UTF-8")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CodecError(f"{path} cannot be read ({error}): name a text file in UTF-8") from error


def read_json(path: Path, layout: str) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        layout: What the file should hold, for the message.

    Raises:
        CodecError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CodecError(f"{path} is no JSON ({error}): write {layout}") from error
