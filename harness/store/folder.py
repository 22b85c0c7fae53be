"""A folder of files that are either whole or absent, on any file system that fsspec can use: a run folder, or a store.

On a disk a file is renamed when it is complete (`whole_files.py`), and an object store takes each in one conditional put.
"""

from __future__ import annotations

import json
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.secrets import holds_credential, redact
from icmbench.harness.store.formats import FORMAT, KEY, parse_object
from icmbench.harness.store.parallel import for_each
from icmbench.harness.store.whole_files import remove_leftovers, write_whole, writing


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
        self.fs, path = _file_system(self.root)
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

    def remove_empty(self, name: str) -> None:
        """Remove a folder that holds nothing, where the file system has folders."""
        if isinstance(self.fs, LocalFileSystem):
            with suppress(OSError):  # It is absent, or another process has just written into it.
                Path(self.full_path(name)).rmdir()

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
            return write_whole(Path(target), data, replace)

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
            files = sorted(filter(Path.is_file, Path(scratch).rglob("*")))
            list(for_each(self.fs, lambda file: self.write(file.relative_to(scratch).as_posix(), file.read_bytes()), files))

    @contextmanager
    def copy_of(self, names: Sequence[str]) -> Iterator[Path]:
        """A folder on a local disk with some of the files to read by path: this one, or a temporary copy of an object store's."""
        if isinstance(self.fs, LocalFileSystem):
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as folder:
            for name, data in zip(names, for_each(self.fs, self.read, names), strict=True):
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_bytes(data)
            yield Path(folder)

    def remove_leftovers(self) -> None:
        """Remove half-written files of writers on this machine that are no longer alive."""
        if isinstance(self.fs, LocalFileSystem):
            remove_leftovers(self.path)


def _file_system(root: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system of an address, and the folder as it names it."""
    if "://" in root and holds_credential(root):
        variables = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3, FSSPEC_<PROTOCOL>_PASSWORD for others"
        raise UserError(f"{redact(root)}: leave its credentials out and put them into environment variables ({variables})")
    # For concurrent reads of one file s3fs asks for its size first: another request for each of many small files.
    options = {"max_concurrency": 1} if root.startswith(("s3:", "s3a:")) else {}
    try:
        file_system, path = fsspec.url_to_fs(root, **options)
    except (ImportError, ValueError) as error:
        remedy = "; python -m pip install 'icmbench[s3]'" if root.startswith("s3:") else ""
        raise UserError(f"{root}: no file system for it here ({error}){remedy}") from error
    return file_system, path


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


def _put(fs: fsspec.AbstractFileSystem, target: str, data: bytes, replace: bool) -> bool:
    try:
        fs.pipe_file(target, data, mode="overwrite" if replace else "create")
    except FileExistsError:
        return False
    return True


def safe_name(text: str, length: int = 80) -> str:
    """Text as one component of a path: no separators, no control characters, no leading dot, at most `length` characters."""
    name = re.sub(r"[^A-Za-z0-9_.=+-]", "_", text).lstrip(".")[:length]
    return name or "_"
