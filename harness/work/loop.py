"""The loop: one block of images through every codec at every point, and each reconstruction through every task.

    for cell (codec at a point):           over one block of images, those that lack something
        for chunk of the block:            compress -> bytes -> decompress, once
            for task:                      predict
            now and then:                  write the cell's streams, then its predictions

If a task keeps features of the originals, all cells take one chunk before any takes the next, so that these features are computed
once. Chunks are cut from the block in order of image shape, so that a model gets batches of one shape.

While the models predict on one chunk, a thread reads the next one, and also codes and decodes it if the codec keeps to one thread
(its attribute `background`). The same thread writes the files, and reads and hashes the next block.

A cell that lacks nothing does nothing. A failure costs its cell, or one task or image of it, and nothing that was computed. A kill
loses what was computed since the last write, at most about `WRITE_SECONDS` of work and one chunk: chunks of slow codecs are small.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from icmbench.harness.store.parallel import is_remote
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import ImageBlock, Sources, cell_name
from icmbench.harness.work.cell import Cell
from icmbench.harness.work.outcome import Failure, Outcome, failures_of
from icmbench.harness.work.prefetch import Prefetcher
from icmbench.tasks.base import Image

# Most pixels of a chunk of several images. Source, reconstruction and a model's float32 input take 18 bytes a pixel, which makes
# 1.2 GB; eight photographs in 4K still go together, and eight panoramas do not. No result may depend on what shares a batch.
CHUNK_PIXELS = 64 * 2**20
WRITE_SECONDS = 20.0  # What a cell has computed is written when it took so long, and a chunk is to take no longer.
WRITERS = 8  # Cells that are written at once to an object store, each of which takes a request for the streams and for each task.

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


def compute_units(bench: Bench, units: Sequence[WorkUnit], keep: bool) -> Iterator[Outcome]:
    """Compute and store what is missing of each unit. What is done and at work is noted in `Bench.activity`.

    Args:
        bench: the experiment's codecs, tasks and store.
        units: computed one after the other.
        keep: whether to store every reconstruction as a lossless picture.

    Yields:
        The outcome of each unit, in order. It holds the failures, which are not raised.
    """
    with Prefetcher(writers=WRITERS if is_remote(bench.store.folder.fs) else 0) as prefetcher:
        for k, unit in enumerate(units):
            next_block = units[k + 1].block if k + 1 < len(units) else None
            outcome = Outcome()
            bench.activity.begin_unit(outcome)
            _compute_unit(bench, unit, keep, outcome, prefetcher, next_block)
            bench.activity.end_unit()
            yield outcome


def _compute_unit(
    bench: Bench, unit: WorkUnit, keep: bool, outcome: Outcome, prefetcher: Prefetcher, next_block: ImageBlock | None
) -> None:
    """Open the unit's cells, compute what is missing chunk by chunk, and write what was computed."""
    block, progress = unit.block, bench.activity.advance
    try:
        sources = prefetcher.submit(bench.source_pixels.hash_block, block)()
        bench.source_pixels.free_all_but(block)
        tasks = {label: bench.tasks[label] for label in bench.task_labels(block.dataset)}
        bench.lookup.refresh([bench.series[k] for k in unit.series], tasks, force=False)
        cells = [Cell(bench, block, bench.series[k], sources, keep) for k in unit.series]
    except Exception as error:
        outcome.failures += failures_of([cell_name(block, bench.series[k]) for k in unit.series], error)
        progress(unit.images)
        return
    incomplete = [cell for cell in cells if not cell.done]
    progress(len(block.ids) * (len(cells) - len(incomplete)))
    book = _Bookkeeping(incomplete, len(block.ids), outcome, progress, prefetcher)
    pace = _Pace(bench, block, sources, incomplete)
    prepare = functools.partial(_prepare, bench, block, sources, book)
    hash_next_block = None if next_block is None else functools.partial(bench.source_pixels.hash_block, next_block)
    for (cell, ids), prepared in prefetcher.one_ahead(pace.steps(), prepare, hash_next_block):
        if not book.is_open(cell):
            continue
        start = time.perf_counter()
        try:
            originals, reconstructions, seconds = prepared()
            if reconstructions is None:
                reconstructions = cell.reconstruct(originals, outcome)
            cell.predict_chunk(reconstructions, originals, outcome)
        except Exception as error:
            book.write(cell)
            book.fail(cell, error)
            continue
        pace.learn(cell, len(ids), max(seconds, time.perf_counter() - start))
        book.finish_chunk(cell, ids)
    for cell in incomplete:
        book.write(cell)
    book.finish()
    outcome.add(book.prefetched)


