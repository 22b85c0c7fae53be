"""The paired bootstrap of a run: every task's `aggregate` under resampled images, at each codec point, stored with the run.

    predictions -> statistics -> aggregate under weights -> replicates/<task>-<key>.parquet -> intervals of scores and BD-rates

A codec point is not resampled again if its stored replicates were made from the same predictions and values. Slow tasks are
resampled in worker processes, one codec point at a time; each worker reads the predictions itself, so that only names are sent.
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
from icmbench.harness.store.formats import FormatError
from icmbench.harness.store.shards import Series, digest
from icmbench.harness.store.store import Store, safe_name
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.progress import Bar
from icmbench.results.bootstrap import INDEX, Point, draw_replicates
from icmbench.tasks.base import Statistics

VERSION = 1  # Raised by hand when replicates are drawn differently, so that stored ones are drawn again.
FOLDER = "replicates"
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
        bench: the experiment and its store.
        count: replicates of each codec point.
        workers: worker processes for slow tasks.
    """

    def __init__(self, bench: Bench, count: int, workers: int = 1) -> None:
        self.bench, self.count, self.workers = bench, count, workers
        self.stored = load_replicates(bench.store)
        self.frames: dict[str, list[pd.DataFrame]] = {}
        self.jobs: list[ResamplingJob] = []

    def add(self, label: str, series: Series, gathered: SeriesPredictions, statistics: Statistics, values: Mapping[str, float],
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
        mark = realisation(self.bench, label, series)
        key = digest([VERSION, self.count, gathered.files, gathered.ids, mark, repr(sorted(values.items()))])
        frames = self.frames.setdefault(label, [])
        stored = self.stored.get(label)
        if stored is not None and (reusable := stored[stored["key"] == key]).shape[0]:
            frames.append(reusable)
            return
        start = time.perf_counter()
        self.bench.tasks[label].aggregate(statistics)
        seconds = (time.perf_counter() - start) * self.count * len(self.bench.series)
        if self.workers > 1 and seconds > WORTH_WORKERS:
            self.jobs.append(ResamplingJob(label, self.bench.series.index(series), failed, self.count, key))
        else:
            frames.append(_resample_series(self.bench, label, series, gathered, statistics, self.count, key))

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
                    self.bench.store.write_table(f"{FOLDER}/{safe_name(label)}-{digest(label)[:6]}.parquet", table)
                replicates[label] = frame.drop(columns="key")
        return replicates


def resampled_metrics(bench: Bench, label: str) -> list[str]:
    """Names of the task's metrics that have a meaning under resampled images."""
    return [metric.name for metric in bench.tasks[label].metrics if metric.bootstrap]


def load_replicates(store: Store) -> dict[str, pd.DataFrame]:
    """The stored replicates of a run by task label, with a column `key`; damaged files are treated as absent.

    Raises:
        FormatError: a newer icmbench wrote a file.
    """
    replicates = {}
    for path in store.fs.glob(store.full_path(f"{FOLDER}/*.parquet")):
        try:
            frame = store.read_table(f"{FOLDER}/{path.rpartition('/')[2]}").to_pandas()
        except FormatError:
            raise
        except UserError:
            continue
        if _is_whole(frame):
            replicates[str(frame["task"].iloc[0])] = frame.drop(columns="task")
    return replicates


def _is_whole(frame: pd.DataFrame) -> bool:
    """Whether a stored frame is as `Resampling.finish` writes it: typed columns, and every replicate of each series once."""
    if not {"task", "key", *INDEX, "bpp"} <= {*frame.columns} or not len(frame) or frame.columns.has_duplicates:
        return False
    texts = ["task", "key", *INDEX[:3]]
    numbers = [column for column in frame.columns if column not in (*texts, "replicate")]
    if not all(frame[column].map(type).eq(str).all() for column in texts) or frame["task"].nunique() > 1:
        return False
    if not all(pd.api.types.is_float_dtype(frame[column]) for column in numbers):
        return False
    if not pd.api.types.is_integer_dtype(frame["replicate"]):
        return False
    sizes = frame.groupby(INDEX[:3])["replicate"].agg(["min", "max", "nunique", "size"])
    complete = (sizes["min"] == 0) & (sizes["max"] + 1 == sizes["size"]) & (sizes["nunique"] == sizes["size"])
    return bool(complete.all() and sizes["size"].nunique() == 1)


def _resample_series(
    bench: Bench, label: str, series: Series, gathered: SeriesPredictions, statistics: Statistics, count: int, key: str
) -> pd.DataFrame:
    sizes: dict[str, Any] = {}
    if gathered.streams is not None:
        streams = gathered.streams
        sizes = {"bits": 8.0 * streams["bytes"], "pixels": streams["height"].astype(float) * streams["width"]}
    aggregate = functools.partial(bench.tasks[label].aggregate, statistics)
    point = Point(series.label, series.point, aggregate, realisation=realisation(bench, label, series), **sizes)
    return draw_replicates([point], len(gathered.ids), resampled_metrics(bench, label), count).assign(key=key)


# The rest runs in worker processes.

_worker_bench: Bench | None = None  # Kept from one job to the next, so that its plug-ins are built once.


def _set_worker_bench(bench: Bench) -> None:
    global _worker_bench
    _worker_bench = bench


def _resample_job(job: ResamplingJob) -> pd.DataFrame:
    assert _worker_bench is not None
    bench = _worker_bench
    series, task = bench.series[job.series], bench.tasks[job.label]
    gathered = gather(bench, job.label, series, job.failed)
    statistics = task.statistics(gathered.predictions, _targets(job.label, job.failed, tuple(gathered.ids)))
    return _resample_series(bench, job.label, series, gathered, statistics, job.count, job.key)


@functools.lru_cache(maxsize=1)
def _targets(label: str, failed: frozenset[str], ids: tuple[str, ...]) -> list[Any]:
    assert _worker_bench is not None
    bench = _worker_bench
    originals = gather(bench, label, bench.series[0], failed) if bench.tasks[label].reference == "original" else None
    return targets_of(bench.tasks[label], ids, originals)
