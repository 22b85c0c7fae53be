"""Files that a user names: only regular ones are read, and none is replaced by what is made of it."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from icmbench.harness.config.errors import UserError


def read_bytes(path: Path, description: str) -> bytes:
    """Content of a file that the user named.

    Args:
        path: the file. Links are followed; a pipe or device is refused, because reading one may never end.
        description: what messages call the file, such as `recipe file`.

    Raises:
        UserError: there is no such file, it is no regular file, or it cannot be read.
    """
    check_regular(path, description)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the {description} ({error.strerror or error})") from None


def check_regular(path: Path, description: str) -> None:
    """Refuse what is no regular file. Raises UserError as `read_bytes` does; the file is not read."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"{path}: cannot read the {description} ({error.strerror or error})") from None
    except ValueError:  # A name with a zero byte.
        raise UserError(f"{str(path)!r}: cannot read the {description} (no file has such a name)") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise UserError(f"{path}: cannot read the {description} (it is {kind}): name a file")


def exists(path: Path) -> bool:
    """Whether there is a file or folder of this name; False too for names that no file system can hold."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def refuse_to_replace(sources: Sequence[Path], folder: Path, products: Sequence[str]) -> None:
    """Refuse to write into a folder where that would replace a file that is read, by whatever name or link.

    Args:
        sources: the files that are read.
        folder: the folder to write into; it need not exist.
        products: the names of the files and folders that are written there. Any file within such a folder may be replaced.

    Raises:
        UserError: a source is one of the products or lies within one.
    """
    for product in products:
        target = folder / product
        for file in (target, *(target.rglob("*") if target.is_dir() else ())):
            for source in sources:
                if _is_same(source, file):
                    raise UserError(
                        f"{source}: is read, and writing {target} would replace it; name another folder, or move the file"
                    )


def refuse_same_file(source: Path, target: Path, product: str) -> None:
    """Refuse to write into the file that was read, by whatever name or link.

    Args:
        source: the file that is read.
        target: the file to write; it need not exist.
        product: what is written, such as `the stream`.

    Raises:
        UserError: both are one file.
    """
    if _is_same(source, target):
        raise UserError(f"{target}: is the file {source} itself and would be lost; name another file for {product}")


def _is_same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except (OSError, ValueError):  # One of them does not exist, or cannot.
        return False
