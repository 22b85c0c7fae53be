"""Files on a local or shared disk that are either whole or absent.

write to a temporary name -> fsync -> rename
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from icmbench.harness.config.errors import UserError

_TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-\d+$")
_counter = itertools.count()
STALE_LOCK_SECONDS = 30.0  # A rename takes milliseconds, so the owner of an older lock has died.


class WriteRefusedError(UserError):
    """The file system lets nobody write there, or not this user, but may let it read."""


@contextmanager
def writing(target: str | Path) -> Iterator[None]:
    """Turn an error of the file system while a file is written into one sentence with the remedy.

    Args:
        target: the file or folder that is written, named in the sentence.

    Raises:
        WriteRefusedError: the file system is read-only, or permission is denied, as by an object store that answers 403.
        UserError: instead of any other OSError.
    """
    try:
        yield
    except OSError as error:
        is_refused = isinstance(error, PermissionError) or error.errno == errno.EROFS
        is_refused |= str(error).startswith("Forbidden")  # What gcsfs says.
        kind = WriteRefusedError if is_refused else UserError
        remedy = {
            errno.ENOSPC: "free some disk space and run the same command again",
            errno.EROFS: "choose a folder that can be written",
            errno.EACCES: "choose a folder that can be written",
            errno.EPERM: "choose a folder that can be written",
        }.get(error.errno or 0, "what was written before is kept; run the same command again")
        raise kind(f"cannot write {target} ({error.strerror or error}): {remedy}") from error


def write_whole(target: Path, data: bytes, replace: bool) -> bool:
    """Write a file, and the folders above it.

    Returns:
        False if `replace` is False and the file existed, so that nothing was written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(target, replace) as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


@contextmanager
def whole_file(target: Path, replace: bool = True) -> Iterator[IO[bytes]]:
    """A binary file to write. It appears under its name once everything is on the disk, and not at all if an error interrupts.

    Args:
        target: path of the file; its folder exists.
        replace: whether an existing file is replaced.

    Raises:
        FileExistsError: `replace` is False and the file exists.
    """
    temporary = target.with_name(f"{target.name}.tmp-{process_space()}-{os.getpid()}-{next(_counter)}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(target)
        else:
            _rename_if_absent(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _rename_if_absent(temporary: Path, target: Path) -> None:
    """Give a file its name unless that name is taken.

    Raises:
        FileExistsError: there is a file of that name.
    """
    try:
        os.link(temporary, target)  # Fails if the target exists; a rename would silently replace it.
    except FileExistsError:
        raise
    except OSError:  # A disk without hard links, such as exFAT and some network disks.
        with _locked(target):
            if target.exists():
                raise FileExistsError(target) from None
            temporary.replace(target)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold a lock file beside `target`. One whose owner died is taken over after `STALE_LOCK_SECONDS`."""
    lock = target.with_name(f"{target.name}.lock")
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            with suppress(FileNotFoundError):
                if time.time() - lock.stat().st_mtime > STALE_LOCK_SECONDS:
                    lock.unlink()
            time.sleep(0.01)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def process_space() -> str:
    """Name of this machine and, on Linux, the number of its space of process ids.

    Containers may share a name but not their process ids, so that one must not judge by an id whether a writer of another lives.
    """
    try:
        number = "".join(filter(str.isdecimal, str(Path("/proc/self/ns/pid").readlink())))
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}.{number}"


def is_alive(pid: int) -> bool:
    """Whether a process of this space of process ids exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_leftovers(root: str) -> None:
    """Remove half-written files below a folder, of writers in this space of process ids that are no longer alive."""
    for folder, _, files in os.walk(root):
        for file in files:
            match = _TEMPORARY.search(file)
            if match and match["host"] == process_space() and not is_alive(int(match["pid"])):
                Path(folder, file).unlink(missing_ok=True)
