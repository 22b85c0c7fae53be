"""The loop: one block of images through every codec at every point, and each reconstruction through every task.

    for cell (codec at a point):           over one block of images
        for chunk of the block:            compress -> bytes -> decompress, once
            for task:                      predict
        write the cell's streams, then its predictions

If a task keeps features of the originals, all cells take one chunk before any takes the next, so that these features are computed
once. Chunks are cut from the block in order of image shape, so that a model gets batches of one shape.

While the models predict on one chunk, a thread reads the next one, and also codes and decodes it if the codec keeps to one thread
(its attribute `background`). The same thread writes the files, and reads and hashes the next block.

A cell whose files are stored does nothing. A failure costs its cell, or one task or image of it, and nothing else.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from icmbench.harness.store.shards import ImageBlock, Sources, cell_name
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.cell import Cell, Outcome, failures_of
from icmbench.harness.work.prefetch import Prefetcher
from icmbench.tasks.base import Image

# Most pixels of a chunk of several images. Source, reconstruction and a model's float32 input take 18 bytes a pixel, which makes
# 1.2 GB; eight photographs in 4K still go together, and eight panoramas do not. No result may depend on what shares a batch.
CHUNK_PIXELS = 64 * 2**20

Progress = Callable[[int], None]  # Called with a number of images that are done; an image counts once for each series.
Pixels = Mapping[str, Image]  # Images by id, uint8 (height, width, 3).
Step = tuple[Cell, tuple[str, ...]]  # One chunk of a cell: the ids of its images.


@dataclass(frozen=True)
class WorkUnit:
    """What one worker takes at a time: some series over one block, which share the source pixels.

    Attributes:
        block: the images.
        series: indices into `Bench.series`.
    """

    block: ImageBlock
    series: tuple[int, ...]

    @property
    def images(self) -> int:
        """Number of images, counted once for each series."""
        return len(self.block.ids) * len(self.series)


def compute_units(bench: Bench, units: Sequence[WorkUnit], keep: bool, progress: Progress) -> Iterator[Outcome]:
    """Compute and store what is missing of each unit.

    Args:
        bench: the experiment's codecs, tasks and store.
        units: computed one after the other.
        keep: whether to store every reconstruction as a lossless picture.
        progress: called as images are done.

    Yields:
        The outcome of each unit, in order. It holds the failures, which are not raised.
    """
    with Prefetcher() as prefetcher:
        for k, unit in enumerate(units):
            next_block = units[k + 1].block if k + 1 < len(units) else None
            yield _compute_unit(bench, unit, keep, progress, prefetcher, next_block)


def _compute_unit(
    bench: Bench, unit: WorkUnit, keep: bool, progress: Progress, prefetcher: Prefetcher, next_block: ImageBlock | None
) -> Outcome:
    """Open the unit's cells, compute what is missing chunk by chunk, and write each cell after its last chunk."""
    outcome = Outcome()
    block = unit.block
    try:
        sources = prefetcher.submit(bench.sources, block)()
        bench.drop_pixels_except(block)
        cells = [Cell(bench, block, bench.series[k], sources, keep) for k in unit.series]
    except Exception as error:
        outcome.failures += failures_of([cell_name(block, bench.series[k]) for k in unit.series], error)
        progress(unit.images)
        return outcome
    incomplete = [cell for cell in cells if not cell.done]
    progress(len(block.ids) * (len(cells) - len(incomplete)))
    steps = _steps(bench, block, sources, incomplete)
    book = _Bookkeeping(incomplete, steps, len(block.ids), outcome, progress)

    prepare = functools.partial(_prepare, bench, block, book)
    hash_next_block = None if next_block is None else functools.partial(bench.sources, next_block)
    writes: list[tuple[Cell, Callable[[], None]]] = []
    for (cell, ids), prepared in prefetcher.one_ahead(steps, prepare, hash_next_block):
        if not book.is_open(cell):
            continue
        try:
            originals, reconstructions = prepared()
            if reconstructions is None:
                reconstructions = cell.reconstruct(originals, outcome)
            cell.predict_chunk(reconstructions, originals, outcome)
        except Exception as error:
            book.fail(cell, error)
            continue
        if book.finish_chunk(cell, ids):
            writes.append((cell, prefetcher.submit(cell.write)))
    if not steps:  # The block has no readable image, but its cells still record why.
        writes += [(cell, prefetcher.submit(cell.write)) for cell in incomplete]
    for cell, finish_write in writes:
        try:
            finish_write()
        except Exception as error:
            book.fail(cell, error)
        else:
            book.finish_cell(cell)
    outcome.add(book.prefetched)
    return outcome


