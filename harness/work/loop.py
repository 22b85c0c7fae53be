"""The loop: one block of images through every codec at every point, each reconstruction shown to every task.

    for cell (codec at a point):           of a block of images
        for chunk of the block:            compress -> bytes -> decompress, once
            for task:                      predict
        write the cell's streams, then its predictions

Where a task keeps features of the originals, all cells take a chunk before the next one, so that they are computed once. Chunks are
cut from the block in order of image shape, so that models find images of one shape in them.

While the models look at one chunk, a thread reads the next one, and codes and decodes it where the codec keeps to one thread
(`background`); it writes files, and reads and hashes the next block too.

A cell whose files are there does nothing. A failure drops its cell (or one task or image of it) and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from icmbench.harness.store.shards import ImageBlock, cell_name
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.cell import Cell, Outcome, failures_of
from icmbench.harness.work.prefetch import Prefetcher
from icmbench.tasks.base import Image

Progress = Callable[[int], None]  # told the number of images done, counted once for each series
Pixels = Mapping[str, Image]  # by image id


@dataclass(frozen=True)
class WorkUnit:
    """What one worker takes at a time: some series over one block, sharing the originals."""

    block: ImageBlock
    series: tuple[int, ...]  # indices into Bench.series

    @property
    def images(self) -> int:
        return len(self.block.ids) * len(self.series)


def run_units(bench: Bench, units: Sequence[WorkUnit], keep: bool, progress: Progress) -> Iterator[Outcome]:
    """Compute what is missing of each unit. Failures are returned, not raised."""
    with Prefetcher() as ahead:
        for k, unit in enumerate(units):
            following = units[k + 1].block if k + 1 < len(units) else None
            yield _run(bench, unit, keep, progress, ahead, following)


def _run(bench: Bench, unit: WorkUnit, keep: bool, progress: Progress, ahead: Prefetcher, following: ImageBlock | None) -> Outcome:
    outcome = Outcome()
    block = unit.block
    names = [cell_name(block, bench.series[k]) for k in unit.series]
    try:
        sources = ahead.submit(bench.sources, block)()
        bench.keep_only(block)
        cells = [Cell(bench, block, bench.series[k], sources, keep) for k in unit.series]
    except Exception as error:
        outcome.failures += failures_of(names, error)
        progress(unit.images)
        return outcome
    active = [cell for cell in cells if not cell.done]
    progress(len(block.ids) * (len(cells) - len(active)))
    readable = sorted((i for i in block.ids if i not in sources.errors), key=sources.shapes.__getitem__)
    size = bench.experiment.batch_size
    chunks = [tuple(readable[i : i + size]) for i in range(0, len(readable), size)]
    if bench.shares_originals(block.dataset):
        steps = [(cell, ids) for ids in chunks for cell in active]
    else:
        steps = [(cell, ids) for cell in active for ids in chunks]
    then = None if following is None else lambda: bench.sources(following)
    _work(bench, block, active, steps, outcome, progress, ahead, then)
    return outcome


def _work(
    bench: Bench,
    block: ImageBlock,
    cells: Sequence[Cell],
    steps: Sequence[tuple[Cell, tuple[str, ...]]],
    outcome: Outcome,
    progress: Progress,
    ahead: Prefetcher,
    then: Callable[[], object] | None,
) -> None:
    """Steps in order; a cell is written after its last one."""
    beside = Outcome()  # of the thread
    left = Counter(cell for cell, _ in steps)
    images = dict.fromkeys(cells, len(block.ids))  # that progress has not been told of
    broken: set[Cell] = set()  # known to the thread, and in a moment here
    writes: list[tuple[Cell, Callable[[], None]]] = []

    def prepare(cell: Cell, ids: Sequence[str]) -> tuple[Pixels, Pixels | None]:
        if cell in broken:
            return {}, {}
        try:
            originals = {image_id: bench.read(block.dataset, image_id) for image_id in ids}
            return originals, cell.reconstruct(originals, beside) if cell.background else None
        except Exception:
            broken.add(cell)
            raise

    def fail(cell: Cell, error: Exception) -> None:
        broken.add(cell)
        outcome.exhausted |= isinstance(error, MemoryError)
        outcome.failures += failures_of([cell.name], error)
        progress(images.pop(cell))

    for (cell, ids), prepared in ahead.over(steps, prepare, then):
        if cell not in images:
            continue
        try:
            originals, decoded = prepared()
            cell.show(cell.reconstruct(originals, outcome) if decoded is None else decoded, originals, outcome)
        except Exception as error:
            fail(cell, error)
            continue
        progress(len(ids))
        images[cell] -= len(ids)
        left[cell] -= 1
        if not left[cell]:
            writes.append((cell, ahead.submit(cell.write)))
    writes += [(cell, ahead.submit(cell.write)) for cell in cells if not steps]  # of a block that holds no readable image
    for cell, written in writes:
        try:
            written()
        except Exception as error:
            fail(cell, error)
            continue
        outcome.renewed += [cell.name] if cell.again else []
        progress(images[cell])
    outcome.add(beside)
