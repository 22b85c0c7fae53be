"""A process and everything that it started, which end together: encoders, their children, and those that left their session.

A worker is started with a mark in its environment, which all that it starts inherit, also a daemon whose parent has ended and which
therefore belongs to nobody's process tree any more. A guest that a worker starts is a family within its family: its mark begins
with the worker's.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker

import psutil

MARK = "ICMBENCH_FAMILY"  # Environment variable that names the worker to which a process belongs.


@contextmanager
def new_family() -> Iterator[str]:
    """While the context lasts, processes that are started belong to a new family. Yields its mark, which no other worker has."""
    # Python starts this helper of all workers with the first one; it would otherwise belong to that one's family.
    resource_tracker.ensure_running()
    mark = uuid.uuid4().hex
    with environment({MARK: mark}), _interrupts_blocked():
        yield mark


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Hold Ctrl-C back while the context lasts, also from the processes that are started meanwhile.

    A terminal sends it to all of them, and one that is still importing would print a traceback. `ignore_interrupts` ends it there.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def marked_environment(variables: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Environment variables of a process that founds a family within the one to which this process belongs, and its mark.

    Args:
        variables: the variables that it gets anyway.
    """
    mark = f"{os.environ.get(MARK, '')}/{uuid.uuid4().hex}"
    return {**variables, MARK: mark}, mark


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent process, which ends this one in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started meanwhile, and restore them in the end."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def kill_family(mark: str, pid: int | None = None) -> None:
    """Kill everything that a worker started, whether the worker still lives or not.

    Args:
        mark: the worker's mark.
        pid: the worker, if it lives; it is not killed itself.
    """
    spared = {os.getpid(), pid}
    for _ in range(3):  # What was being started while the list was made is found the next time.
        found = [process for process in _members(mark, pid) if process.pid not in spared]
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        if not found:
            return


def end_with_parent() -> None:
    """Let this process, and all that it started, end once its parent was killed; otherwise they would work beside the next run."""
    parent, mark = os.getppid(), os.environ.get(MARK, "")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        kill_family(mark, os.getpid())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _members(mark: str, pid: int | None) -> list[psutil.Process]:
    """Processes with the mark in their environment, and the descendants of the worker."""
    members: dict[int, psutil.Process] = {}
    if pid is not None:
        with suppress(psutil.Error):
            members.update({process.pid: process for process in psutil.Process(pid).children(recursive=True)})
    for process in psutil.process_iter() if mark else ():
        with suppress(psutil.Error, OSError):
            theirs = process.environ().get(MARK, "")
            if (theirs == mark or theirs.startswith(f"{mark}/")) and process.status() != psutil.STATUS_ZOMBIE:
                members[process.pid] = process
    return [*members.values()]
