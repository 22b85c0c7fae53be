"""Where units of work run: in this process, or in a pool of processes. The loop is the same code."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout

import pebble

from icmbench.harness.bench import Bench
from icmbench.harness.cell import Failure, Outcome
from icmbench.harness.errors import UserError
from icmbench.harness.loop import Progress, Unit, run_units
from icmbench.harness.shards import cell_name

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def in_process(bench: Bench, units: Sequence[Unit], keep: bool, progress: Progress) -> Iterator[Outcome]:
    """One unit after the other, here."""
    outcomes = run_units(bench, units, keep, progress)
    while True:
        with redirect_stdout(sys.stderr):  # a plug-in that prints must not spoil what the command prints
            outcome = next(outcomes, None)
        if outcome is None:
            return
        yield outcome


def process_pool(bench: Bench, units: Sequence[Unit], keep: bool, progress: Progress, workers: int) -> Iterator[Outcome]:
    """Units in `workers` processes that share the cores: each gets an equal share of threads.

    A worker that dies (killed, a crashing library) or takes longer than the experiment's `timeout` is replaced; its unit's cells
    are named and the others go on.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, threads))  # spawned children read them before numpy and torch start
    limit = bench.experiment.timeout
    pool = pebble.ProcessPool(workers, initializer=_start_worker, initargs=(bench,), context=multiprocessing.get_context("spawn"))
    waiting = list(reversed(units))
    running: dict[Future[Outcome], Unit] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:  # one ahead, so that no worker waits for its next unit
                unit = waiting.pop()
                running[pool.schedule(_run, (unit, keep), timeout=None if limit is None else limit * unit.images)] = unit
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                unit = running.pop(future)
                outcome = _outcome(bench, future, unit)
                if outcome is None:  # which of its series did it? the others are to go on
                    waiting += [Unit(unit.block, (k,)) for k in unit.series]
                    continue
                progress(unit.images)
                yield outcome
    finally:
        pool.stop()
        pool.join()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _outcome(bench: Bench, future: Future[Outcome], unit: Unit) -> Outcome | None:
    """What became of a unit; None where its process was lost and it holds several series."""
    try:
        return future.result()
    except TimeoutError:
        why = f"took longer than the experiment's timeout of {bench.experiment.timeout:g} s an image"
    except pebble.ProcessExpired as error:
        why = f"its worker process died ({error}): run the same command again"
    except BrokenProcessPool:
        raise UserError("worker processes cannot start: call run() of a script below `if __name__ == '__main__':`") from None
    return lost(bench, unit, why) if len(unit.series) == 1 else None


def lost(bench: Bench, unit: Unit, why: str) -> Outcome:
    """All cells of a unit as failures of one reason."""
    return Outcome([Failure(cell_name(unit.block, bench.series[k]), why) for k in unit.series])


def make_units(bench: Bench, workers: int) -> list[Unit]:
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
        units += [Unit(block, indices[i : i + size]) for block in blocks for i in range(0, len(indices), size)]
    if not units:
        raise UserError("nothing to do: no dataset has images")
    return units


_bench: Bench | None = None


def _start_worker(bench: Bench) -> None:
    global _bench
    _bench = bench
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()


def _die_with(parent: int) -> None:
    """A worker whose parent was killed must not go on computing beside the next run."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(unit: Unit, keep: bool) -> Outcome:
    assert _bench is not None
    with redirect_stdout(sys.stderr):  # a plug-in that prints must not spoil what the command prints
        [outcome] = run_units(_bench, [unit], keep, lambda images: None)
    return outcome
