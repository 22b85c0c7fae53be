"""The loop: one block of images through every codec at every point, each reconstruction shown to every task.

    for cell (codec at a point):           of a block of images
        for chunk of the block:            compress -> bytes -> decompress, once
            for task:                      predict
        write the cell's streams, then its predictions

Where a task keeps features of the originals, all cells take a chunk before the next one, so that they are computed once.

A cell whose files are there does nothing. A failure drops its cell (or one task or image of it) and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from icmbench.harness.bench import Bench
from icmbench.harness.cell import Cell, Outcome, failures_of
from icmbench.harness.shards import Block, cell_name

Progress = Callable[[int], None]  # told the number of images done, counted once for each series


@dataclass(frozen=True)
class Unit:
    """What one worker takes at a time: some series over one block, sharing the originals."""

    block: Block
    series: tuple[int, ...]  # indices into Bench.series

    @property
    def images(self) -> int:
        return len(self.block.ids) * len(self.series)


def run_unit(bench: Bench, unit: Unit, keep: bool, progress: Progress) -> Outcome:
    """Compute what is missing of a unit. Failures are returned, not raised."""
    outcome = Outcome()
    block = unit.block
    names = [cell_name(block, bench.series[k]) for k in unit.series]
    bench.keep_only(block)
    try:
        sources = bench.sources(block)
        cells = [Cell(bench, block, bench.series[k], sources, keep) for k in unit.series]
    except Exception as error:
        outcome.failures += failures_of(names, error)
        progress(unit.images)
        return outcome
    active = [cell for cell in cells if not cell.done]
    progress(len(block.ids) * (len(cells) - len(active)))
    readable = [image_id for image_id in block.ids if image_id not in sources.errors]
    groups = [active] if bench.shares_originals(block.dataset) else [[cell] for cell in active]
    for group in groups:
        _work(bench, block, readable, group, outcome, progress)
    return outcome


def _work(bench: Bench, block: Block, readable: list[str], cells: list[Cell], outcome: Outcome, progress: Progress) -> None:
    """Some cells of a block, chunk by chunk, then written."""
    active = list(cells)
    size = bench.experiment.batch_size
    for start in range(0, len(readable), size):
        ids = readable[start : start + size]
        for cell in list(active):
            try:
                cell.advance({image_id: bench.read(block.dataset, image_id) for image_id in ids}, outcome)
                progress(len(ids))
            except Exception as error:
                active.remove(cell)
                outcome.failures += failures_of([cell.name], error)
                progress(len(block.ids) - start)
    for cell in active:
        try:
            cell.write()
            outcome.renewed += [cell.name] if cell.again else []
        except Exception as error:
            outcome.failures += failures_of([cell.name], error)
        progress(len(block.ids) - len(readable))
