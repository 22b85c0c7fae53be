"""Who is at work: a small file per process, rewritten every minute while it lives.

A run holds a lease in its run folder, so that no other command with another experiment file writes there meanwhile, and one in its
store, so that `icmbench store clean` spares what it needs.
"""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.whole_files import process_space

BEAT_SECONDS = 60.0  # How often a lease is renewed.
EXPIRY_SECONDS = 600.0  # A lease that was not renewed for so long has expired: its process has died or lost its network.


@dataclass(frozen=True)
class Lease:
    """One lease as it was read.

    Attributes:
        name: the file, below the folder.
        facts: what its holder wrote into it; `owner`, `host`, `pid`, `started` and `beat` (seconds since 1970) among them.
    """

    name: str
    facts: Mapping[str, Any]

    @property
    def live(self) -> bool:
        """Whether its holder is at work: a process of this machine that exists, or one elsewhere that renewed it lately."""
        if self.facts.get("host") == process_space():
            return start_of_process(int(self.facts["pid"])) == self.facts.get("started")
        return time.time() - float(self.facts["beat"]) < EXPIRY_SECONDS


@contextmanager
def hold(folder: Folder, place: str, facts: Mapping[str, Any]) -> Iterator[str]:
    """Hold a lease while the context lasts.

    Args:
        folder: a run folder or store.
        place: the folder of the lease, below it.
        facts: what the lease says beside its owner, host, process id and time.

    Yields:
        The lease's name.
    """
    name = f"{place}/{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.json"
    identity = {"owner": user_name(), "host": process_space(), "pid": os.getpid(), "started": start_of_process(os.getpid())}
    stopped = threading.Event()

    def write() -> None:
        folder.write_json(name, {**identity, **facts, "beat": time.time()})

    def renew() -> None:
        while not stopped.wait(BEAT_SECONDS):
            try:
                write()
            except (OSError, UserError):  # A full disk must not end the run here; the next beat may succeed.
                continue

    write()
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield name
    finally:
        stopped.set()
        thread.join()
        with suppress(OSError, UserError):  # A lease that cannot be removed expires by itself.
            folder.remove(name)


def leases(folder: Folder, place: str) -> list[Lease]:
    """All readable leases, live and expired ones."""
    read = []
    for name in folder.names(place):
        facts = folder.read_json(name) if name.endswith(".json") else {}
        if isinstance(facts.get("pid"), int) and isinstance(facts.get("beat"), float):
            read.append(Lease(name, facts))
    return read


def user_name() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # A container whose user has no name.
        return str(os.getuid())


def start_of_process(pid: int) -> float | None:
    """When a process of this machine started, in seconds since 1970; None if there is no such process. Ids are used again."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
