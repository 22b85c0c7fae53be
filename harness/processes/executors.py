"""Units of work: how an experiment is divided into them, and how they are computed in this process.

`pool.py` and `ray_executor.py` compute them in other processes, by the same loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from icmbench.harness.config.errors import UserError
from icmbench.harness.processes.output import stdout_to_stderr
from icmbench.harness.processes.progress import RunProgress
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.loop import WorkUnit, compute_units
from icmbench.harness.work.outcome import Outcome

UnitOutcome = tuple[WorkUnit, Outcome]  # A unit of work with what came of it.


def in_process(bench: Bench, units: Sequence[WorkUnit], keep: bool, progress: RunProgress) -> Iterator[UnitOutcome]:
    """Compute units one after the other in this process.

    Args:
        bench: the experiment's codecs, tasks and store.
        units: what to compute.
        keep: whether to store every reconstruction as a lossless picture.
        progress: tells others what this process does.

    Yields:
        Each unit with its outcome.
    """
    with progress.in_this_process(bench.activity), stdout_to_stderr():
        yield from zip(units, compute_units(bench, units, keep), strict=True)


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
