"""From the shards of a run to scores.csv: predictions -> statistics -> aggregate, one row a metric."""

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
    """All that a task has on one series: predictions in the order of the task's ids, and the streams of the same images."""

    ids: list[str]
    predictions: list[Prediction]
    seconds: float
    streams: pd.DataFrame | None
    files: list[str]  # the prediction shards


# label, series, evidence, statistics, values, failed images
OnScored = Callable[[str, Series, SeriesPredictions, Statistics, Mapping[str, float], frozenset[str]], None]


@dataclass
class ScoreTable:
    """frame: columns `COLUMNS`, of every complete series and task. missing: names of the cells that are not there.

    failed: by task label, the images that leave every codec's score, so that all stand on the same images.
    """

    frame: pd.DataFrame
    missing: list[str]
    failed: dict[str, frozenset[str]]


def score(bench: Bench, seen: OnScored | None = None) -> ScoreTable:
    """Score everything that is complete; `seen` is shown the statistics of each series and task on the way."""
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    left_out: dict[str, frozenset[str]] = {}
    for label, task in bench.tasks.items():
        series_of_task = [series for series in bench.series if series.codec is not None or not task.needs_originals]
        absent = {series.name: absent_cells(bench, label, series) for series in series_of_task}
        missing += [cell for cells in absent.values() for cell in cells]
        complete = [series for series in series_of_task if not absent[series.name]]
        failed = frozenset().union(*(failed_images(bench, label, series) for series in complete))
        if len(failed) > bench.tolerated(label):
            missing.append(
                f"{label}: {len(failed)} of {len(task.ids)} images failed, {sorted(failed)[0]!r} first; see fail_on_error"
            )
            continue
        try:
            rows += _task_rows(bench, label, task, complete, failed, seen)
            left_out[label] = failed
        except Exception as error:  # one task's labels or metric must not cost the others their tables
            missing.append(f"{label}: cannot be scored: {reason(error)}")
    return ScoreTable(pd.DataFrame(rows, columns=COLUMNS), missing, left_out)


