"""Many requests to an object store at once, where each of them waits for the network; on a disk they go one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

PARALLEL_REQUESTS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_remote(fs: AbstractFileSystem) -> bool:
    """Whether each access to a file system waits for the network."""
    return not isinstance(fs, LocalFileSystem)


def remove_all(fs: AbstractFileSystem, paths: Sequence[str]) -> None:
    """Remove files, as far as they are there; object stores remove many by one request.

    Args:
        fs: the file system.
        paths: the files as the file system names them.

    Raises:
        Exception: what the file system raises if it refuses.
    """
    if len(paths) > 1 and is_remote(fs):
        try:
            fs.rm(list(paths))
            return
        except FileNotFoundError:  # Another process has removed some of them; others may be there still.
            pass
    for path in paths:
        with suppress(FileNotFoundError):
            fs.rm_file(path)


def for_each(fs: AbstractFileSystem, call: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The result of a call for each item, in order.

    Args:
        fs: where the calls read or write. On an object store up to `PARALLEL_REQUESTS` of them run in threads at once, no more
            ahead of the one whose result is awaited, so that few results are in memory.
        call: reads or writes what one item stands for.
        items: the arguments.

    Raises:
        Exception: what a call raised; calls that have not begun are then left out.
    """
    if not is_remote(fs):
        yield from map(call, items)
        return
    waiting = list(items)
    with ThreadPoolExecutor(PARALLEL_REQUESTS, "requests") as pool:
        for start in range(0, len(waiting), PARALLEL_REQUESTS):
            yield from pool.map(call, waiting[start : start + PARALLEL_REQUESTS])
