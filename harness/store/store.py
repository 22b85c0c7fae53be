"""The run folder: Parquet files that are whole or absent, on any file system that fsspec speaks.

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
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from icmbench.harness.config.errors import UserError

_TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-\d+$")
_counter = itertools.count()


class Store:
    """Files below one root. Picklable; holds nothing but the address."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        try:
            self.fs, path = fsspec.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            remedy = "; python -m pip install 'icmbench[s3]'" if self.root.startswith("s3:") else ""
            raise UserError(f"{self.root}: no file system for it here ({error}){remedy}") from error
        self.path = path.rstrip("/")

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.root,)

    def full(self, name: str) -> str:
        return f"{self.path}/{name}"

    def exists(self, name: str) -> bool:
        with self._reached():
            return bool(self.fs.exists(self.full(name)))

    def names(self, folder: str) -> list[str]:
        """Names of the files of a folder, sorted; none where it is absent."""
        try:
            with self._reached():
                found = self.fs.ls(self.full(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(f"{folder}/{path.rpartition('/')[2]}" for path in found)

    def size(self, name: str) -> int:
        return int(self.fs.size(self.full(name)))

    def write(self, name: str, data: bytes, replace: bool = True) -> bool:
        """Put a whole file. With `replace=False` the first one written wins: False says that another was there."""
        target = self.full(name)
        with writing(target):
            if not isinstance(self.fs, LocalFileSystem):
                with self._reached():
                    return _put(self.fs, target, data, replace)
            return _write_local(Path(target), data, replace)

    def read(self, name: str) -> bytes:
        with self._reached():
            data = self.fs.cat_file(self.full(name))
        return data if isinstance(data, bytes) else bytes(data)

    def write_table(self, name: str, table: pa.Table, replace: bool = True) -> bool:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        return self.write(name, buffer.getvalue(), replace)

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        data = self.read(name)
        try:
            file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
            return file.read(columns=list(columns) if columns is not None else None)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"{self.full(name)} is damaged ({why}): delete it and run the same command again") from error

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode())

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turns what the client of an object store raises, a family of its own for each, into one sentence."""
        try:
            yield
        except (OSError, UserError):
            raise
        except Exception as error:
            if isinstance(self.fs, LocalFileSystem):
                raise
            why = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{self.root} cannot be reached ({why}): check address, credentials and network; what is there is kept"
            ) from error

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A local folder for files that are made by name: the root itself, or one whose content is uploaded in the end."""
        if isinstance(self.fs, LocalFileSystem):
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            for file in sorted(Path(folder).rglob("*")):
                if file.is_file():
                    self.write(file.relative_to(folder).as_posix(), file.read_bytes())

    def sweep(self) -> None:
        """Remove what writers on this machine that no longer live left half written."""
        if not isinstance(self.fs, LocalFileSystem):
            return
        for folder, _, files in os.walk(self.path):
            for file in files:
                match = _TEMPORARY.search(file)
                if match and match["host"] == socket.gethostname() and not _alive(int(match["pid"])):
                    Path(folder, file).unlink(missing_ok=True)


@contextmanager
def writing(target: str | Path) -> Iterator[None]:
    """Turns what a file system says into one sentence with the remedy."""
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
    """A file to write that appears under its name when all of it is on the disk; FileExistsError unless it may replace another."""
    temporary = target.with_name(f"{target.name}.tmp-{socket.gethostname()}-{os.getpid()}-{next(_counter)}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(target)
        else:
            os.link(temporary, target)  # a rename would silently win over the first writer
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def safe_name(text: str, length: int = 80) -> str:
    """Text as one path component: no separators, no control characters, no leading dot, bounded length."""
    name = re.sub(r"[^A-Za-z0-9_.=+-]", "_", text).lstrip(".")[:length]
    return name or "_"


def to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows of numbers, text, bytes and 1-D arrays as an Arrow table; every column must be there, None is null."""
    columns = [pa.array([_plain(row[field.name], field.type) for row in rows], type=field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _plain(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and (value.ndim != 1 or pa.types.is_nested(kind.value_type)):
        return value.tolist()
    return value


def from_table(table: pa.Table, names: Iterable[str]) -> list[dict[str, Any]]:
    """The rows back: lists of numbers come as 1-D numpy arrays."""
    columns = {name: _column(table.column(name)) for name in names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _column(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not _numeric(kind.value_type) or column.null_count:
        return column.to_pylist()
    rows: list[Any] = []
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        offsets = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
        rows += [values[a:b] for a, b in itertools.pairwise(offsets)]
    return rows


def _numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
