"""One cell: a series (a codec at a rate point and seed) over a block of images, and the tasks that lack predictions on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from icmbench.harness.work.activity import Part
from icmbench.harness.work.attempt import attempt, reason
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import ImageBlock, Sources, cell_name
from icmbench.harness.work.codec_stage import CodecStage
from icmbench.harness.work.failures import failure_key
from icmbench.harness.work.lookup import key_of_facts, prediction_facts
from icmbench.harness.work.outcome import Failure, Outcome
from icmbench.harness.work.series import AnySeries, Series
from icmbench.harness.work.todo import find_todo
from icmbench.tasks.base import Image, Task

Rows = dict[str, dict[str, Any]]  # Rows of predictions by image id.


class Cell:
    """Computes what the store lacks of one cell. The constructor reads the store to find out what that is.

    Call `reconstruct` and then `predict_chunk` for each chunk of `ids`, and `take_rows` now and then and after the last one.

    Args:
        bench: the experiment's codecs, tasks and store.
        block: the images.
        series: the codec at its point and seed, or the originals.
        sources: hashes and shapes of the block's source pixels.
        keep: whether to store every reconstruction as a lossless picture.

    Attributes:
        name: the cell as messages name it.
        ids: the images for which something is missing, in the order of the block.
        done: whether nothing is missing.
        background: whether `reconstruct` may run in a thread beside the task models.
        replaces_realisation: whether other pixels than those stored will be shown to the tasks, because those are lost.
    """

    def __init__(self, bench: Bench, block: ImageBlock, series: AnySeries, sources: Sources, keep: bool) -> None:
        self.bench, self.series, self.sources = bench, series, sources
        self.name = cell_name(block, series)
        todo = find_todo(bench, block, series, sources, keep)
        self.ids, self.done, self.background = todo.pixels, todo.done, series.background
        self.replaces_realisation = bool(todo.lost)
        self._predict = {label: bench.tasks[label] for label in sorted(todo.predict)}
        self._ids_of = todo.predict
        self._codec = CodecStage(bench, self.name, series, sources, todo) if isinstance(series, Series) else None
        self._part = Part.of(block.dataset, series)
        self._rows: dict[str, Rows] = {label: {} for label in self._predict}
        self._failed: dict[bytes, str] = {}

    def reconstruct(self, originals: Mapping[str, Image], outcome: Outcome) -> Mapping[str, Image]:
        """Reconstructions of one chunk; see `CodecStage.reconstruct`. Those of the originals are the originals."""
        if self._codec is None:
            return originals
        with self.bench.activity.working(self._part, len(originals)):
            return self._codec.reconstruct(originals, outcome)

    def predict_chunk(self, images: Mapping[str, Image], originals: Mapping[str, Image], outcome: Outcome) -> None:
        """Let every task predict on those images of a chunk that it lacks. A task that fails is dropped from this cell.

        Args:
            images: reconstructions by image id, uint8 (height, width, 3).
            originals: source pixels of at least the same images, uint8 (height, width, 3).
            outcome: receives failures and counts.
        """
        for label, task in list(self._predict.items()):
            asked = [image_id for image_id in images if image_id in self._ids_of[label]]
            # A new stream may decode to pixels that another codec, or this one by another version, gave before.
            rows = self.bench.lookup.predictions(task, asked, [self._pixels_of(i) for i in asked], self.sources)
            images_of_task = {i: images[i] for i, row in zip(asked, rows, strict=True) if row < 0}
            if not images_of_task:
                continue
            try:
                self._predict_task(label, task, images_of_task, originals, outcome)
            except Exception as error:
                outcome.out_of_memory |= isinstance(error, MemoryError)
                del self._predict[label]
                outcome.failures.append(Failure(f"{self.name} / {label}", reason(error)))

    def _predict_task(
        self, label: str, task: Task, images: Mapping[str, Image], originals: Mapping[str, Image], outcome: Outcome
    ) -> None:
        self.bench.load_context(label)
        ids = list(images)

        def predict(indices: Sequence[int]) -> Sequence[Any]:
            batch = [ids[k] for k in indices]
            sources = [originals[i] for i in batch] if task.needs_originals else None
            return task.predict([images[i] for i in batch], batch, sources)

        start = time.perf_counter()
        with self.bench.activity.working(self._part._replace(task=label), len(ids)):
            results = attempt(predict, range(len(ids)), self.bench.tolerant, "model")
        seconds = (time.perf_counter() - start) / len(ids)
        outcome.model_images += len(ids)
        for k, prediction in results.items():
            image_id = ids[k]
            facts = prediction_facts(task, image_id, self._pixels_of(image_id), self.sources)
            key = key_of_facts(facts)
            if isinstance(prediction, Exception):
                outcome.failures.append(Failure(f"{self.name} / {label} / {image_id}", reason(prediction)))
                self._failed[failure_key(task.fingerprint, key)] = reason(prediction)
                continue
            self._rows[label][image_id] = {**prediction, **facts, "key": key, "seconds": seconds, "machine": self.bench.machine}

    def _pixels_of(self, image_id: str) -> str:
        """SHA-256 of the pixels that the tasks see."""
        return self.sources.sha256[image_id] if self._codec is None else self._codec.pixels_of(image_id)

    def take_rows(self) -> Callable[[], list[Failure]]:
        """What was computed since the last call, as a function that stores it and may be called in another thread.

        Streams are stored first, because they take longest to compute, and because predictions are found by the decoded pixels.

        Returns:
            The function. It returns what other processes made void, and raises UserError if the store cannot be written.
        """
        coded = None if self._codec is None else self._codec.take()
        predictions, self._rows = self._rows, {label: {} for label in self._rows}
        failed, self._failed = self._failed, {}

        def write() -> list[Failure]:
            void: frozenset[str] = frozenset()
            if self._codec is not None and coded is not None:
                void = self._codec.write(coded)
            self.bench.failures.record(failed)
            for label, rows in predictions.items():
                valid = [row for image_id, row in rows.items() if image_id not in void]
                if valid:
                    self.bench.lookup.predictions_of(self.bench.tasks[label]).append(valid)
            why = "another run claimed its realisation first; run the same command again"
            return [Failure(f"{self.name} / {image_id}", why) for image_id in sorted(void)]

        return write
