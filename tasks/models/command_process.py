"""A user's program that predicts: looked up, hashed with the files that its arguments name, and run in a process group of its own.

The habits are those of the codec `command` (`codecs/process.py`), which tasks may not import: no shell, a temporary working
directory, a time limit, and no process that outlives the call. This needs a POSIX system.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import string
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from icmbench.tasks.fingerprints import file_sha256, walk_files
from icmbench.tasks.models.errors import ModelError

_TAIL_LINES, _TAIL_CHARACTERS = 20, 2000  # What an error message quotes of a program's output.
MAX_FOLDER_FILES, MAX_FOLDER_BYTES = 20_000, 50 * 2**30  # Of a folder that is hashed.
UNHASHED_FOLDERS = frozenset({"__pycache__", ".git"})  # Python writes the one when it imports, git the other.
PLACEHOLDERS = ("images", "output")


class CommandLine:
    """A checked command line.

    A program without a slash is looked up on PATH. An argument with a slash or a suffix that names a file below `folder` becomes
    the file's absolute path, and so does what follows a "=" in an argument. The same is done with a folder that an argument with a
    slash names. A literal brace is doubled.

    Args:
        line: the program and its arguments; `{images}` and `{output}` stand for folders.
        folder: where relative paths start.

    Attributes:
        sha256: hashes of the program, and of the files and folders that arguments name, by the words of the command line.

    Raises:
        ModelError: the line is malformed, lacks a placeholder, or its program is missing.
    """

    def __init__(self, line: Sequence[str], folder: Path) -> None:
        if isinstance(line, str) or not line or not all(isinstance(word, str) for word in line):
            raise ModelError(f"command: a list of words, a program and its arguments, not {line!r}: quote numbers")
        used = {name for word in line for name in _placeholders(word)}
        for name in PLACEHOLDERS:
            if name not in used:
                raise ModelError(f"command: uses {{{name}}} nowhere: pictures and predictions pass by folders of these names")
        self._program = _find_program(line[0], folder)
        self.sha256 = {line[0]: file_sha256(self._program)}
        self._arguments = [self._resolve(word, folder) for word in line[1:]]

    def run(self, values: Mapping[str, str], folder: Path, seconds: float, what: str) -> None:
        """Run the program to its end. No process of its group outlives the call, even if it is interrupted.

        Args:
            values: what the placeholders stand for.
            folder: working directory of the program.
            seconds: how long the program may run.
            what: what it works on, for messages, such as "8 pictures".

        Raises:
            ModelError: the program cannot be started, fails, or runs for longer.
        """
        name = Path(self._program).name
        arguments = [self._program, *(argument.format_map(values) for argument in self._arguments)]
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            try:
                process = subprocess.Popen(
                    arguments, cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
                )
            except OSError as error:
                raise ModelError(f"command: the program {self._program} cannot be started: {error}") from error
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                remedy = "raise timeout_seconds or timeout_seconds_per_image if it needs more"
                tail = _tail(stderr, stdout)
                raise ModelError(f"command: {name} did not end within {seconds:.3g} s, for {what} ({remedy}){tail}") from None
            finally:  # This also ends the program after a KeyboardInterrupt, and children that it left behind.
                _kill_group(process)
            if code:
                outcome = f"ended with code {code}" if code > 0 else f"was killed by signal {-code}"
                raise ModelError(f"command: {name} {outcome}, for {what}{_tail(stderr, stdout)}")

    def _resolve(self, word: str, folder: Path) -> str:
        """An argument with the path that it names made absolute, whose hash is noted."""
        for start in [0, *(match.end() for match in re.finditer("=", word))]:
            path = _named_path(word[start:], folder)
            if path is not None:
                self.sha256[word] = folder_sha256(path) if path.is_dir() else file_sha256(path)
                return word[:start] + str(path).replace("{", "{{").replace("}", "}}")
        return word


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of all regular files in a folder and its subfolders, as hexadecimal digits.

    Links are followed, each folder once, so that a link to a folder above does not lead in circles.

    Raises:
        ModelError: the folder cannot be read, or holds more than MAX_FOLDER_FILES files or MAX_FOLDER_BYTES bytes.
    """
    files: dict[str, Path] = {}
    size = 0
    try:
        for path in walk_files(folder, lambda path: path.name in UNHASHED_FOLDERS and path.is_dir()):
            files[path.relative_to(folder).as_posix()] = path
            size += path.stat().st_size
            if len(files) > MAX_FOLDER_FILES or size > MAX_FOLDER_BYTES:
                raise ModelError(
                    f"command: the folder {folder} holds more than {MAX_FOLDER_FILES} files or {MAX_FOLDER_BYTES >> 30} GiB, too "
                    "many to be hashed: name the files that the program reads, or a folder of these alone"
                )
        lines = [f"{file_sha256(path)} {name}\n" for name, path in sorted(files.items())]
    except OSError as error:
        raise ModelError(f"command: the folder {folder} cannot be read: {error}: make it readable, or name files") from error
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _find_program(name: str, folder: Path) -> str:
    """Absolute path of a program. Raises ModelError if there is none."""
    path = shutil.which((folder / name).absolute() if "/" in name else name)
    if path is None:
        searched = f"in {folder.absolute()}" if "/" in name else "on PATH"
        raise ModelError(f"command: no program {name!r} {searched}: install it, or give its full path")
    return str(Path(path).absolute())


def _placeholders(word: str) -> list[str]:
    """Names of the placeholders in one word. Raises ModelError unless they are known."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(word) if name is not None]
    except ValueError as error:
        raise ModelError(f"command: in {word!r}: {error}; a literal brace is doubled") from error
    for name in names:
        if name not in PLACEHOLDERS:
            raise ModelError(f"command: no placeholder {{{name}}} in {word!r}; known are {{images}} {{output}}")
    return names


def _named_path(name: str, folder: Path) -> Path | None:
    """The file or folder that a text without placeholders names, absolute; None if it names none."""
    try:
        if _placeholders(name):
            return None
        path = (folder / name.format()).absolute()
        if ("/" in name or path.suffix) and path.is_file():
            return path
        # A word without a slash, "./" and "../" stand for what is in the temporary working directory.
        is_named = "/" in name and not set(name) <= {".", "/"}
        return path if is_named and path.is_dir() and not _is_scratch(path) else None
    except (ModelError, ValueError, OSError):  # Half of a placeholder, or a text too long for a file's name.
        return None


def _is_scratch(folder: Path) -> bool:
    """Whether everything writes its temporary files into a folder, so that its content says nothing of the program."""
    resolved = folder.resolve()
    scratch = {Path(name).resolve() for name in (tempfile.gettempdir(), "/tmp", "/var/tmp")}
    return resolved in scratch or any(resolved.is_relative_to(name) for name in ("/dev", "/proc", "/sys"))


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # The group may be empty already. On macOS, a group of nothing but zombies raises PermissionError.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(*files: IO[bytes]) -> str:
    """The end of the first file that is not empty, ready to follow a message."""
    for file in files:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4 * _TAIL_CHARACTERS))  # A character has at most 4 bytes.
        text = file.read().decode(errors="replace").strip()
        if text:
            return ":\n" + "\n".join(text[-_TAIL_CHARACTERS:].splitlines()[-_TAIL_LINES:])
    return ""
