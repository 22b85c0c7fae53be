"""The paired bootstrap of a run: every task's `aggregate` under resampled images, at each codec point, stored with the run.

    predictions -> statistics -> aggregate under weights -> replicates/<task>-<key>.parquet -> intervals of scores and BD-rates

A codec point is not resampled again if its stored replicates were made from the same predictions, stream sizes and labels. Slow
tasks are resampled in worker processes, one codec point at a time; each worker reads the predictions itself, so that only names are
sent.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from icmbench.harness.derive.gathering import Gatherer, SeriesPredictions
from icmbench.harness.derive.replicates import load_replicates, replicates_file
from icmbench.harness.derive.scoring import realisation, targets_of
from icmbench.harness.store.keys import digest
from icmbench.harness.store.parquet_files import write_table
from icmbench.harness.work.bar import Bar
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.series import AnySeries
from icmbench.results.bootstrap import INDEX, Point, draw_replicates
from icmbench.tasks.base import Statistics

VERSION = 2  # Raised by hand when replicates are drawn differently, so that stored ones are drawn again.
WORTH_WORKERS = 5.0  # Seconds of resampling of one task; below, starting processes costs more than it saves.


@dataclass(frozen=True)
class ResamplingJob:
    """One series of one task, to be resampled in a worker process.

    Attributes:
        label: the task.
        series: index into `Bench.series`.
        failed: ids of images to leave out.
        count: number of replicates.
        key: stored with the replicates; a digest of everything that decides them.
    """

    label: str
    series: int
    failed: frozenset[str]
    count: int
    key: str


class Resampling:
    """Collects the replicates of a run: call `add` for each series as it is scored, and `finish` after the last one.

    Args:
        gatherer: reads the store.
        count: replicates of each codec point.
        labels: by task label, a digest of what its predictions are scored against.
        workers: worker processes for slow tasks.
    """

    def __init__(self, gatherer: Gatherer, count: int, labels: Mapping[str, str], workers: int = 1) -> None:
        self.gatherer, self.bench = gatherer, gatherer.bench
        self.count, self.labels, self.workers = count, labels, workers
        self.stored = load_replicates(self.bench.folder)
        self.frames: dict[str, list[pd.DataFrame]] = {}
        self.jobs: list[ResamplingJob] = []

    def add(self, label: str, series: AnySeries, gathered: SeriesPredictions, statistics: Statistics, values: Mapping[str, float],
            failed: frozenset[str]) -> None:  # fmt: skip
        """Take the replicates of one series from the store, or draw them, or leave a slow one to `finish`.

        Args:
            label: the task.
            series: the codec at its point and seed, or the originals.
            gathered: the task's predictions on the series.
            statistics: what the task made of these predictions.
            values: score of each metric by name.
            failed: ids of images that were left out.
        """
        if not gathered.ids or not resampled_metrics(self.bench, label):
            return
        mark = realisation(self.gatherer, label, series)
        key = digest([VERSION, self.count, gathered.key, self.labels[label], mark, repr(sorted(values.items()))])
        frames = self.frames.setdefault(label, [])
        stored = self.stored.get(label)
        if stored is not None and (stored["key"] == key).any():
            # Two codecs with equal streams and pixels have one key, and labels may have changed since the replicates were stored.
            reusable = stored[stored["key"] == key]
            reusable = reusable[(reusable[INDEX[:3]] == reusable[INDEX[:3]].iloc[0]).all(axis=1)]
            frames.append(reusable.assign(codec=series.label, point=series.point, realisation=mark))
            return
        start = time.perf_counter()
        self.bench.tasks[label].aggregate(statistics)
        seconds = (time.perf_counter() - start) * self.count * len(self.bench.series)
        if self.workers > 1 and seconds > WORTH_WORKERS:
            self.jobs.append(ResamplingJob(label, self.bench.series.index(series), failed, self.count, key))
        else:
            frames.append(_resample_series(self.gatherer, label, series, gathered, statistics, self.count, key))

    def finish(self) -> dict[str, pd.DataFrame]:
        """Draw the replicates of slow tasks in worker processes, and store all replicates that are new.

        Returns:
            Replicates of each task by its label, columns as of `icmbench.results.bootstrap.draw_replicates`.
        """
        if self.jobs:
            context = multiprocessing.get_context("spawn")
            with (
                Bar("bootstrap", len(self.jobs)) as bar,
                ProcessPoolExecutor(self.workers, context, initializer=_set_worker_bench, initargs=(self.bench,)) as pool,
            ):
                for job, frame in zip(self.jobs, pool.map(_resample_job, self.jobs)):
                    self.frames[job.label].append(frame)
                    bar.advance(1)
        replicates = {}
        for label, frames in self.frames.items():
            if frames:
                frame = pd.concat(frames, ignore_index=True)
                if not frame.equals(self.stored.get(label)):
                    table = pa.Table.from_pandas(frame.assign(task=label), preserve_index=False)
                    write_table(self.bench.folder, replicates_file(label), table)
                replicates[label] = frame.drop(columns="key")
        return replicates


def resampled_metrics(bench: Bench, label: str) -> list[str]:
    """Names of the task's metrics that have a meaning under resampled images."""
    return [metric.name for metric in bench.tasks[label].metrics if metric.bootstrap]


def _resample_series(
    gatherer: Gatherer, label: str, series: AnySeries, gathered: SeriesPredictions, statistics: Statistics, count: int, key: str
) -> pd.DataFrame:
    sizes: dict[str, Any] = {}
    if gathered.streams is not None:
        streams = gathered.streams
        sizes = {"bits": streams["bits"].astype(float), "pixels": streams["height"].astype(float) * streams["width"]}
    bench = gatherer.bench
    aggregate = functools.partial(bench.tasks[label].aggregate, statistics)
    point = Point(series.label, series.point, aggregate, realisation=realisation(gatherer, label, series), **sizes)
    return draw_replicates([point], len(gathered.ids), resampled_metrics(bench, label), count).assign(key=key)


# The rest runs in worker processes.

_worker_gatherer: Gatherer | None = None  # Kept from one job to the next, so that its plug-ins are built once.


def _set_worker_bench(bench: Bench) -> None:
    global _worker_gatherer
    _worker_gatherer = Gatherer(bench)


def _resample_job(job: ResamplingJob) -> pd.DataFrame:
    assert _worker_gatherer is not None
    gatherer = _worker_gatherer
    series, task = gatherer.bench.series[job.series], gatherer.bench.tasks[job.label]
    gatherer.bench.load_context(job.label)
    gathered = gatherer.gather(job.label, series, job.failed)
    statistics = task.statistics(gathered.predictions, _targets(job.label, job.failed, tuple(gathered.ids)))
    return _resample_series(gatherer, job.label, series, gathered, statistics, job.count, job.key)


@functools.lru_cache(maxsize=1)
def _targets(label: str, failed: frozenset[str], ids: tuple[str, ...]) -> list[Any]:
    assert _worker_gatherer is not None
    bench = _worker_gatherer.bench
    is_agreement = bench.tasks[label].reference == "original"
    originals = _worker_gatherer.gather(label, bench.series[0], failed) if is_agreement else None
    return targets_of(bench.tasks[label], ids, originals)
