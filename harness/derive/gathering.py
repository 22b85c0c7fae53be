"""What the store holds of one task on one series, over all images of its dataset: predictions, streams, and what is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from icmbench.harness.store.collection import Rows
from icmbench.harness.store.rows import from_table
from icmbench.harness.store.store import PREDICTION
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import Sources, cell_name
from icmbench.harness.work.lookup import Streams
from icmbench.harness.work.series import AnySeries, Series
from icmbench.tasks.base import Prediction


@dataclass
class SeriesPredictions:
    """Predictions of one task on one series, images that failed left out.

    Attributes:
        ids: the images, in the order of the task's ids.
        predictions: one per image.
        seconds: mean seconds that the task took per image; NaN if they were measured on several machines.
        streams: facts about the streams, one row per image, indexed by id; None for the originals.
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
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._sources: dict[str, Sources] = {}
        self._streams: dict[tuple[str, str], Streams] = {}
        self._rows: dict[tuple[str, str], Rows] = {}
        self._digests: dict[tuple[str, str], bytes] = {}
        bench.refresh_sources()
        for dataset in bench.datasets:
            if bench.task_labels(dataset):
                bench.refresh(dataset, bench.series)

    def sources(self, dataset: str) -> Sources:
        """Recorded facts about the source pixels of a dataset."""
        if dataset not in self._sources:
            self._sources[dataset] = self.bench.recorded_sources(dataset, self.bench.datasets[dataset].ids)
        return self._sources[dataset]

    def streams(self, dataset: str, series: AnySeries) -> Streams:
        """Streams of a series for those images of a dataset that a task scores."""
        key = (dataset, series.name)
        if key not in self._streams:
            tasks = list(self.bench.scoring_tasks(dataset, series).values())
            ids = [i for i in self.bench.datasets[dataset].ids if any(i in scored for _, scored in tasks)]
            self._streams[key] = self.bench.lookup.streams(series, ids, self.sources(dataset), tasks)
        return self._streams[key]

    def stream_frame(self, dataset: str, series: Series) -> pd.DataFrame:
        """Facts about the streams that exist, indexed by image id."""
        return self.bench.lookup.frame(series, self.streams(dataset, series))

    def rows(self, label: str, series: AnySeries) -> Rows:
        """Row numbers of a task's predictions, one per image of the task; -1 where there is none."""
        key = (label, series.name)
        if key not in self._rows:
            task, dataset = self.bench.tasks[label], self.bench.dataset_of(label)
            self._rows[key] = self.bench.lookup.predictions(task, task.ids, self.pixels(label, series), self.sources(dataset))
        return self._rows[key]

    def pixels(self, label: str, series: AnySeries) -> list[str | None]:
        """SHA-256 of the pixels that a task sees, one per image of the task; None where there are none."""
        streams = self.streams(self.bench.dataset_of(label), series)
        pixels_of = dict(zip(streams.ids, streams.pixels, strict=True))
        return [pixels_of[image_id] for image_id in self.bench.tasks[label].ids]

    def failed(self, label: str, series: AnySeries) -> frozenset[str]:
        """Images of a task that could not be read, coded or predicted before, and that the experiment tolerates."""
        task, dataset = self.bench.tasks[label], self.bench.dataset_of(label)
        absent = [k for k, row in enumerate(self.rows(label, series)) if row < 0]
        pixels = self.pixels(label, series)
        ids = [task.ids[k] for k in absent]
        failed = self.bench.lookup.failed_to_predict(task, ids, [pixels[k] for k in absent], self.sources(dataset))
        return failed | (self.streams(dataset, series).failed & {*ids})

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
        ids = [image_id for image_id in task.ids if image_id not in failed]
        rows = np.array([r for i, r in zip(task.ids, self.rows(label, series), strict=True) if i not in failed], np.int64)
        collection = self.bench.lookup.predictions_of(task)
        table = collection.read(rows)
        hidden = {"key", "written", *dict(PREDICTION)}
        names = [name for name in table.column_names if name not in hidden]
        predictions: list[Prediction] = [*from_table(table, names)] if names else [{} for _ in ids]
        frame = self.stream_frame(dataset, series).loc[ids] if isinstance(series, Series) else None
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
        value.update("".join(str(self.sources(dataset).sha256.get(task.ids[k])) for k in chosen).encode())
        value.update(b"".join(facts.column("key").to_pylist()))
        value.update(facts.column("written").to_numpy().tobytes())
        if isinstance(series, Series):
            value.update(self._streams_digest(dataset, series))
        return value.hexdigest()[:32]

    def _streams_digest(self, dataset: str, series: Series) -> bytes:
        key = (dataset, series.name)
        if key not in self._digests:
            frame = self.stream_frame(dataset, series)
            value = hashlib.sha256(frame[["bytes", "height", "width"]].to_numpy("i8").tobytes())
            value.update("".join([*frame.index, *frame["sha256"]]).encode())
            self._digests[key] = value.digest()
        return self._digests[key]

    def images(self, dataset: str, ids: Sequence[str]) -> str:
        """A digest of the source pixels of images, whatever their order and names."""
        sha256 = self.sources(dataset).sha256
        return hashlib.sha256("".join(sorted(sha256[i] for i in ids)).encode()).hexdigest()[:16]


def one_machine_mean(frame: pd.DataFrame, column: str) -> float:
    """Mean of a column of seconds; NaN if its rows were measured on several machines, where a mean says nothing."""
    return float(frame[column].mean()) if frame["machine"].nunique() == 1 else float("nan")