def _task_rows(
    bench: Bench, label: str, task: Task, complete: list[Series], failed: frozenset[str], seen: OnScored | None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    targets: list[Any] | None = None
    for series in complete:
        evidence = gather(bench, label, series, failed)
        if targets is None and (series.codec is None or task.reference == "labels"):
            targets = targets_of(task, evidence.ids, evidence)
        if targets is not None:
            statistics = task.statistics(evidence.predictions, targets)
            values = task.aggregate(statistics)
            rows += _rows(bench, label, task, series, evidence, values)
            if seen is not None:
                seen(label, series, evidence, statistics, values, failed)
    return rows


def targets_of(task: Task, ids: Sequence[str], originals: SeriesPredictions | None) -> list[Any]:
    """What the images are scored against: labels, or with `reference: original` the predictions on the originals."""
    if task.reference == "original":
        assert originals is not None
        return list(task.pseudo_targets(originals.predictions))
    return list(task.targets(ids))


def primary_metrics(bench: Bench) -> dict[str, str]:
    """By task label, the metric that stands for the task: the one it marks, else its first."""
    return {label: next((m for m in task.metrics if m.primary), task.metrics[0]).name for label, task in bench.tasks.items()}


def absent_cells(bench: Bench, label: str, series: Series) -> list[str]:
    """Names of the cells of one task and series whose files are not there."""
    return [
        f"{cell_name(block, series)} / {label}"
        for block, _, file, _ in shards(bench, label, series)
        if file is None or not bench.store.exists(file)
    ]


def failed_images(bench: Bench, label: str, series: Series) -> set[str]:
    """Images that could not be read, coded or predicted in one series whose shards are all there."""
    failed: set[str] = set()
    for _, _, file, _ in shards(bench, label, series):
        assert file is not None
        rows = from_table(bench.store.read_table(file, ["id", "error"]), ["id", "error"])
        failed |= {row["id"] for row in rows if row["error"]}
    return failed


def gather(bench: Bench, label: str, series: Series, failed: Collection[str]) -> SeriesPredictions:
    """One task's predictions on one series whose shards are all there, the failed images left out."""
    ids: list[str] = []
    files: list[str] = []
    predictions: list[Prediction] = []
    seconds: list[float] = []
    streams: list[pd.DataFrame] = []
    for _, mine, file, stream in shards(bench, label, series):
        assert file is not None
        table = bench.store.read_table(file)
        good = [image_id not in failed for image_id in mine]
        files.append(file)
        names = [name for name in table.column_names if name not in dict(PREDICTION)]
        kept = table.filter(pa.array(good))
        ids += kept.column("id").to_pylist()
        predictions += from_table(kept, names)
        seconds += kept.column("seconds").to_pylist()
        if stream is not None:
            streams.append(stream.loc[[image_id for image_id, keep in zip(mine, good, strict=True) if keep]])
    frame = pd.concat(streams) if streams else None
    return SeriesPredictions(ids, predictions, float(np.mean(seconds)), frame, files)


def shards(bench: Bench, label: str, series: Series) -> Iterator[tuple[ImageBlock, list[str], str | None, pd.DataFrame | None]]:
    """Blocks that a task scores, with the ids, the prediction shard's name (None while it cannot be known) and the streams."""
    task = bench.tasks[label]
    dataset = next(block.dataset for block in bench.experiment.tasks if block.label == label)
    for block in bench.blocks(dataset):
        mine = bench.scored(label, block)
        if not mine:
            continue
        sources = bench.known_sources(block)
        stream = bench.streams(block, series) if sources is not None and series.codec is not None else None
        if sources is None or (series.codec is not None and stream is None):
            yield block, mine, None, None
            continue
        known = sources.sha256 if stream is None else {i: s if isinstance(s, str) else None for i, s in stream["sha256"].items()}
        pixels = [known[i] for i in mine]
        yield block, mine, prediction_name(block, mine, sources, series, label, task, pixels), stream


def _rows(
    bench: Bench, label: str, task: Task, series: Series, evidence: SeriesPredictions, values: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    block = next(block for block in bench.experiment.tasks if block.label == label)
    common = {
        "codec": series.label,
        "point": series.point,
        "dataset": block.dataset,
        "task": label,
        "model": block.model["name"] if block.model else "",
        "reference": "source" if task.annotation is None else task.reference,
        "realisation": realisation(bench, label, series),
        "expected": len(task.ids),
        "scored": len(evidence.ids),
        "empty": sum(task.is_empty(prediction) for prediction in evidence.predictions),
        "failed": len(task.ids) - len(evidence.ids),
        "limited": task.dataset.limit is not None,
        "task_seconds": evidence.seconds,
        **_rates(evidence.streams),
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
    """Empty where pixels follow from bytes; else the seed and, where decoding is not deterministic, a digest of the pixels."""
    parts = [] if series.seed is None else [f"seed={series.seed}"]
    if not series.deterministic:
        dataset = next(block.dataset for block in bench.experiment.tasks if block.label == label)
        frames = (bench.streams(block, series) for block in bench.blocks(dataset))
        parts.append(digest([str(pixels) for frame in frames if frame is not None for pixels in frame["sha256"]])[:8])
    return " ".join(parts)


def bit_split(bench: Bench) -> pd.DataFrame:
    """Mean bits of an image by part of the stream, of every codec point that itemises its streams; columns as of `analyses`."""
    records = []
    for series in bench.series[1:]:
        frames = [bench.streams(block, series) for dataset in bench.datasets for block in bench.blocks(dataset)]
        texts = [text for frame in frames if frame is not None for text in frame["parts"].dropna()]
        split = pd.DataFrame([json.loads(text) for text in texts]).fillna(0).mean()
        records += [(series.label, series.point, str(part), bits) for part, bits in split.items()]
    frame = pd.DataFrame(records, columns=["codec", "point", "part", "bits"])
    return frame.groupby(["codec", "point", "part"], sort=False, as_index=False)["bits"].mean()  # over seeds


def _rates(streams: pd.DataFrame | None) -> dict[str, float | None]:
    """Bits of the scored images' streams over their source pixels, and seconds an image."""
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
