"""Where units of work run: in this process, or in a pool of processes. The loop is the same code."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout, suppress

import pebble

from icmbench.harness.bench import Bench
from icmbench.harness.cell import Failure, Outcome
from icmbench.harness.errors import UserError
from icmbench.harness.loop import Progress, Unit, run_units
from icmbench.harness.shards import cell_name

EXHAUSTED = 137  # exit code of a worker without memory, as of one that the kernel ends for want of it
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def in_process(bench: Bench, units: Sequence[Unit], keep: bool, progress: Progress) -> Iterator[Outcome]:
    """One unit after the other, here."""
    with quiet():
        yield from run_units(bench, units, keep, progress)


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


def process_pool(bench: Bench, units: Sequence[Unit], keep: bool, progress: Progress, workers: int) -> Iterator[Outcome]:
    """Units in `workers` processes that share the cores: each gets an equal share of threads.

    A worker that dies (killed, a crashing library, out of memory) or takes longer than the experiment's `timeout` is replaced. Its
    unit is taken apart by series; one that dies twice more on its own, or hangs on its own, is named and the others go on.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, threads))  # spawned children read them before numpy and torch start
    limit = bench.experiment.timeout
    pool = pebble.ProcessPool(workers, initializer=_start_worker, initargs=(bench,), context=multiprocessing.get_context("spawn"))
    waiting = list(reversed(units))
    running: dict[Future[Outcome], tuple[Unit, float]] = {}
    died: set[Unit] = set()
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:  # one ahead, so that no worker waits for its next unit
                unit = waiting.pop()
                seconds = None if limit is None else limit * unit.images
                running[pool.schedule(_run, (unit, keep), timeout=seconds)] = (unit, time.monotonic())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                unit, started = running.pop(future)
                outcome = _outcome(bench, future, unit, time.monotonic() - started, died)
                if isinstance(outcome, list):
                    waiting += outcome
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


def _outcome(bench: Bench, future: Future[Outcome], unit: Unit, seconds: float, died: set[Unit]) -> Outcome | list[Unit]:
    """What became of a unit, or the units to try instead. seconds: since it was scheduled; died: those that took a worker down."""
    limit = bench.experiment.timeout
    try:
        return future.result()
    except TimeoutError:
        assert limit is not None
        if seconds < limit * unit.images:  # the pool goes by the wall clock, which was set forward
            return [unit]
        why = f"took longer than the experiment's timeout of {limit:g} s an image"
    except pebble.ProcessExpired as error:
        if len(unit.series) == 1 and unit not in died:  # an earlier unit may have left the worker without memory
            died.add(unit)
            return [unit]
        causes = {EXHAUSTED: "ran out of memory", -signal.SIGKILL: "was killed, perhaps for want of memory"}
        how = causes.get(error.exitcode, "died")
        why = f"its worker process {how} ({error}): run the same command again"
    except BrokenProcessPool:
        raise UserError("worker processes cannot start: call run() of a script below `if __name__ == '__main__':`") from None
    if len(unit.series) > 1:  # which of its series did it? the others are to go on
        return [Unit(unit.block, (k,)) for k in unit.series]
    return lost(bench, unit, why)


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
    with quiet():
        [outcome] = run_units(_bench, [unit], keep, lambda images: None)
    if outcome.exhausted:  # what took the memory would keep it: the unit is tried in a new process
        os._exit(EXHAUSTED)
    return outcome
