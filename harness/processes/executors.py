"""Where units of work run: in this process or in a pool of processes. Both run the same loop."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from icmbench.harness.config.errors import UserError
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.loop import Progress, WorkUnit, compute_units
from icmbench.harness.work.outcome import Outcome
from icmbench.harness.work.retries import RetryPolicy, failed_unit
from icmbench.harness.work.workers import Worker, WorkerDied, WorkerOverdue, stdout_to_stderr, wait
from icmbench.tasks.models.threads import usable_cpus

MAX_LOSSES = 2  # Workers that a unit of one series may lose before it is reported as failed.
MAX_FAILED_STARTS = 2  # Failed starts tolerated before any worker has come up.
THREAD_COUNT_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def in_process(bench: Bench, units: Sequence[WorkUnit], keep: bool, progress: Progress) -> Iterator[Outcome]:
    """Compute units one after the other in this process.

    Args:
        bench: the experiment's codecs, tasks and store.
        units: what to compute.
        keep: whether to store every reconstruction as a lossless picture.
        progress: called as images are done.

    Yields:
        The outcome of each unit.
    """
    with stdout_to_stderr():
        yield from compute_units(bench, units, keep, progress)


def process_pool(bench: Bench, units: Sequence[WorkUnit], keep: bool, progress: Progress, workers: int) -> Iterator[Outcome]:
    """Compute units in several processes, each of which gets an equal share of the usable CPUs as threads.

    A worker that dies (killed, a crashing library, out of memory) or exceeds the experiment's `timeout` is replaced, and its unit
    is tried again or reported as failed by the rules of `RetryPolicy`.

    Args:
        bench: the experiment's codecs, tasks and store.
        units: what to compute.
        keep: whether to store every reconstruction as a lossless picture.
        progress: called when a unit is done.
        workers: number of processes; no more are started than there are units.

    Yields:
        The outcome of each unit, in the order in which they end.

    Raises:
        UserError: worker processes cannot start.
    """
    policy = RetryPolicy(bench.experiment.timeout, MAX_LOSSES, MAX_FAILED_STARTS)
    waiting = list(reversed(units))
    pool: list[Worker] = []
    with _thread_count(max(1, usable_cpus() // workers)):  # Spawned children read it before numpy and torch start.
        try:
            for _ in range(min(workers, len(units))):
                pool.append(Worker(bench, keep))
            while waiting or any(worker.unit for worker in pool):
                for worker in pool:
                    if waiting and worker.idle:
                        unit = waiting.pop()
                        worker.give(unit, policy.time_limit(unit))
                wait(pool)
                for index, worker in enumerate(pool):
                    current = worker.unit
                    try:
                        outcome = worker.collect()
                    except (WorkerDied, WorkerOverdue) as error:
                        worker.stop()
                        if policy.cannot_start(any_worker_up=any(each.ready for each in pool)):
                            advice = "call run() of a script below `if __name__ == '__main__':`"
                            raise UserError(f"worker processes cannot start ({error}): {advice}") from None
                        outcome = _handle_loss(bench, policy, current, error, waiting) if current else None
                        pool[index] = Worker(bench, keep)
                    if outcome is not None and current is not None:
                        progress(current.images)
                        yield outcome
        finally:
            for worker in pool:
                worker.stop()


def _handle_loss(
    bench: Bench, policy: RetryPolicy, unit: WorkUnit, error: WorkerDied | WorkerOverdue, waiting: list[WorkUnit]
) -> Outcome | None:
    """Queue what runs instead of a lost worker's unit; the unit's outcome if nothing does."""
    overdue = isinstance(error, WorkerOverdue)
    replacements = policy.after_timeout(unit) if overdue else policy.after_loss(unit)
    waiting += replacements
    if replacements:
        return None
    return failed_unit(bench, unit, policy.overdue_reason if overdue else f"{error}: run the same command again")


@contextmanager
def _thread_count(threads: int) -> Iterator[None]:
    """Set the environment variables by which libraries choose their number of threads, and restore them in the end."""
    before = {name: os.environ.get(name) for name in THREAD_COUNT_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_COUNT_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def make_units(bench: Bench, workers: int) -> list[WorkUnit]:
    """Divide an experiment into units of work.

    A block stays whole, with all its series in one unit, if there is one worker, if there are blocks enough, or if a task keeps
    features of the originals. Otherwise its series are divided so that there are about four units per worker.

    Args:
        bench: the experiment's datasets, codecs and tasks.
        workers: number of workers that will compute the units.

    Returns:
        Units that together hold every cell once, block by block.

    Raises:
        UserError: no task scores any image.
    """
    units = []
    for dataset in bench.datasets:
        blocks = bench.blocks(dataset)
        indices = tuple(range(len(bench.series)))
        if not bench.task_labels(dataset):
            continue
        split = 1 if bench.shares_originals(dataset) or workers == 1 else max(1, -(-4 * workers // len(blocks)))
        size = -(-len(indices) // min(split, len(indices)))
        units += [WorkUnit(block, indices[i : i + size]) for block in blocks for i in range(0, len(indices), size)]
    if not units:
        raise UserError("nothing to do: no dataset has images")
    return units
