"""Standard output and standard error of the command line: streams that are closed, and lines that are safe to print."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path


def describe_error(error: Exception) -> str:
    """An unexpected error with its type and the line that raised it."""
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"


def open_missing_streams() -> None:
    """Open /dev/null in the place of standard streams that the caller closed, as `icmbench list >&-` does.

    Otherwise the next file that is opened would get the number of the stream, and libraries in C would print into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - stays open


def flush_or_silence() -> None:
    """Flush the standard streams; turn one that cannot be written to /dev/null, so that Python's own flush at exit succeeds."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, io.UnsupportedOperation):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_error(*lines: str) -> None:
    """Print lines on standard error, without control characters, which file names may hold, and without credentials."""
    from icmbench.harness.config.secrets import redact

    printable = ("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in redact(line)) for line in lines)
    try:
        print("icmbench: " + "\n  ".join(printable), file=sys.stderr, flush=True)
    except OSError:  # Nobody reads it.
        flush_or_silence()
