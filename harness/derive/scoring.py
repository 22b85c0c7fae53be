"""From the shards of a run to scores.csv: predictions -> statistics -> aggregate, one row per metric."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from icmbench.harness.store.shards import PREDICTION, ImageBlock, Series, cell_name, digest, prediction_name
from icmbench.harness.store.store import from_table
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.bench import Bench
from icmbench.tasks.base import Prediction, Statistics, Task

COLUMNS = [
    "codec", "point", "dataset", "task", "model", "metric", "value", "low", "high", "unit", "higher_is_better", "reference",
    "realisation", "bpp", "payload_bpp", "mean_image_bpp", "expected", "scored", "empty", "failed", "limited", "encode_seconds",
    "decode_seconds", "task_seconds", "undefined",
]  # fmt: skip


@dataclass
class SeriesPredictions:
    """What the shards hold of one task on one series, images that failed left out.

    Attributes:
        ids: the images, in the order of the task's ids.
        predictions: one per image.
        seconds: mean seconds that the task took per image.
        streams: columns of the stream shards without the bytes, one row per image, indexed by id; None for the originals.
        files: names of the prediction shards.
    """

    ids: list[str]
    predictions: list[Prediction]
    seconds: float
    streams: pd.DataFrame | None
    files: list[str]


# Called with task label, series, predictions, statistics, value of each metric by name, and the ids of the images that failed.
OnScored = Callable[[str, Series, SeriesPredictions, Statistics, Mapping[str, float], frozenset[str]], None]


@dataclass
class ScoreTable:
    """The scores of a run as far as it is complete.

    Attributes:
        frame: columns `COLUMNS`, for every complete series and task.
        missing: names of the cells that are not stored, and tasks that could not be scored, with the reason.
        failed: by task label, the ids of the images that failed for any codec. They are left out of every codec's score, so that
            all codecs are scored on the same images.
    """

    frame: pd.DataFrame
    missing: list[str]
    failed: dict[str, frozenset[str]]


@dataclass
class TaskShard:
    """One block of a series, as one task scores it.

    Attributes:
        block: the images.
        ids: those of them that the task scores.
        file: name of the prediction shard; None if it depends on pixels that are not recorded yet.
        streams: columns of the stream shard without the bytes, indexed by image id; None for the originals or if it is missing.
    """

    block: ImageBlock
    ids: list[str]
    file: str | None
    streams: pd.DataFrame | None


def score(bench: Bench, on_scored: OnScored | None = None) -> ScoreTable:
    """Score every task on every series whose shards are complete.

    Args:
        bench: the experiment and its store.
        on_scored: called with the predictions, statistics and values of each series and task, while they are in memory.
    """
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    failed_by_task: dict[str, frozenset[str]] = {}
    for label, task in bench.tasks.items():
        series_of_task = [series for series in bench.series if series.codec is not None or not task.needs_originals]
        absent = {series.name: absent_cells(bench, label, series) for series in series_of_task}
        missing += [cell for cells in absent.values() for cell in cells]
        complete = [series for series in series_of_task if not absent[series.name]]
        failed = frozenset().union(*(failed_images(bench, label, series) for series in complete))
        if len(failed) > bench.max_failed_images(label):
            missing.append(
                f"{label}: {len(failed)} of {len(task.ids)} images failed, {sorted(failed)[0]!r} first; see fail_on_error"
            )
            continue
        try:
            rows += _task_rows(bench, label, task, complete, failed, on_scored)
            failed_by_task[label] = failed
        except Exception as error:  # A task whose labels or metric fail must not cost the others their tables.
            missing.append(f"{label}: cannot be scored: {reason(error)}")
    return ScoreTable(pd.DataFrame(rows, columns=COLUMNS), missing, failed_by_task)


def _task_rows(
    bench: Bench, label: str, task: Task, complete: list[Series], failed: frozenset[str], on_scored: OnScored | None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    targets: list[Any] | None = None
    for series in complete:
        gathered = gather(bench, label, series, failed)
        if targets is None and (series.codec is None or task.reference == "labels"):
            targets = targets_of(task, gathered.ids, gathered)
        if targets is not None:
            statistics = task.statistics(gathered.predictions, targets)
            values = task.aggregate(statistics)
            rows += _series_rows(bench, label, task, series, gathered, values)
            if on_scored is not None:
                on_scored(label, series, gathered, statistics, values, failed)
    return rows


def targets_of(task: Task, ids: Sequence[str], originals: SeriesPredictions | None) -> list[Any]:
    """What predictions are scored against, one target per image.

    Args:
        task: decides whether these are labels or, with `reference: original`, predictions on the originals.
        ids: the images.
        originals: predictions on the originals of the same images; needed with `reference: original` only.
    """
    if task.reference == "original":
        assert originals is not None
        return list(task.pseudo_targets(originals.predictions))
    return list(task.targets(ids))


def primary_metrics(bench: Bench) -> dict[str, str]:
    """By task label, the name of the metric that stands for the task: the one marked as primary, otherwise the first."""
    return {label: next((m for m in task.metrics if m.primary), task.metrics[0]).name for label, task in bench.tasks.items()}


def absent_cells(bench: Bench, label: str, series: Series) -> list[str]:
    """Names of the cells of one task and series whose prediction shards are missing."""
    return [
        f"{cell_name(shard.block, series)} / {label}"
        for shard in task_shards(bench, label, series)
        if shard.file is None or not bench.store.exists(shard.file)
    ]


def failed_images(bench: Bench, label: str, series: Series) -> set[str]:
    """Ids of the images that could not be read, coded or predicted in one series, all of whose shards must be stored."""
    failed: set[str] = set()
    for shard in task_shards(bench, label, series):
        assert shard.file is not None
        rows = from_table(bench.store.read_table(shard.file, ["id", "error"]), ["id", "error"])
        failed |= {row["id"] for row in rows if row["error"]}
    return failed


def gather(bench: Bench, label: str, series: Series, failed: Collection[str]) -> SeriesPredictions:
    """Read the predictions of one task on one series, all of whose shards must be stored.

    Args:
        bench: the experiment and its store.
        label: the task.
        series: the codec at its point and seed, or the originals.
        failed: ids of images to leave out.
    """
    ids: list[str] = []
    files: list[str] = []
    predictions: list[Prediction] = []
    seconds: list[float] = []
    streams: list[pd.DataFrame] = []
    for shard in task_shards(bench, label, series):
        assert shard.file is not None
        table = bench.store.read_table(shard.file)
        scored = [image_id not in failed for image_id in shard.ids]
        files.append(shard.file)
        names = [name for name in table.column_names if name not in dict(PREDICTION)]
        table = table.filter(pa.array(scored))
        ids += table.column("id").to_pylist()
        predictions += from_table(table, names)
        seconds += table.column("seconds").to_pylist()
        if shard.streams is not None:
            streams.append(shard.streams.loc[[image_id for image_id, keep in zip(shard.ids, scored, strict=True) if keep]])
    frame = pd.concat(streams) if streams else None
    return SeriesPredictions(ids, predictions, float(np.mean(seconds)), frame, files)


def task_shards(bench: Bench, label: str, series: Series) -> Iterator[TaskShard]:
    """Every block of which a task scores at least one image, with the name of the prediction shard for one series."""
    task = bench.tasks[label]
    dataset = next(section.dataset for section in bench.experiment.tasks if section.label == label)
    for block in bench.blocks(dataset):
        ids = bench.scored_ids(label, block)
        if not ids:
            continue
        sources = bench.stored_sources(block)
        streams = bench.stream_frame(block, series) if sources is not None and series.codec is not None else None
        if sources is None or (series.codec is not None and streams is None):
            yield TaskShard(block, ids, None, None)
            continue
        if streams is None:
            hashes = sources.sha256
        else:  # An image that could not be coded has no hash, which pandas represents as NaN.
            hashes = {i: sha256 if isinstance(sha256, str) else None for i, sha256 in streams["sha256"].items()}
        file = prediction_name(block, ids, sources, series, label, task, [hashes[i] for i in ids])
        yield TaskShard(block, ids, file, streams)


def _series_rows(
    bench: Bench, label: str, task: Task, series: Series, gathered: SeriesPredictions, values: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """Rows of scores.csv of one task on one series, one per metric."""
    section = next(section for section in bench.experiment.tasks if section.label == label)
    common = {
        "codec": series.label,
        "point": series.point,
        "dataset": section.dataset,
        "task": label,
        "model": section.model["name"] if section.model else "",
        "reference": "source" if task.annotation is None else task.reference,
        "realisation": realisation(bench, label, series),
        "expected": len(task.ids),
        "scored": len(gathered.ids),
        "empty": sum(task.is_empty(prediction) for prediction in gathered.predictions),
        "failed": len(task.ids) - len(gathered.ids),
        "limited": task.dataset.limit is not None,
        "task_seconds": gathered.seconds,
        **_rates(gathered.streams),
    }
    for metric in task.metrics:
        yield {
            **dict.fromkeys(COLUMNS),
            **common,
            "metric": metric.name,
            "value": values[metric.name],
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
        }


def realisation(bench: Bench, label: str, series: Series) -> str:
    """Tells apart rows of one rate point whose pixels differ.

    Returns:
        The seed, if the experiment names seeds, and a digest of the decoded pixels, if decoding is not deterministic; empty if
        neither is the case.
    """
    marks = [] if series.seed is None else [f"seed={series.seed}"]
    if not series.deterministic:
        dataset = next(section.dataset for section in bench.experiment.tasks if section.label == label)
        frames = (bench.stream_frame(block, series) for block in bench.blocks(dataset))
        marks.append(digest([str(sha256) for frame in frames if frame is not None for sha256 in frame["sha256"]])[:8])
    return never_a_number(" ".join(marks))


def never_a_number(mark: str) -> str:
    """A mark as it is or, if it reads as a number, with an `x` in front.

    One in forty digests is all decimal digits, and some have a single `e` among them, like 12345e67. If every mark in a column of
    a CSV file is such a digest, pandas and other readers take the column for numbers, and 00012345 becomes 12345.
    """
    try:
        float(mark)
    except ValueError:
        return mark
    return f"x{mark}"


def bit_split(bench: Bench) -> pd.DataFrame:
    """Mean bits per image of each part of the stream, for every codec point that itemises its streams.

    Returns:
        Columns codec, point, part and bits, as `icmbench.results.analyses` draws them; the mean is over seeds too.
    """
    records = []
    for series in bench.series[1:]:
        frames = [bench.stream_frame(block, series) for dataset in bench.datasets for block in bench.blocks(dataset)]
        texts = [text for frame in frames if frame is not None for text in frame["parts"].dropna()]
        mean_bits = pd.DataFrame([json.loads(text) for text in texts]).fillna(0).mean()
        records += [(series.label, series.point, str(part), bits) for part, bits in mean_bits.items()]
    frame = pd.DataFrame(records, columns=["codec", "point", "part", "bits"])
    return frame.groupby(["codec", "point", "part"], sort=False, as_index=False)["bits"].mean()


def _rates(streams: pd.DataFrame | None) -> dict[str, float | None]:
    """Bits of the scored images' streams over their source pixels, and seconds per image."""
    if streams is None:
        return {}
    pixels = streams["height"].astype("int64") * streams["width"]
    bits = 8 * streams["bytes"]
    payload = None
    if streams["parts"].notna().all():
        headers = streams["parts"].map(lambda parts: json.loads(parts).get("header", 0))
        payload = float((bits - headers).sum() / pixels.sum())
    return {
        "bpp": float(bits.sum() / pixels.sum()),
        "payload_bpp": payload,
        "mean_image_bpp": float((bits / pixels).mean()),
        "encode_seconds": float(streams["encode_seconds"].mean()),
        "decode_seconds": float(streams["decode_seconds"].mean()),
    }
