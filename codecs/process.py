"""External encoders and decoders: found, run in a process group of their own, ended when they hang.

For POSIX systems: a hanging program is ended by its process group.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

from icmbench.codecs.base import CodecError

_TAIL_LINES, _TAIL_CHARACTERS = 20, 2000


class ProgramError(Exception):
    """A program failed; `tail` is the end of what it said, on lines of its own."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = f":\n{tail}" if tail else ""


def find_program(what: str, program: str | Path, folder: Path = Path()) -> str:
    """Absolute path of a program: in `folder` if its name has a slash, else on PATH.

    Raises CodecError, beginning with `what`, where it is not there.
    """
    name = str(program)
    found = shutil.which((folder / name).absolute() if "/" in name else name)
    if found is None:
        where = f"in {folder.absolute()}" if "/" in name else "on PATH"
        raise CodecError(f"{what}: no program {name!r} {where}: build or install it, or give its full path")
    return str(Path(found).absolute())


def run_program(
    codec: str, role: Literal["encoder", "decoder"], arguments: Sequence[str | Path], folder: Path, seconds: float
) -> None:
    """Run a program in a folder, to its end or for so many seconds; nothing of its process group outlives the call.

    Raises ProgramError where it fails or hangs; CodecError where it cannot be started at all.
    """
    program = Path(arguments[0])
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                arguments, cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
            )
        except OSError as error:
            raise CodecError(f"{codec}: the {role} {program} cannot be started: {error}") from error
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            option = "timeout_seconds" if role == "encoder" else "decode_timeout_seconds"
            message = f"the {role} {program.name} did not end within {seconds:.3g} s (raise {option} if it needs more)"
            raise ProgramError(message, _tail(stderr, stdout)) from None
        finally:  # also on KeyboardInterrupt, and for children that outlive the program
            _kill_group(process)
        if code:
            how = f"ended with code {code}" if code > 0 else f"was killed by signal {-code}"
            raise ProgramError(f"the {role} {program.name} {how}", _tail(stderr, stdout))


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for the files of one call."""
    return tempfile.TemporaryDirectory(prefix="icmbench-", ignore_cleanup_errors=True)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing left of it; on macOS, nothing but zombies
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(*files: IO[bytes]) -> str:
    """The end of the first file that is not empty."""
    for file in files:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4 * _TAIL_CHARACTERS))
        text = file.read().decode(errors="replace").strip()
        if text:
            return "\n".join(text[-_TAIL_CHARACTERS:].splitlines()[-_TAIL_LINES:])
    return ""
