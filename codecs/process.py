"""External encoders and decoders: looked up, hashed, run in a process group of their own, and ended if they hang.

This needs a POSIX system, because a hanging program is ended through its process group.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from icmbench.codecs.base import CodecError, file_sha256, walk_files

_TAIL_LINES, _TAIL_CHARACTERS = 20, 2000  # what an error message quotes of a program's output
MAX_FOLDER_FILES, MAX_FOLDER_BYTES = 20_000, 50 * 2**30  # Of a folder that is hashed.
# Folders within a hashed one that say nothing of a codec: Python writes the one when it imports, git the other.
UNHASHED_FOLDERS = frozenset({"__pycache__", ".git"})


class ProgramError(Exception):
    """A program failed or hung.

    Attributes:
        tail: The end of the program's output, ready to follow the message; empty if it wrote nothing.
    """

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = f":\n{tail}" if tail else ""


@dataclass(frozen=True)
class TimeLimits:
    """How many seconds an encoder and a decoder may take: a fixed part and a part that grows with the image.

    Attributes:
        encode: Fixed seconds of the encoder.
        encode_per_megapixel: Seconds of the encoder for each million pixels, added to the fixed ones.
        decode: Fixed seconds of the decoder.
        decode_per_megapixel: Seconds of the decoder for each million pixels, added to the fixed ones.
    """

    encode: float
    encode_per_megapixel: float
    decode: float
    decode_per_megapixel: float = 0

    def check(self, codec: str) -> None:
        """Raise CodecError, with the codec's name, unless the fixed parts are positive and the others not negative."""
        if min(self.encode, self.decode) <= 0 or min(self.encode_per_megapixel, self.decode_per_megapixel) < 0:
            raise CodecError(f"{codec}: time-outs are positive numbers of seconds")

    def encoder(self, width: int, height: int) -> float:
        """Seconds that the encoder may take for an image of this size in pixels."""
        return self.encode + self.encode_per_megapixel * width * height / 1e6

    def decoder(self, width: int, height: int) -> float:
        """Seconds that the decoder may take for an image of this size in pixels."""
        return self.decode + self.decode_per_megapixel * width * height / 1e6


def find_program(option: str, program: str | Path, folder: Path = Path()) -> str:
    """Absolute path of a program.

    Args:
        option: The codec and option that name the program, such as "vtm: encoder". An error message begins with it.
        program: Name or path. A name without a slash is looked up on PATH.
        folder: Where a relative path starts.

    Raises:
        CodecError: there is no such program, or it is not executable.
    """
    name = str(program)
    path = shutil.which((folder / name).absolute() if "/" in name else name)
    if path is None:
        searched = f"in {folder.absolute()}" if "/" in name else "on PATH"
        raise CodecError(f"{option}: no program {name!r} {searched}: build or install it, or give its full path")
    return str(Path(path).absolute())


def is_scratch(folder: Path) -> bool:
    """Whether a folder is one that everything writes its temporary files into, so that its content says nothing of a codec."""
    resolved = folder.resolve()
    scratch = {Path(name).resolve() for name in (tempfile.gettempdir(), "/tmp", "/var/tmp")}
    return resolved in scratch or any(resolved.is_relative_to(name) for name in ("/dev", "/proc", "/sys"))


def folder_sha256(option: str, folder: Path) -> str:
    """SHA-256 over the names and contents of all regular files in a folder and its subfolders, as hexadecimal digits.

    Links are followed, each folder once, so that a link to a folder above does not lead in circles.

    Args:
        option: The codec and option that name the folder, such as "command: encode". An error message begins with it.
        folder: The folder.

    Raises:
        CodecError: the folder cannot be read, or holds more than MAX_FOLDER_FILES files or MAX_FOLDER_BYTES bytes.
    """
    files: dict[str, Path] = {}
    size = 0
    try:
        for path in walk_files(folder, lambda path: path.name in UNHASHED_FOLDERS and path.is_dir()):
            files[path.relative_to(folder).as_posix()] = path
            size += path.stat().st_size
            if len(files) > MAX_FOLDER_FILES or size > MAX_FOLDER_BYTES:
                raise CodecError(
                    f"{option}: the folder {folder} holds more than {MAX_FOLDER_FILES} files or {MAX_FOLDER_BYTES >> 30} GiB, too "
                    "many to be hashed: name the files that the program reads, or a folder of these alone"
                )
        lines = [f"{file_sha256(path)} {name}\n" for name, path in sorted(files.items())]
    except OSError as error:
        raise CodecError(f"{option}: the folder {folder} cannot be read: {error}: make it readable, or name files") from error
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def run_program(
    codec: str, role: Literal["encoder", "decoder"], arguments: Sequence[str | Path], folder: Path, seconds: float
) -> None:
    """Run a program to its end. No process of its group outlives the call, even if it is interrupted.

    Args:
        codec: The codec's name, for messages.
        role: Whether the program encodes or decodes, for messages.
        arguments: The program's path, then its arguments. No shell sees them.
        folder: Working directory of the program.
        seconds: How long the program may run.

    Raises:
        ProgramError: the program fails, or runs for longer.
        CodecError: the program cannot be started.
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
        finally:  # This also ends the program after a KeyboardInterrupt, and children that it left behind.
            _kill_group(process)
        if code:
            outcome = f"ended with code {code}" if code > 0 else f"was killed by signal {-code}"
            raise ProgramError(f"the {role} {program.name} {outcome}", _tail(stderr, stdout))


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for the files of one call, as a context manager that gives its path and removes it at the end."""
    return tempfile.TemporaryDirectory(prefix="icmbench-", ignore_cleanup_errors=True)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # The group may be empty already. On macOS, a group of nothing but zombies raises PermissionError.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(*files: IO[bytes]) -> str:
    """The end of the first file that is not empty."""
    for file in files:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4 * _TAIL_CHARACTERS))  # A character has at most 4 bytes.
        text = file.read().decode(errors="replace").strip()
        if text:
            return "\n".join(text[-_TAIL_CHARACTERS:].splitlines()[-_TAIL_LINES:])
    return ""
