"""A folder of files that are either whole or absent, on any file system that fsspec can use: a run folder, or a store.

write to a temporary name -> fsync -> rename          (a local or shared disk)
one conditional put                                     (an object store)
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.secrets import holds_credential, redact
from icmbench.harness.store.formats import FORMAT, KEY, check_metadata, parse_object

_TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-\d+$")
_counter = itertools.count()
STALE_LOCK_SECONDS = 30.0  # A rename takes milliseconds, so the owner of an older lock has died.


class Folder:
    """Reads and writes the files of one folder. Picklable, because it holds nothing but the folder's address.

    Files are named by their path below the folder, with slashes.

    Args:
        root: the folder's path, or its URL on a file system that fsspec can use.

    Attributes:
        root: the argument, as text.
        fs: the file system.
        path: the folder as the file system names it.

    Raises:
        UserError: the package for this kind of URL is not installed, or the URL holds a credential.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        if "://" in self.root and holds_credential(self.root):
            variables = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3, FSSPEC_<PROTOCOL>_PASSWORD for others"
            raise UserError(f"{redact(self.root)}: leave its credentials out and put them into environment variables ({variables})")
        try:
            self.fs, path = fsspec.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            remedy = "; python -m pip install 'icmbench[s3]'" if self.root.startswith("s3:") else ""
            raise UserError(f"{self.root}: no file system for it here ({error}){remedy}") from error
        self.path = path.rstrip("/")

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.root,)

    def full_path(self, name: str) -> str:
        """A file's path on the file system."""
        return f"{self.path}/{name}"

    def below(self, name: str) -> str:
        """Address of a folder below this one, as the constructor takes it."""
        return f"{self.root.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Whether a file or folder exists."""
        with explain_connection_errors(self):
            return bool(self.fs.exists(self.full_path(name)))

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted; empty if there is no such folder."""
        try:
            with explain_connection_errors(self):
                self.fs.invalidate_cache(self.full_path(folder))  # Other processes write too.
                paths = self.fs.ls(self.full_path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(f"{folder}/{path.rpartition('/')[2]}" for path in paths)

    def sizes(self, folder: str) -> dict[str, int]:
        """Size in bytes of each file in a folder, by its name below this one; empty if there is no such folder."""
        try:
            with explain_connection_errors(self):
                entries = self.fs.ls(self.full_path(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {f"{folder}/{e['name'].rpartition('/')[2]}": int(e["size"]) for e in entries if e["type"] == "file"}

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with writing(self.full_path(name)), explain_connection_errors(self), suppress(FileNotFoundError):
            self.fs.rm_file(self.full_path(name))

    def write(self, name: str, data: bytes, replace: bool = True) -> bool:
        """Write a file that appears under its name only when it is complete.

        Args:
            name: the file.
            data: its content.
            replace: whether an existing file is replaced; otherwise the first writer wins.

        Returns:
            False if `replace` is False and the file existed, so that nothing was written.

        Raises:
            UserError: the file system refused the file.
        """
        target = self.full_path(name)
        with writing(target):
            if not isinstance(self.fs, LocalFileSystem):
                with explain_connection_errors(self):
                    return _put(self.fs, target, data, replace)
            return _write_local(Path(target), data, replace)

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it is no regular file, or cannot be read.
        """
        path = self.full_path(name)
        try:
            if isinstance(self.fs, LocalFileSystem) and not stat.S_ISREG(Path(path).stat().st_mode):
                raise UserError(f"{path} is no regular file: move it away and run the same command again")
            with explain_connection_errors(self):
                data = self.fs.cat_file(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error}): check the run folder") from error
        return data if isinstance(data, bytes) else bytes(data)

    def write_table(self, name: str, table: pa.Table, replace: bool = True) -> bool:
        """Write a Parquet file with checksums and the format number; see `write`."""
        metadata = {**(table.schema.metadata or {}), KEY: str(FORMAT)}
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd", write_page_checksum=True)
        return self.write(name, buffer.getvalue(), replace)

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a Parquet file.

        Args:
            name: the file.
            columns: the columns to read; all by default.

        Raises:
            FormatError: a newer icmbench wrote the file.
            UserError: the file is damaged.
            FileNotFoundError: there is no such file.
        """
        data = self.read(name)
        try:
            file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
            check_metadata(self.full_path(name), file.schema_arrow.metadata)
            lacking = [column for column in columns or () if column not in file.schema_arrow.names]
            if lacking:
                raise ValueError(f"it has no column {lacking[0]!r}")
            return file.read(columns=list(columns) if columns is not None else None)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            cause = " ".join(str(error).split())
            raise UserError(f"{self.full_path(name)} is damaged ({cause}): delete it and run the same command again") from error

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON object with the format number; what JSON cannot hold is written as text."""
        text = json.dumps({KEY: FORMAT, **value}, indent=1, sort_keys=True, default=str)
        self.write(name, (text + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object; empty if the file is absent or damaged.

        Raises:
            FormatError: a newer icmbench wrote the file.
            UserError: it is no regular file, or cannot be read.
        """
        try:
            return parse_object(self.full_path(name), self.read(name))
        except (OSError, ValueError):
            return {}

    @contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        """A temporary folder on a local disk for code that writes files by path; in the end they appear here, each one whole."""
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
            for file in sorted(Path(scratch).rglob("*")):
                if file.is_file():
                    self.write(file.relative_to(scratch).as_posix(), file.read_bytes())

    @contextmanager
    def copy_of(self, names: Sequence[str]) -> Iterator[Path]:
        """A folder on a local disk with some of the files to read by path: this one, or a temporary copy of an object store's."""
        if isinstance(self.fs, LocalFileSystem):
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_bytes(self.read(name))
            yield Path(folder)

    def remove_leftovers(self) -> None:
        """Remove half-written files of writers on this machine that are no longer alive."""
        if not isinstance(self.fs, LocalFileSystem):
            return
        for folder, _, files in os.walk(self.path):
            for file in files:
                match = _TEMPORARY.search(file)
                if match and match["host"] == socket.gethostname() and not is_alive(int(match["pid"])):
                    Path(folder, file).unlink(missing_ok=True)


@contextmanager
def explain_connection_errors(folder: Folder) -> Iterator[None]:
    """Turn an error of an object store's client into one sentence. Each client has its own types of errors."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        if isinstance(folder.fs, LocalFileSystem):
            raise
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{folder.root} cannot be reached ({cause}): check address, credentials and network; what is there is kept"
        ) from error


@contextmanager
def writing(target: str | Path) -> Iterator[None]:
    """Turn an error of the file system while a file is written into one sentence with the remedy.

    Args:
        target: the file or folder that is written, named in the sentence.

    Raises:
        UserError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free some disk space and run the same command again",
            errno.EROFS: "choose a folder that can be written",
            errno.EACCES: "choose a folder that can be written",
        }.get(error.errno or 0, "what was written before is kept; run the same command again")
        raise UserError(f"cannot write {target} ({error.strerror or error}): {remedy}") from error


def _put(fs: fsspec.AbstractFileSystem, target: str, data: bytes, replace: bool) -> bool:
    try:
        fs.pipe_file(target, data, mode="overwrite" if replace else "create")
    except FileExistsError:
        return False
    return True


def _write_local(target: Path, data: bytes, replace: bool) -> bool:
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
    temporary = target.with_name(f"{target.name}.tmp-{socket.gethostname()}-{os.getpid()}-{next(_counter)}")
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


def is_alive(pid: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def safe_name(text: str, length: int = 80) -> str:
    """Text as one component of a path: no separators, no control characters, no leading dot, at most `length` characters."""
    name = re.sub(r"[^A-Za-z0-9_.=+-]", "_", text).lstrip(".")[:length]
    return name or "_"
