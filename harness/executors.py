"""Where units of work run: in this process, or in a pool of processes. The loop is the same code."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from icmbench.harness.bench import Bench
from icmbench.harness.errors import UserError
from icmbench.harness.loop import Failure, Outcome, Progress, Unit, run_unit
from icmbench.harness.shards import cell_name

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def in_process(bench: Bench, units: Sequence[Unit], keep: bool, progress: Progress) -> Iterator[Outcome]:
    """One unit after the other, here."""
    for unit in units:
        yield run_unit(bench, unit, keep, progress)


def process_pool(bench: Bench, units: Sequence[Unit], keep: bool, progress: Progress, workers: int) -> Iterator[Outcome]:
    """Units in `workers` processes that share the cores: each gets an equal share of threads.

    A worker that dies (out of memory, a crashing library) ends the pool; what was written stays, and its cells are named.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, threads))  # spawned children read them before numpy and torch start
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (bench,))
    waiting = list(reversed(units))
    running: dict[Future[Outcome], Unit] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers + 1:
                unit = waiting.pop()
                running[pool.submit(_run, unit, keep)] = unit
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                unit = running.pop(future)
                outcome = future.result()
                progress(unit.images)
                yield outcome
    except BrokenProcessPool:
        lost = [*running.values(), unit, *waiting]  # `unit` was being handed over when the pool broke
        names = {cell_name(unit.block, bench.series[k]) for unit in lost for k in unit.series}
        yield Outcome([Failure(name, "a worker process died; run the same command again") for name in sorted(names)])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def make_units(bench: Bench, workers: int) -> list[Unit]:
    """All cells as units. A block stays with one worker for all series where a task wants the originals' features or
    nothing is gained by splitting; else its series are dealt out so that every worker has work."""
    units = []
    for dataset in bench.datasets:
        blocks = bench.blocks(dataset)
        indices = tuple(range(len(bench.series)))
        together = any(bench.tasks[label].needs_originals for label in bench.task_labels(dataset))
        split = 1 if together or workers == 1 else max(1, -(-4 * workers // len(blocks)))
        size = -(-len(indices) // min(split, len(indices)))
        units += [Unit(block, indices[i : i + size]) for block in blocks for i in range(0, len(indices), size)]
    if not units:
        raise UserError("nothing to do: no dataset has images")
    return units


_bench: Bench | None = None


def _start_worker(bench: Bench) -> None:
    global _bench
    _bench = bench


def _run(unit: Unit, keep: bool) -> Outcome:
    assert _bench is not None
    return run_unit(_bench, unit, keep)
