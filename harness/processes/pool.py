"""A pool of worker processes on this machine, and perhaps of processes that hold the models for them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from icmbench.harness.config.devices import VISIBLE
from icmbench.harness.config.errors import UserError
from icmbench.harness.guests.families import environment
from icmbench.harness.processes.estimate import print_progress
from icmbench.harness.processes.executors import UnitOutcome
from icmbench.harness.processes.model_processes import ModelProcesses
from icmbench.harness.processes.retries import RetryPolicy, failed_unit
from icmbench.harness.processes.workers import Worker, WorkerDied, WorkerOverdue, wait
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.loop import WorkUnit
from icmbench.harness.work.outcome import Outcome
from icmbench.tasks.models.threads import usable_cpus

MAX_LOSSES = 2  # Workers that a unit of one series may lose before it is reported as failed.
MAX_FAILED_STARTS = 2  # Failed starts tolerated before any worker has come up.
STOPPED_SECONDS = 5.0  # A parent that wakes so much later than it wanted was stopped itself, and its workers with it.
THREAD_COUNT_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Staff:
    """Which processes compute.

    Attributes:
        workers: processes that take units of work; they encode and decode.
        models: processes that hold the task models, and the codecs on a GPU; with 0, each worker holds all of them itself.
        shares: whether each of `models` holds a share of the task models instead of all of them.
        gpus: GPUs that are dealt to those that hold models, as CUDA_VISIBLE_DEVICES names them; by default all see the same ones.
    """

    workers: int
    models: int = 0
    shares: bool = False
    gpus: tuple[str, ...] = ()

    def describe(self, units: int) -> str:
        """These processes in words; no more workers are started than there are units of work."""
        workers = min(self.workers, units)
        coders = f"{workers} coders" if workers > 1 else "one coder"
        if self.models:
            return f"{coders} and {self.models} model processes" if self.models > 1 else f"{coders} and one model process"
        return f"{workers} workers" if workers > 1 else "one worker"

    @property
    def worker_threads(self) -> int:
        """Threads of libraries in each worker: an equal share of the usable CPUs, or one if it only codes."""
        return 1 if self.models else max(1, usable_cpus() // self.workers)

    @property
    def model_threads(self) -> int:
        """Threads of libraries in each process that holds models: an equal share of the CPUs that no coder takes."""
        return max(1, (usable_cpus() - self.workers) // max(1, self.models))


def process_pool(bench: Bench, units: Sequence[WorkUnit], keep: bool, command: str, staff: Staff) -> Iterator[UnitOutcome]:
    """Compute units in several processes.

    A worker that dies (killed, a crashing library, out of memory) or exceeds the experiment's `timeout` is replaced, and its unit
    is tried again or reported as failed by the rules of `RetryPolicy`.

    Args:
        bench: the experiment's codecs, tasks and store.
        units: what to compute.
        keep: whether to store every reconstruction as a lossless picture.
        command: under this name the processes say what they do; see `icmbench.harness.processes.heartbeats`.
        staff: how many processes; no more workers are started than there are units.

    Yields:
        Each unit with its outcome, in the order in which they end.

    Raises:
        UserError: worker processes cannot start.
    """
    with ExitStack() as stack:
        models = None
        if staff.models:
            threads = dict.fromkeys(THREAD_COUNT_VARIABLES, str(staff.model_threads))
            models = stack.enter_context(ModelProcesses(bench, staff.models, staff.gpus, command, threads, staff.shares))
        yield from _Pool(bench, keep, command, staff, models).compute(units)


class _Pool:
    """The workers of one run, and the units that wait for them."""

    def __init__(self, bench: Bench, keep: bool, command: str, staff: Staff, models: ModelProcesses | None) -> None:
        self._bench, self._keep, self._command, self._staff, self._models = bench, keep, command, staff, models
        self._policy = RetryPolicy(bench.experiment.timeout, MAX_LOSSES, MAX_FAILED_STARTS)
        self._waiting: list[WorkUnit] = []
        self._workers: list[Worker] = []

    def compute(self, units: Sequence[WorkUnit]) -> Iterator[UnitOutcome]:
        """Yield each unit with its outcome as it ends."""
        self._waiting = list(reversed(units))
        try:
            for index in range(min(self._staff.workers, len(units))):
                self._workers.append(self._start(index))
            while self._waiting or any(worker.unit for worker in self._workers):
                self._give_units()
                self._wait()
                if self._models is not None:
                    self._models.replace_dead()
                for index in range(len(self._workers)):
                    current = self._workers[index].unit
                    outcome = self._collect(index)
                    if outcome is not None and current is not None:
                        yield current, outcome
        finally:
            for worker in self._workers:
                worker.stop()

    def _start(self, index: int) -> Worker:
        """Start a worker, which sees one of the GPUs that are dealt if it holds models itself."""
        variables = dict.fromkeys(THREAD_COUNT_VARIABLES, str(self._staff.worker_threads))
        deals = self._staff.gpus and not self._staff.models
        if deals:
            variables[VISIBLE] = self._staff.gpus[index % len(self._staff.gpus)]
        with environment(variables):  # Spawned children read it before numpy and torch start.
            worker = Worker(self._bench, self._keep, self._command, self._models.address if self._models else None)
        if deals:
            print_progress(f"worker {index + 1} (process {worker.process.pid}) has GPU {variables[VISIBLE]}")
        return worker

    def _give_units(self) -> None:
        for worker in self._workers:
            if self._waiting and worker.idle:
                unit = self._waiting.pop()
                worker.give(unit, self._time_limit(unit))

    def _time_limit(self, unit: WorkUnit) -> float:
        """Seconds that a worker may take for a unit.

        A coder also waits for the models while they serve the others, and while one that was lost is replaced. Model processes
        limit the time of each request themselves, so that the longer limit of the coder only ends a codec that hangs.
        """
        limit = self._policy.time_limit(unit)
        if self._models is None:
            return limit
        return limit * (1 + math.ceil(self._staff.workers / self._staff.models)) + self._models.replacement_seconds

    def _wait(self) -> None:
        """Wait for a message. If this process was stopped meanwhile (SIGSTOP), its workers were too: their time is extended."""
        start = time.monotonic()
        wait(self._workers)
        late = time.monotonic() - start - 1.0  # `wait` returns after a second at most.
        if late > STOPPED_SECONDS:
            for worker in self._workers:
                worker.deadline += late

    def _collect(self, index: int) -> Outcome | None:
        """The outcome of a worker's unit, if there is one now; a worker that was lost is replaced."""
        worker = self._workers[index]
        unit = worker.unit
        try:
            return worker.collect()
        except (WorkerDied, WorkerOverdue) as error:
            worker.stop()
            if self._policy.cannot_start(any_worker_up=any(each.ready for each in self._workers)):
                advice = "call run() of a script below `if __name__ == '__main__':`"
                raise UserError(f"worker processes cannot start ({error}): {advice}") from None
            outcome = self._handle_loss(unit, error) if unit else None
            self._workers[index] = self._start(index)
            return outcome

    def _handle_loss(self, unit: WorkUnit, error: WorkerDied | WorkerOverdue) -> Outcome | None:
        """Queue what runs instead of a lost worker's unit; the unit's outcome if nothing does."""
        overdue = isinstance(error, WorkerOverdue)
        replacements = self._policy.after_timeout(unit) if overdue else self._policy.after_loss(unit)
        self._waiting += replacements
        if replacements:
            return None
        return failed_unit(self._bench, unit, self._policy.overdue_reason if overdue else f"{error}: run the same command again")
