"""Where units of work run: in this process, or in a pool of processes. The loop is the same code."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.shards import cell_name
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.cell import Failure, Outcome
from icmbench.harness.work.loop import Progress, WorkUnit, run_units
from icmbench.harness.work.workers import Worker, WorkerDied, WorkerOverdue, quiet, wait

MAX_FAILED_STARTS = 2  # workers that may fail to start while none has
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def in_process(bench: Bench, units: Sequence[WorkUnit], keep: bool, progress: Progress) -> Iterator[Outcome]:
    """One unit after the other, here."""
    with quiet():
        yield from run_units(bench, units, keep, progress)


def process_pool(bench: Bench, units: Sequence[WorkUnit], keep: bool, progress: Progress, workers: int) -> Iterator[Outcome]:
    """Units in `workers` processes that share the cores: each gets an equal share of threads.

    A worker that dies (killed, a crashing library, out of memory) or takes longer than the experiment's `timeout` is replaced. Its
    unit is taken apart by series; one that dies twice more on its own, or hangs on its own, is named and the others go on.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, threads))  # spawned children read them before numpy and torch start
    limit = math.inf if bench.experiment.timeout is None else bench.experiment.timeout
    waiting = list(reversed(units))
    died: set[WorkUnit] = set()
    failed_starts = 0  # workers that did not start, since one did
    pool: list[Worker] = []
    try:
        for _ in range(min(workers, len(units))):
            pool.append(Worker(bench, keep))
        while waiting or any(worker.unit for worker in pool):
            for worker in pool:
                if waiting and worker.idle:
                    unit = waiting.pop()
                    worker.give(unit, limit * unit.images)
            wait(pool)
            for place, worker in enumerate(pool):
                at = worker.unit
                try:
                    outcome = worker.collect()
                except (WorkerDied, WorkerOverdue) as error:
                    worker.stop()
                    failed_starts = 0 if any(other.ready for other in pool) else failed_starts + 1
                    if failed_starts > MAX_FAILED_STARTS:
                        advice = "call run() of a script below `if __name__ == '__main__':`"
                        raise UserError(f"worker processes cannot start ({error}): {advice}") from None
                    outcome, instead = _lost(bench, at, error, died) if at else (None, [])
                    waiting += instead
                    pool[place] = Worker(bench, keep)
                if outcome is not None and at is not None:
                    progress(at.images)
                    yield outcome
    finally:
        for worker in pool:
            worker.stop()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _lost(
    bench: Bench, unit: WorkUnit, error: WorkerDied | WorkerOverdue, died: set[WorkUnit]
) -> tuple[Outcome | None, list[WorkUnit]]:
    """What becomes of a worker's unit: an outcome, or units to try instead. died: those that took a worker down on their own."""
    if len(unit.series) > 1:  # which of its series did it? the others are to go on
        return None, [WorkUnit(unit.block, (k,)) for k in unit.series]
    if isinstance(error, WorkerDied) and unit not in died:  # an earlier unit may have left the worker without memory
        died.add(unit)
        return None, [unit]
    if isinstance(error, WorkerDied):
        return lost(bench, unit, f"{error}: run the same command again"), []
    return lost(bench, unit, f"took longer than the experiment's timeout of {bench.experiment.timeout:g} s an image"), []


def lost(bench: Bench, unit: WorkUnit, why: str) -> Outcome:
    """All cells of a unit as failures of one reason."""
    return Outcome([Failure(cell_name(unit.block, bench.series[k]), why) for k in unit.series])


def make_units(bench: Bench, workers: int) -> list[WorkUnit]:
    """All cells as units. A block stays with one worker for all series where a task keeps features of the originals or
    nothing is gained by splitting; else its series are dealt out so that every worker has work."""
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
