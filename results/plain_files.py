"""Reading the bytes of a file, and nothing else: a pipe would be waited for without end."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any


def read_plain_file(path: Any) -> bytes:
    """The content of a regular file.

    Args:
        path: a path, or a resource of a package.

    Raises:
        OSError: there is no such file, it is a folder, pipe or device, or it cannot be read.
    """
    if isinstance(path, Path) and path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")
    content: bytes = path.read_bytes()
    return content
