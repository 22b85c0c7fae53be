"""What the store holds of one task on one series, over all images of its dataset: predictions, streams, and what is missing.

Of the millions of predictions of a paper's run only row numbers are kept, 8 bytes each; those of one series are read at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from icmbench.harness.derive.run_streams import RunStreams
from icmbench.harness.store.keys import joined_keys
from icmbench.harness.store.row_index import Rows
from icmbench.harness.store.rows import from_table
from icmbench.harness.store.store import PREDICTION
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import Sources, cell_name
from icmbench.harness.work.series import AnySeries, Series
from icmbench.tasks.base import Prediction


@dataclass
class SeriesPredictions:
    """Predictions of one task on one series, images that failed left out.

    Attributes:
        ids: the images, in the order of the task's ids.
        predictions: one per image.
        seconds: mean seconds that the task took per image; NaN if they were measured on several machines.
        streams: facts about the streams, one row per image, indexed by id, and the bits of their `header`; None for the originals.
        images: a digest of the source pixels of the images, whatever their order.
        key: a digest of everything that was read: the images, the keys of their predictions, and the facts of their streams.
    """

    ids: list[str]
    predictions: list[Prediction]
    seconds: float
    streams: pd.DataFrame | None
    images: str
    key: str


class Gatherer:
    """Looks up what a run needs to score and report, dataset by dataset. What it learned is kept: make a new one after a change.

    Args:
        bench: the experiment and its store.

    Attributes:
        streams: the streams of its series.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.streams = RunStreams(bench, self.sources)
        self._sources: dict[str, Sources] = {}
        self._rows: dict[tuple[str, str], Rows] = {}
        self._images: dict[tuple[str, tuple[str, ...]], str] = {}
        bench.source_pixels.refresh()
        bench.lookup.refresh(bench.series, bench.tasks)

    def sources(self, dataset: str) -> Sources:
        """Recorded facts about the source pixels of a dataset."""
        if dataset not in self._sources:
            self._sources[dataset] = self.bench.source_pixels.recorded(dataset, self.bench.datasets[dataset].ids)
        return self._sources[dataset]

    def rows(self, label: str, series: AnySeries) -> Rows:
        """Row numbers of a task's predictions, one per image of the task; -1 where there is none."""
        key = (label, series.name)
        if key not in self._rows:
            task, dataset = self.bench.tasks[label], self.bench.dataset_of(label)
            self._rows[key] = self.bench.lookup.predictions(task, task.ids, self.pixels(label, series), self.sources(dataset))
        return self._rows[key]

    def pixels(self, label: str, series: AnySeries) -> list[str | None]:
        """SHA-256 of the pixels that a task sees, one per image of the task; None where there are none."""
        dataset = self.bench.dataset_of(label)
        pixels_of = dict(zip(self.streams.found(dataset, series).ids, self.streams.pixels(dataset, series), strict=True))
        return [pixels_of[image_id] for image_id in self.bench.tasks[label].ids]

    def failed(self, label: str, series: AnySeries) -> frozenset[str]:
        """Images of a task that could not be read, coded or predicted before, and that the experiment tolerates."""
        task, dataset = self.bench.tasks[label], self.bench.dataset_of(label)
        absent = np.flatnonzero(self.rows(label, series) < 0).tolist()
        if not absent:
            return frozenset()
        pixels = self.pixels(label, series)
        ids = [task.ids[k] for k in absent]
        failed = self.bench.lookup.failed_to_predict(task, ids, [pixels[k] for k in absent], self.sources(dataset))
        return failed | (self.streams.found(dataset, series).failed & {*ids})

    def missing(self, label: str, series: AnySeries) -> list[str]:
        """Images of a task that were neither predicted nor failed, in the order of the task's ids."""
        rows = self.rows(label, series)
        if (rows >= 0).all():
            return []
        failed = self.failed(label, series)
        return [i for i, row in zip(self.bench.tasks[label].ids, rows, strict=True) if row < 0 and i not in failed]

    def missing_cells(self, label: str, series: AnySeries) -> list[str]:
        """Names of the cells in which predictions of a task are missing."""
        missing = {*self.missing(label, series)}
        blocks = self.bench.blocks(self.bench.dataset_of(label)) if missing else []
        return [f"{cell_name(block, series)} / {label}" for block in blocks if not missing.isdisjoint(block.ids)]

    def gather(self, label: str, series: AnySeries, failed: Collection[str]) -> SeriesPredictions:
        """Read the predictions of a task on a series from which none is missing.

        Args:
            label: the task.
            series: the codec at its point and seed, or the originals.
            failed: ids of images to leave out.
        """
        task, dataset = self.bench.tasks[label], self.bench.dataset_of(label)
        chosen = [k for k, image_id in enumerate(task.ids) if image_id not in failed]
        ids = [task.ids[k] for k in chosen]
        table = self.bench.lookup.predictions_of(task).read(self.rows(label, series)[chosen])
        hidden = {"key", "written", *dict(PREDICTION)}
        names = [name for name in table.column_names if name not in hidden]
        predictions: list[Prediction] = [*from_table(table, names)] if names else [{} for _ in ids]
        frame = None
        if isinstance(series, Series):
            frame = self.streams.frame(dataset, series)
            frame = frame.assign(header=self.streams.parts(dataset, series).header).loc[ids]
        seconds = one_machine_mean(table.select(["seconds", "machine"]).to_pandas(), "seconds")
        images = self.images(dataset, ids)
        return SeriesPredictions(ids, predictions, seconds, frame, images, self.key(label, series, failed))

    def key(self, label: str, series: AnySeries, failed: Collection[str] = ()) -> str:
        """A digest of what decides the scores of a task on a series, beside labels: predictions, streams and source pixels.

        No prediction is read, because keys and times of writing name them.
        """
        task, dataset = self.bench.tasks[label], self.bench.dataset_of(label)
        chosen = [k for k, image_id in enumerate(task.ids) if image_id not in failed]
        rows = self.rows(label, series)[chosen]
        present = rows[rows >= 0]
        facts = self.bench.lookup.predictions_of(task).facts(present, ["key", "written"])
        value = hashlib.sha256((rows >= 0).tobytes())
        sha256 = self.sources(dataset).sha256
        value.update("".join([str(sha256.get(task.ids[k])) for k in chosen]).encode())
        value.update(joined_keys(facts.column("key")))
        value.update(facts.column("written").to_numpy().tobytes())
        if isinstance(series, Series):
            value.update(self.streams.digest(dataset, series))
        return value.hexdigest()[:32]

    def images(self, dataset: str, ids: Sequence[str]) -> str:
        """A digest of the source pixels of images, whatever their order and names."""
        key = (dataset, tuple(ids))
        if key not in self._images:
            sha256 = self.sources(dataset).sha256
            self._images[key] = hashlib.sha256("".join(sorted(sha256[i] for i in ids)).encode()).hexdigest()[:16]
        return self._images[key]


def one_machine_mean(frame: pd.DataFrame, column: str) -> float:
    """Mean of a column of seconds; NaN if its rows were measured on several machines, where a mean says nothing."""
    return float(frame[column].mean()) if frame["machine"].nunique() == 1 else float("nan")
