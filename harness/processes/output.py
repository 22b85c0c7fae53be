"""What plug-ins and libraries print while they compute."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to standard error what plug-ins and their C libraries print, so that it does not mix with the command's own output."""
    saved = None
    with suppress(OSError, ValueError):  # One of the two may be closed.
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # Text in the buffers of the C library would otherwise appear on standard output later.
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)