class _Pace:
    """Cuts the work of a unit into chunks that take no longer than `WRITE_SECONDS`, as far as can be told.

    Args:
        bench: the experiment.
        block: the images.
        sources: facts about their source pixels.
        cells: the cells that lack something.
    """

    def __init__(self, bench: Bench, block: ImageBlock, sources: Sources, cells: Sequence[Cell]) -> None:
        self._size, self._cells = bench.experiment.batch_size, cells
        self._shares_originals = bench.shares_originals(block.dataset)
        self._shapes = sources.shapes
        self._block = block
        self._seconds = bench.seconds_per_image

    def steps(self) -> Iterator[Step]:
        """All chunks of all cells, in the order in which they are computed."""
        if not self._shares_originals:
            for cell in self._cells:
                waiting = sorted(cell.ids, key=self._shapes.__getitem__)
                while waiting:
                    ids = self._cut(waiting, [cell])
                    yield cell, ids
                    waiting = waiting[len(ids) :]
            return
        waiting = sorted({i for cell in self._cells for i in cell.ids}, key=lambda i: (self._shapes[i], self._block.ids.index(i)))
        while waiting:
            ids = self._cut(waiting, self._cells)
            for cell in self._cells:
                if own := tuple(i for i in ids if i in cell.ids):
                    yield cell, own
            waiting = waiting[len(ids) :]

    def learn(self, cell: Cell, images: int, seconds: float) -> None:
        """Remember how long a chunk took."""
        self._seconds[cell.series.name] = seconds / images

    def _cut(self, ids: Sequence[str], cells: Sequence[Cell]) -> tuple[str, ...]:
        """The next chunk: at most `batch_size` images, and `CHUNK_PIXELS` unless a single image has more.

        The first chunk of a series that was never timed has few images, because each may take minutes.
        """
        slowest = max(self._seconds.get(cell.series.name, WRITE_SECONDS / 2) for cell in cells)
        size = max(1, min(self._size, int(WRITE_SECONDS / max(slowest, 1e-9))))
        pixels = 0
        for k, image_id in enumerate(ids[:size]):
            height, width = self._shapes[image_id]
            pixels += height * width
            if k and pixels > CHUNK_PIXELS:
                return tuple(ids[:k])
        return tuple(ids[:size])


def _prepare(
    bench: Bench, block: ImageBlock, sources: Sources, book: _Bookkeeping, cell: Cell, ids: Sequence[str]
) -> tuple[Pixels, Pixels | None, float]:
    """Read a chunk, ahead of the task models, and reconstruct it if the codec may run beside them.

    Returns:
        Source pixels, reconstructions or None, and the seconds that this took. A chunk of a failed cell has no images, because the
        loop skips it.
    """
    start = time.perf_counter()
    if cell in book.failed:
        return {}, {}, 0.0
    try:
        originals = {image_id: bench.source_pixels.read_recorded(block.dataset, image_id, sources) for image_id in ids}
        reconstructions = cell.reconstruct(originals, book.prefetched) if cell.background else None
        return originals, reconstructions, time.perf_counter() - start
    except Exception:
        book.failed.add(cell)
        raise


class _Bookkeeping:
    """How far the cells of one unit have come, and what of them is written."""

    def __init__(
        self, cells: Sequence[Cell], images: int, outcome: Outcome, progress: Callable[[int], None], prefetcher: Prefetcher
    ) -> None:
        self.outcome = outcome
        self.prefetched = Outcome()  # Filled by the prefetch thread; merged at the end.
        self.failed: set[Cell] = set()  # Failed cells; the prefetch thread may add one before the loop sees the error.
        self._progress = progress
        self._prefetcher = prefetcher
        self._images_left = dict.fromkeys(cells, images)  # Images not yet given to `progress`; failed cells are removed.
        self._last_write = time.perf_counter()
        self._writes: list[tuple[Cell, Callable[[], list[Failure]]]] = []

    def is_open(self, cell: Cell) -> bool:
        """Whether the loop has not seen this cell fail."""
        return cell in self._images_left

    def fail(self, cell: Cell, error: Exception) -> None:
        """Record why a cell failed. It counts as done for the progress bar."""
        self.failed.add(cell)
        self.outcome.out_of_memory |= isinstance(error, MemoryError)
        self.outcome.failures += failures_of([cell.name], error)
        self._progress(self._images_left.pop(cell, 0))

    def finish_chunk(self, cell: Cell, ids: Sequence[str]) -> None:
        """Count a chunk as done, and write it if the last write is long ago."""
        self._progress(len(ids))
        self._images_left[cell] -= len(ids)
        if time.perf_counter() - self._last_write > WRITE_SECONDS:
            self.write(cell)

    def write(self, cell: Cell) -> None:
        """Let the second thread write what a cell has computed so far."""
        self._writes.append((cell, self._prefetcher.write(cell, cell.take_rows())))
        self._last_write = time.perf_counter()

    def finish(self) -> None:
        """Wait until all is written, and count the cells as done."""
        for cell, wait in self._writes:
            try:
                self.outcome.failures += wait()
            except Exception as error:
                if self.is_open(cell):
                    self.fail(cell, error)
        for cell, images in self._images_left.items():
            self.outcome.replaced += [cell.name] if cell.replaces_realisation else []
            self._progress(images)
