"""A worker process: takes one unit at a time over a pipe of its own.

Workers share no locks or queues, so that one that is killed cannot block the others. Deadlines are told by the monotonic clock, so
that a change of the system time ends no worker.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for

from icmbench.harness.guests.families import end_with_parent, ignore_interrupts, kill_family, new_family
from icmbench.harness.processes.heartbeats import worker_beating
from icmbench.harness.processes.model_address import READY_MESSAGE
from icmbench.harness.processes.model_client import ModelsAddress
from icmbench.harness.processes.output import stdout_to_stderr
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.loop import WorkUnit, compute_units
from icmbench.harness.work.outcome import Outcome

START_SECONDS = 600.0  # Seconds a worker gets to start: imports from a slow disk may take minutes.
GRACE_SECONDS = 5.0  # Seconds to wait for the exit of a worker that is ending or was killed.
OUT_OF_MEMORY_EXIT = 137  # Exit code of a worker that ran out of memory; shells report it of processes killed by the kernel.


class WorkerDied(Exception):
    """A worker process ended.

    Args:
        code: its exit code, negative for the number of a signal; None if unknown.
    """

    def __init__(self, code: int | None) -> None:
        causes = {OUT_OF_MEMORY_EXIT: "ran out of memory", -signal.SIGKILL: "was killed, perhaps for want of memory"}
        super().__init__(f"its worker process {causes.get(code or 0, 'died')} (exit code {code})")


class WorkerOverdue(Exception):
    """A worker process exceeded the time limit of its unit, or took too long to start."""


class Worker:
    """One worker process, as its parent sees it. The process is started at once.

    Args:
        bench: sent to the process.
        keep: whether to store every reconstruction as a lossless picture.
        command: under this name the process says what it does; see `icmbench.harness.processes.heartbeats`.
        models: makes the way to the processes that hold the models, in the worker; None if it holds them itself.

    Attributes:
        process: the process.
        ready: whether the process has started.
        unit: the unit that it is computing; None while it starts or waits for one.
        deadline: when it will be overdue, on the monotonic clock.
    """

    def __init__(self, bench: Bench, keep: bool, command: str, models: ModelsAddress | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, worker_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(worker_end, bench, keep, command, models))
        with new_family() as self._mark:
            self.process.start()
        worker_end.close()  # Otherwise the pipe would have no EOF when the worker ends.
        self.ready = False
        self.unit: WorkUnit | None = None
        self.deadline = time.monotonic() + START_SECONDS

    @property
    def idle(self) -> bool:
        """Whether the worker has started and has no unit."""
        return self.ready and self.unit is None

    def give(self, unit: WorkUnit, seconds: float) -> None:
        """Let an idle worker compute a unit, within a number of seconds."""
        self.unit, self.deadline = unit, time.monotonic() + seconds
        with suppress(OSError):  # If the worker has just died, `collect` will raise WorkerDied.
            self.pipe.send(unit)

    def collect(self) -> Outcome | None:
        """The outcome of the unit; None if it is not finished, or if the worker has only just started.

        Raises:
            WorkerDied: the process ended.
            WorkerOverdue: the deadline has passed.
        """
        try:
            message = self.pipe.recv() if self.pipe.poll() else None
        except Exception as error:  # The worker closed its end, or a plug-in wrote something else into the pipe.
            self.process.join(GRACE_SECONDS)
            raise WorkerDied(self.process.exitcode) from error
        if message is None:
            if not self.process.is_alive():  # The worker is dead, but its child still holds the pipe, so no EOF arrives.
                raise WorkerDied(self.process.exitcode)
            if time.monotonic() > self.deadline:
                raise WorkerOverdue("not a word in all its time")
            return None
        if message == READY_MESSAGE:
            self.ready, self.deadline = True, math.inf
            return None
        self.unit, self.deadline = None, math.inf
        outcome: Outcome = message
        return outcome

    def stop(self) -> None:
        """Kill the process and everything that it started, such as an encoder that hangs."""
        if self.process.is_alive():  # A dead process's id may belong to another process by now.
            kill_family(self._mark, self.process.pid)
            self.process.kill()
            self.process.join(GRACE_SECONDS)
        else:
            kill_family(self._mark)
        self.pipe.close()


def wait(workers: Sequence[Worker]) -> None:
    """Wait until a worker has sent a message, died or become overdue, but for a second at most.

    A death may close no pipe, if a child of the worker holds it open: hence the second.
    """
    seconds = min(worker.deadline for worker in workers) - time.monotonic()
    wait_for([worker.pipe for worker in workers], min(1.0, max(0.0, seconds) + 0.01))


def _serve(pipe: Connection, bench: Bench, keep: bool, command: str, models: ModelsAddress | None) -> None:
    """The main function of a worker process: computes units until the parent closes its end of the pipe."""
    ignore_interrupts()
    end_with_parent()
    with suppress(EOFError, ConnectionError), worker_beating(bench.folder, command, bench.activity), stdout_to_stderr():
        pipe.send(READY_MESSAGE)
        local_models = None
        while True:
            unit = pipe.recv()
            if models is not None and local_models is None:
                local_models = models.connect(bench)
            [outcome] = compute_units(bench, [unit], keep)
            if local_models is not None:
                local_models.forget_originals()
            if outcome.out_of_memory:  # Whatever took the memory may hold it; the unit is tried again in a new process.
                os._exit(OUT_OF_MEMORY_EXIT)
            pipe.send(outcome)
