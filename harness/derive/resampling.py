"""The paired bootstrap of a run: every task's `aggregate` under resampled images, at each codec point, kept with the run.

    predictions -> statistics -> aggregate under weights -> replicates/<task>.parquet -> intervals of scores and BD-rates

A codec point whose predictions, score and count are those of the stored replicates is not resampled again. Long work is shared
out by points: workers gather the statistics themselves, so that only names travel.
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

from icmbench.harness.config.errors import UserError
from icmbench.harness.derive.scoring import SeriesPredictions, gather, realisation, targets_of
from icmbench.harness.store.shards import Series, digest
from icmbench.harness.store.store import Store, safe_name
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.progress import Bar
from icmbench.results.bootstrap import INDEX, Point, replicates
from icmbench.tasks.base import Statistics

VERSION = 1  # of how replicates are drawn
FOLDER = "replicates"
WORTH_WORKERS = 5.0  # seconds of one task's resampling; below, starting processes costs more than it saves


@dataclass(frozen=True)
class Job:
    """One series of one task, to be resampled in a worker. seconds: how long one replicate takes."""

    label: str
    series: int
    failed: frozenset[str]
    count: int
    key: str


class Resampling:
    """Collects the replicates of a run while its series are scored, one after the other."""

    def __init__(self, bench: Bench, count: int, workers: int = 1) -> None:
        """count: replicates of each codec point. workers: processes for what takes long."""
        self.bench, self.count, self.workers = bench, count, workers
        self.stored = load(bench.store)
        self.frames: dict[str, list[pd.DataFrame]] = {}
        self.jobs: list[Job] = []

    def add(self, label: str, series: Series, evidence: SeriesPredictions, statistics: Statistics, values: Mapping[str, float],
            failed: frozenset[str]) -> None:  # fmt: skip
        """Takes the replicates of one series from the store, or draws them, now or in `finish`."""
        if not evidence.ids or not resampled_metrics(self.bench, label):
            return
        where = realisation(self.bench, label, series)
        key = digest([VERSION, self.count, evidence.files, evidence.ids, where, repr(sorted(values.items()))])
        frames = self.frames.setdefault(label, [])
        stored = self.stored.get(label)
        if stored is not None and (known := stored[stored["key"] == key]).shape[0]:
            frames.append(known)
            return
        start = time.perf_counter()
        self.bench.tasks[label].aggregate(statistics)
        seconds = (time.perf_counter() - start) * self.count * len(self.bench.series)
        if self.workers > 1 and seconds > WORTH_WORKERS:
            self.jobs.append(Job(label, self.bench.series.index(series), failed, self.count, key))
        else:
            frames.append(_replicates(self.bench, label, series, evidence, statistics, self.count, key))

    def finish(self) -> dict[str, pd.DataFrame]:
        """Replicates of each task, by its label, columns as of `bootstrap.replicates`; they are stored."""
        if self.jobs:
            context = multiprocessing.get_context("spawn")
            with (
                Bar("bootstrap", len(self.jobs)) as bar,
                ProcessPoolExecutor(self.workers, context, initializer=_start, initargs=(self.bench,)) as pool,
            ):
                for job, frame in zip(self.jobs, pool.map(_work, self.jobs)):
                    self.frames[job.label].append(frame)
                    bar.advance(1)
        found = {}
        for label, frames in self.frames.items():
            if frames:
                frame = pd.concat(frames, ignore_index=True)
                if not frame.equals(self.stored.get(label)):
                    table = pa.Table.from_pandas(frame.assign(task=label), preserve_index=False)
                    self.bench.store.write_table(f"{FOLDER}/{safe_name(label)}-{digest(label)[:6]}.parquet", table)
                found[label] = frame.drop(columns="key")
        return found


def resampled_metrics(bench: Bench, label: str) -> list[str]:
    """The task's metrics that have a meaning under resampled images."""
    return [metric.name for metric in bench.tasks[label].metrics if metric.bootstrap]


def load(store: Store) -> dict[str, pd.DataFrame]:
    """The stored replicates of a run, by task label, with their `key`; what is damaged is as good as absent."""
    found = {}
    for path in store.fs.glob(store.full(f"{FOLDER}/*.parquet")):
        try:
            frame = store.read_table(f"{FOLDER}/{path.rpartition('/')[2]}").to_pandas()
        except UserError:
            continue
        if {"task", "key", *INDEX} <= {*frame.columns} and len(frame):
            found[str(frame["task"].iloc[0])] = frame.drop(columns="task")
    return found


def _replicates(
    bench: Bench, label: str, series: Series, evidence: SeriesPredictions, statistics: Statistics, count: int, key: str
) -> pd.DataFrame:
    sizes: dict[str, Any] = {}
    if evidence.streams is not None:
        streams = evidence.streams
        sizes = {"bits": 8.0 * streams["bytes"], "pixels": streams["height"].astype(float) * streams["width"]}
    aggregate = functools.partial(bench.tasks[label].aggregate, statistics)
    point = Point(series.label, series.point, aggregate, realisation=realisation(bench, label, series), **sizes)
    return replicates([point], len(evidence.ids), resampled_metrics(bench, label), count).assign(key=key)


_bench: Bench | None = None


def _start(bench: Bench) -> None:
    global _bench
    _bench = bench


def _work(job: Job) -> pd.DataFrame:
    assert _bench is not None
    series, task = _bench.series[job.series], _bench.tasks[job.label]
    evidence = gather(_bench, job.label, series, job.failed)
    statistics = task.statistics(evidence.predictions, _targets(job.label, job.failed, tuple(evidence.ids)))
    return _replicates(_bench, job.label, series, evidence, statistics, job.count, job.key)


@functools.lru_cache(maxsize=1)
def _targets(label: str, failed: frozenset[str], ids: tuple[str, ...]) -> list[Any]:
    assert _bench is not None
    originals = gather(_bench, label, _bench.series[0], failed) if _bench.tasks[label].reference == "original" else None
    return targets_of(_bench.tasks[label], ids, originals)
