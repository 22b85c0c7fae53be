"""How a user stops training: SIGTERM and Ctrl-C end it after the step in flight, a second Ctrl-C at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

# A terminal signals a whole group of processes, and a launcher that forwards the signal sends it twice; no user is as quick.
SAME_REQUEST_SECONDS = 0.5

NOTE = "icmbench: stops after this step and writes a checkpoint; Ctrl-C again stops at once, without one\n"


class TrainingStopped(KeyboardInterrupt):
    """The user stopped training. The message is a sentence that names the step from which the same command goes on."""


class StopRequest:
    """Whether the user asked for a stop. While the context lasts, SIGTERM and Ctrl-C are noted here instead of ending the process.

    Outside the main thread, which alone may handle signals, nothing is changed.

    Args:
        announce: whether to say on standard error that the request was understood.

    Attributes:
        requested: whether SIGTERM or Ctrl-C has arrived.
    """

    def __init__(self, announce: bool = True) -> None:
        self.requested = False
        self._announce = announce
        self._interruptible = False
        self._time = 0.0  # Of the first request, by the monotonic clock.
        self._handlers: dict[int, Any] = {}  # The handlers before, by signal.

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            if handler is not None:  # None: it was not installed by Python, which cannot put it back.
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """While the context lasts, a request raises KeyboardInterrupt, because what is computed may be repeated and takes long."""
        self._interruptible = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = not self.requested
        if first:
            self.requested, self._time = True, time.monotonic()
            if self._announce:
                # The handler may have interrupted Python's own writing, which cannot be entered twice.
                with contextlib.suppress(OSError):
                    os.write(2, NOTE.encode())
        # Job schedulers and `timeout` may repeat SIGTERM on their own; only a second Ctrl-C is surely the user's.
        again = not first and number == signal.SIGINT and time.monotonic() - self._time > SAME_REQUEST_SECONDS
        if again or self._interruptible:
            raise KeyboardInterrupt


def ignore_stop_signals(worker: int) -> None:
    """Have a process that reads photographs leave signals to the one that trains, which a terminal sends to both.

    Args:
        worker: its number, which PyTorch passes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
