"""A thread that works ahead of the task models: it reads and hashes images, writes files, and runs single-threaded codecs.

Where files lie on an object store, other threads write them, so that neither the models nor this thread wait for the network.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from icmbench.tasks.models.threads import cpu_threads

Item = TypeVar("Item", bound=tuple[Any, ...])
Result = TypeVar("Result")


class Prefetcher:
    """Runs calls in a second thread, one after the other: `with Prefetcher() as prefetcher: ...`

    If this process may use one CPU thread only, there is no second thread, and every call runs in the caller's.

    Args:
        threads: CPU threads that this process may use; None for those of `cpu_threads`.
        writers: further threads that write files, for object stores, where a write is little work and a long wait.
    """

    def __init__(self, threads: int | None = None, writers: int = 0) -> None:
        self._pool = ThreadPoolExecutor(1, "prefetch") if cpu_threads(threads) > 1 else None
        self._writers = [ThreadPoolExecutor(1, f"write-{number}") for number in range(writers)]
        self._next_writer = itertools.cycle(self._writers)
        self._writer_of: WeakKeyDictionary[Any, ThreadPoolExecutor] = WeakKeyDictionary()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pool in (self._pool, *self._writers):
            if pool is not None:
                pool.shutdown(wait=kind is None, cancel_futures=kind is not None)

    def submit(self, call: Callable[..., Result], *arguments: Any) -> Callable[[], Result]:
        """Queue a call behind those submitted before.

        Returns:
            A function that waits for the result of the call, and returns it or raises its exception.
        """
        if self._pool is not None:
            return self._pool.submit(call, *arguments).result
        future: Future[Result] = Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future.result

    def write(self, owner: Any, call: Callable[[], Result]) -> Callable[[], Result]:
        """Queue a call that writes files behind those of the same owner, and, without writers, behind all calls.

        Returns:
            As `submit`.
        """
        if not self._writers:
            return self.submit(call)
        if owner not in self._writer_of:
            self._writer_of[owner] = next(self._next_writer)
        return self._writer_of[owner].submit(call).result

    def one_ahead(
        self, items: Iterable[Item], prepare: Callable[..., Result], after_last: Callable[[], Any] | None = None
    ) -> Iterator[tuple[Item, Callable[[], Result]]]:
        """Iterate over items while the thread prepares the next one.

        Args:
            items: tuples of arguments for `prepare`.
            prepare: called once per item, in order.
            after_last: called by the thread when all items are prepared, in order to use the time of the last one; not called
                if there is no second thread.

        Yields:
            Each item with a function that returns the result of `prepare(*item)` or raises its exception.
        """
        if self._pool is None:
            yield from ((item, functools.partial(prepare, *item)) for item in items)
            return
        current: tuple[Item, Callable[[], Result]] | None = None
        for item in items:
            following = item, self._pool.submit(prepare, *item).result
            if current is not None:
                yield current
            current = following
        if after_last is not None:
            self._pool.submit(after_last)
        if current is not None:
            yield current