def _steps(bench: Bench, block: ImageBlock, sources: Sources, cells: Sequence[Cell]) -> list[Step]:
    """All chunks of all cells, in the order in which they are computed."""
    chunks = _cut([i for i in block.ids if i not in sources.errors], sources.shapes, bench.experiment.batch_size)
    if bench.shares_originals(block.dataset):
        return [(cell, ids) for ids in chunks for cell in cells]
    return [(cell, ids) for cell in cells for ids in chunks]


def _cut(ids: Sequence[str], shapes: Mapping[str, tuple[int, int]], size: int) -> list[tuple[str, ...]]:
    """Cut images into chunks in order of their shape: at most `size` images, and `CHUNK_PIXELS` unless a single image has more."""
    chunks: list[list[str]] = []
    pixels = 0
    for image_id in sorted(ids, key=shapes.__getitem__):
        height, width = shapes[image_id]
        pixels += height * width
        if not chunks or len(chunks[-1]) == size or pixels > CHUNK_PIXELS:
            chunks.append([])
            pixels = height * width
        chunks[-1].append(image_id)
    return [tuple(chunk) for chunk in chunks]


def _prepare(bench: Bench, block: ImageBlock, book: _Bookkeeping, cell: Cell, ids: Sequence[str]) -> tuple[Pixels, Pixels | None]:
    """Read a chunk, ahead of the task models, and reconstruct it if the codec may run beside them.

    Returns:
        Source pixels, and reconstructions or None. A chunk of a failed cell has no images, because the loop skips it.
    """
    if cell in book.failed:
        return {}, {}
    try:
        originals = {image_id: bench.read(block.dataset, image_id) for image_id in ids}
        return originals, cell.reconstruct(originals, book.prefetched) if cell.background else None
    except Exception:
        book.failed.add(cell)
        raise


class _Bookkeeping:
    """How far the cells of one unit have come."""

    def __init__(self, cells: Sequence[Cell], steps: Sequence[Step], images: int, outcome: Outcome, progress: Progress) -> None:
        self.outcome = outcome
        self.prefetched = Outcome()  # Filled by the prefetch thread; merged at the end.
        self.failed: set[Cell] = set()  # Failed cells; the prefetch thread may add one before the loop sees the error.
        self._progress = progress
        self._chunks_left = Counter(cell for cell, _ in steps)
        self._images_left = dict.fromkeys(cells, images)  # Images not yet reported to `progress`; failed cells are removed.

    def is_open(self, cell: Cell) -> bool:
        """Whether the loop has not seen this cell fail."""
        return cell in self._images_left

    def fail(self, cell: Cell, error: Exception) -> None:
        """Record why a cell failed. It counts as done for the progress bar."""
        self.failed.add(cell)
        self.outcome.out_of_memory |= isinstance(error, MemoryError)
        self.outcome.failures += failures_of([cell.name], error)
        self._progress(self._images_left.pop(cell))

    def finish_chunk(self, cell: Cell, ids: Sequence[str]) -> bool:
        """Count a chunk as done; whether it was the cell's last one."""
        self._progress(len(ids))
        self._images_left[cell] -= len(ids)
        self._chunks_left[cell] -= 1
        return not self._chunks_left[cell]

    def finish_cell(self, cell: Cell) -> None:
        """Count a cell as written, with its images that could not be read."""
        self.outcome.replaced += [cell.name] if cell.replaces_realisation else []
        self._progress(self._images_left[cell])
