"""Signs of life: a small file per process of a running command, rewritten every few seconds.

    progress/<command>/command.json               what there is to do, and how much of it is done
    progress/<command>/<host>-<pid>.json          what one worker process does

`icmbench status` and the progress lines of the command itself read them, on one machine as on a cluster. They go when the command
ends; those of a command that was killed stay until the next one in the same run folder removes them.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
from fsspec.implementations.local import LocalFileSystem

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.leases import start_of_process
from icmbench.harness.store.whole_files import process_space
from icmbench.harness.work.activity import Activity

PROGRESS = "progress"
COMMAND = "command.json"
BEAT_SECONDS = 2.0  # How often each process rewrites its file on a disk.
STORE_BEAT_SECONDS = 15.0  # The same in an object store, where each time costs a request.
LARGE_PROCESS = 4 * 2**30  # Bytes of memory.
SILENT_SECONDS = 30.0  # A process that was not heard of for so long is said to be silent.


@dataclass(frozen=True)
class Beat:
    """The file of one process as it was read.

    Attributes:
        name: the file, below the run folder.
        facts: its content: `host`, `machine`, `pid`, `started`, `beat` (seconds since 1970), `memory` (bytes), and what the
            process says.
    """

    name: str
    facts: Mapping[str, Any]

    @property
    def age(self) -> float:
        """Seconds since the file was written, by this machine's clock; never negative, as clocks differ."""
        return max(0.0, time.time() - float(self.facts["beat"]))

    @property
    def state(self) -> str:
        """One of "works", "silent" (it lives, but did not write for a while) and "dead"; for another machine, never the last."""
        is_here = self.facts.get("machine") == process_space()
        if is_here and start_of_process(int(self.facts["pid"])) != self.facts.get("started"):
            return "dead"
        return "works" if self.age < SILENT_SECONDS else "silent"


@dataclass(frozen=True)
class RunningCommand:
    """A command and its workers as they were read.

    Attributes:
        command: what the parent process wrote.
        workers: what each process that computes wrote.
    """

    command: Beat
    workers: list[Beat] = field(default_factory=list)


@contextmanager
def beating(folder: Folder, name: str, facts: Callable[[], Mapping[str, Any]], with_children: bool = True) -> Iterator[None]:
    """Rewrite the file of this process every few seconds while the context lasts; then remove it.

    A disk that is full or cut off ends nothing here: the next beat may succeed.

    Args:
        folder: the run folder.
        name: the file, below the run folder.
        facts: returns what to write beside the identity of this process.
        with_children: whether the memory of its children counts; not for a parent of workers, which have files of their own.
    """
    identity = {
        "host": socket.gethostname(),
        "machine": process_space(),
        "pid": os.getpid(),
        "started": start_of_process(os.getpid()),
    }
    stopped = threading.Event()
    interval = BEAT_SECONDS if isinstance(folder.fs, LocalFileSystem) else STORE_BEAT_SECONDS

    def beat() -> None:
        with suppress(OSError, UserError):
            folder.write_json(name, {**identity, **facts(), "memory": memory(with_children), "beat": time.time()})

    def keep_beating() -> None:
        beat()
        while not stopped.wait(interval):
            beat()

    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(interval)
        with suppress(OSError, UserError):
            folder.remove(name)


@contextmanager
def stage(folder: Folder, experiment: str, doing: str) -> Iterator[None]:
    """Say, while the context lasts, what a command does before or after units of work are computed.

    Args:
        folder: the run folder.
        experiment: name of the experiment.
        doing: such as "makes the tables".
    """
    command, since = new_command(), time.time()
    facts = {"experiment": experiment, "since": since, "stage": doing}
    try:
        with beating(folder, f"{PROGRESS}/{command}/{COMMAND}", lambda: facts):
            yield
    finally:
        remove_command(folder, command)


def worker_beating(folder: Folder, command: str, activity: Activity) -> Any:
    """The context in which a process that computes writes its file.

    Args:
        folder: the run folder.
        command: name of the command, as `new_command` returns it.
        activity: counts of this process.
    """
    return beating(folder, f"{PROGRESS}/{command}/{socket.gethostname()}-{os.getpid()}.json", activity.snapshot)


def new_command() -> str:
    """A name for the command that this process carries out, which no other has."""
    return f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"


def remove_command(folder: Folder, command: str) -> None:
    """Remove the files of a command that has ended, those of killed workers too."""
    with suppress(OSError, UserError):
        for name in folder.names(f"{PROGRESS}/{command}"):
            folder.remove(name)
        folder.remove_empty(f"{PROGRESS}/{command}")
        folder.remove_empty(PROGRESS)


def remove_dead_commands(folder: Folder) -> None:
    """Remove the files of commands of this machine that were killed."""
    for running in running_commands(folder):
        if running.command.state == "dead":
            remove_command(folder, running.command.name.split("/")[1])


def running_commands(folder: Folder) -> list[RunningCommand]:
    """All commands that left signs in a run folder, with their workers; files that cannot be read are passed over."""
    commands = []
    for place in folder.names(PROGRESS):
        command = _read(folder, f"{place}/{COMMAND}")
        if command is not None:
            commands.append(RunningCommand(command, workers_of(folder, place.rpartition("/")[2])))
    return commands


def workers_of(folder: Folder, command: str) -> list[Beat]:
    """Signs of the processes that compute for a command."""
    names = [name for name in folder.names(f"{PROGRESS}/{command}") if name.endswith(".json") and not name.endswith(COMMAND)]
    return [beat for beat in (_read(folder, name) for name in names) if beat is not None]


def memory(with_children: bool = True) -> int:
    """Bytes of memory of this process, and of its children if they count.

    Pages that processes share are divided among them where the system tells. To find that out of a large process would take the
    system long, so what a process of more than `LARGE_PROCESS` shares counts in full.
    """
    total = 0
    with suppress(psutil.Error, OSError):
        this = psutil.Process()
        for process in [this, *(this.children(recursive=True) if with_children else [])]:
            with suppress(psutil.Error, OSError):
                resident = process.memory_info().rss
                total += int(resident if resident > LARGE_PROCESS else getattr(process.memory_full_info(), "pss", resident))
    return total


def _read(folder: Folder, name: str) -> Beat | None:
    try:
        facts = folder.read_json(name)
    except UserError:
        return None
    is_whole = isinstance(facts.get("pid"), int) and isinstance(facts.get("beat"), float)
    return Beat(name, facts) if is_whole else None
