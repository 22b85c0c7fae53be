"""A worker process: takes one unit at a time over a pipe of its own.

Nothing is shared between workers, so one that is killed leaves no lock behind that the others would wait for, and time is told by
the monotonic clock, so a clock that is set forward ends nobody.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for

import psutil

from icmbench.harness.work.bench import Bench
from icmbench.harness.work.cell import Outcome
from icmbench.harness.work.loop import WorkUnit, run_units

READY = "ready"  # a worker's first word; all others are outcomes
START = 600.0  # seconds for a process to start: imports from a slow disk
GRACE = 5.0  # and for one that is ending to end
EXHAUSTED = 137  # exit code of a worker without memory, as of one that the kernel ends for want of it


class WorkerDied(Exception):
    """A worker process ended."""

    def __init__(self, code: int | None) -> None:
        causes = {EXHAUSTED: "ran out of memory", -signal.SIGKILL: "was killed, perhaps for want of memory"}
        super().__init__(f"its worker process {causes.get(code or 0, 'died')} (exit code {code})")


class WorkerOverdue(Exception):
    """A worker process took longer than it may for its unit, or to start."""


class Worker:
    """One process with its bench. `unit` is what it is at; it takes another where `idle`."""

    def __init__(self, bench: Bench, keep: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, bench, keep))
        self.process.start()
        theirs.close()  # else nobody would see the other end close
        self.ready = False
        self.unit: WorkUnit | None = None
        self.deadline = time.monotonic() + START

    @property
    def idle(self) -> bool:
        return self.ready and self.unit is None

    def give(self, unit: WorkUnit, seconds: float) -> None:
        """Start a unit that may take so many seconds."""
        self.unit, self.deadline = unit, time.monotonic() + seconds
        with suppress(OSError):  # it has just died: `collect` will say so
            self.pipe.send(unit)

    def collect(self) -> Outcome | None:
        """The outcome of the unit, None while there is none. Raises WorkerDied or WorkerOverdue."""
        try:
            message = self.pipe.recv() if self.pipe.poll() else None
        except Exception as error:  # its end is closed, or a plug-in wrote into it
            self.process.join(GRACE)
            raise WorkerDied(self.process.exitcode) from error
        if message is None:
            if not self.process.is_alive():  # and a child of it holds the other end open
                raise WorkerDied(self.process.exitcode)
            if time.monotonic() > self.deadline:
                raise WorkerOverdue("not a word in all its time")
            return None
        if message == READY:
            self.ready, self.deadline = True, math.inf
            return None
        self.unit, self.deadline = None, math.inf
        outcome: Outcome = message
        return outcome

    def stop(self) -> None:
        """End the process, and what it started: a hanging encoder would outlive it."""
        if self.process.is_alive():  # else its number may be another's by now
            _kill_children(self.process.pid)
            self.process.kill()
            self.process.join(GRACE)
        self.pipe.close()


def wait(workers: Sequence[Worker]) -> None:
    """Until a worker has something to say or is overdue; a second at most, for those that died without a word."""
    seconds = min(worker.deadline for worker in workers) - time.monotonic()
    wait_for([worker.pipe for worker in workers], min(1.0, max(0.0, seconds) + 0.01))


@contextmanager
def quiet() -> Iterator[None]:
    """Sends to standard error what plug-ins print, their C libraries included: it must not spoil what the command prints."""
    saved = None
    with suppress(OSError, ValueError):  # one of the two may be closed
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C still holds back
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def _serve(pipe: Connection, bench: Bench, keep: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    with suppress(EOFError, ConnectionError), quiet():  # until the parent closes its end
        pipe.send(READY)
        while True:
            unit = pipe.recv()
            [outcome] = run_units(bench, [unit], keep, lambda images: None)
            if outcome.exhausted:  # what took the memory would keep it: the unit is tried in a new process
                os._exit(EXHAUSTED)
            pipe.send(outcome)


def _die_with(parent: int) -> None:
    """A worker whose parent was killed must not go on computing beside the next run."""
    while os.getppid() == parent:
        time.sleep(1)
    _kill_children(os.getpid())
    os._exit(1)


def _kill_children(pid: int | None) -> None:
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
