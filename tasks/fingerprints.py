"""Texts that tell what decides a prediction, and hashes of weight files."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any


def fingerprint(**facts: Any) -> str:
    """Canonical JSON of everything that decides a prediction, readable so that two runs can be compared fact by fact."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)


@functools.cache
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a weight file in hex, remembered for this process while path, size and mtime stay the same."""
    stat = Path(path).stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)
