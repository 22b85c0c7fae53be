"""One thread that works a step ahead of the task models: reads, hashes, writes files, and runs codecs that keep to one thread."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from icmbench.tasks.models.threads import cpu_threads

Item = TypeVar("Item", bound=tuple[Any, ...])
Result = TypeVar("Result")


class Prefetcher:
    """`with Prefetcher() as ahead`. Where this process may use one thread only, all calls run when they are asked for, in turn."""

    def __init__(self, threads: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(1, "ahead") if cpu_threads(threads) > 1 else None

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=kind is not None)

    def submit(self, call: Callable[..., Result], *arguments: Any) -> Callable[[], Result]:
        """Starts a call after those submitted before; what is returned waits for its result, or raises its exception."""
        if self._pool is not None:
            return self._pool.submit(call, *arguments).result
        done: Future[Result] = Future()
        try:
            done.set_result(call(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done.result

    def over(
        self, items: Iterable[Item], prepare: Callable[..., Result], then: Callable[[], Any] | None = None
    ) -> Iterator[tuple[Item, Callable[[], Result]]]:
        """Each item with a call that gives `prepare(*item)`. While one item is used the next one is prepared, and after the last
        one `then` is called."""
        if self._pool is None:
            yield from ((item, functools.partial(prepare, *item)) for item in items)
            return
        current: tuple[Item, Callable[[], Result]] | None = None
        for item in items:
            following = item, self._pool.submit(prepare, *item).result
            if current is not None:
                yield current
            current = following
        if then is not None:
            self._pool.submit(then)
        if current is not None:
            yield current
