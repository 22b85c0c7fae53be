"""From the store to scores.csv: predictions -> statistics -> aggregate, one row per metric."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from icmbench.harness.derive.gathering import Gatherer, SeriesPredictions, one_machine_mean
from icmbench.harness.store.keys import digest
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.series import AnySeries, Series
from icmbench.results.columns import ESTIMATED, MEASURED, SCORE_COLUMNS
from icmbench.tasks.base import Statistics, Task

# Called with task label, series, predictions, statistics, value of each metric by name, and the ids of the images that failed.
OnScored = Callable[[str, AnySeries, SeriesPredictions, Statistics, Mapping[str, float], frozenset[str]], None]


@dataclass
class ScoreTable:
    """The scores of a run as far as it is complete.

    Attributes:
        frame: columns `SCORE_COLUMNS`, for every complete series and task.
        missing: names of the cells that are not stored, and tasks that could not be scored, with the reason.
        failed: by task label, the ids of the images that failed for any codec. They are left out of every codec's score, so that
            all codecs are scored on the same images.
    """

    frame: pd.DataFrame
    missing: list[str]
    failed: dict[str, frozenset[str]]


def score(bench: Bench, gatherer: Gatherer, on_scored: OnScored | None = None) -> ScoreTable:
    """Score every task on every series of which no prediction is missing.

    Args:
        bench: the experiment and its store.
        gatherer: reads the store.
        on_scored: called with the predictions, statistics and values of each series and task, while they are in memory.
    """
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    failed_by_task: dict[str, frozenset[str]] = {}
    for label, task in bench.tasks.items():
        series_of_task = bench.series_of(label)
        absent = {series.name: gatherer.missing_cells(label, series) for series in series_of_task}
        missing += [cell for cells in absent.values() for cell in cells]
        complete = [series for series in series_of_task if not absent[series.name]]
        failed = frozenset().union(*(gatherer.failed(label, series) for series in complete))
        if len(failed) > bench.max_failed_images(label):
            missing.append(
                f"{label}: {len(failed)} of {len(task.ids)} images failed, {sorted(failed)[0]!r} first; see fail_on_error"
            )
            continue
        try:
            scored = _task_rows(bench, gatherer, label, complete, failed, on_scored)
            rows += scored
            failed_by_task[label] = failed
            primary = primary_metric(task)
            if scored and all(math.isnan(row["value"]) for row in scored if row["metric"] == primary):
                missing.append(f"{label}: {primary} is undefined for every codec: the labels hold nothing to score")
        except Exception as error:  # A task whose labels or metric fail must not cost the others their tables.
            missing.append(f"{label}: cannot be scored: {reason(error)}")
    return ScoreTable(pd.DataFrame(rows, columns=SCORE_COLUMNS), missing, failed_by_task)


def _task_rows(
    bench: Bench,
    gatherer: Gatherer,
    label: str,
    complete: list[AnySeries],
    failed: frozenset[str],
    on_scored: OnScored | None,
) -> list[dict[str, Any]]:
    task = bench.tasks[label]
    if task.has_context:
        bench.load_context(label)
    rows: list[dict[str, Any]] = []
    targets: list[Any] | None = None
    for series in complete:
        gathered = gatherer.gather(label, series, failed)
        if targets is None and (series.is_original or task.reference == "labels"):
            targets = targets_of(task, gathered.ids, gathered)
        if targets is not None:
            statistics = task.statistics(gathered.predictions, targets)
            values = task.aggregate(statistics)
            rows += _series_rows(bench, gatherer, label, series, gathered, values)
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
    return {label: primary_metric(task) for label, task in bench.tasks.items()}


def primary_metric(task: Task) -> str:
    """Name of the metric that stands for a task."""
    return next((metric for metric in task.metrics if metric.primary), task.metrics[0]).name


def _series_rows(
    bench: Bench, gatherer: Gatherer, label: str, series: AnySeries, gathered: SeriesPredictions, values: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """Rows of scores.csv of one task on one series, one per metric."""
    task = bench.tasks[label]
    common = {
        "codec": series.label,
        "point": series.point,
        "dataset": bench.dataset_of(label),
        "task": label,
        "model": bench.model_of(label),
        "reference": "source" if task.annotation is None else task.reference,
        "realisation": realisation(gatherer, label, series),
        "expected": len(task.ids),
        "scored": len(gathered.ids),
        "empty": sum(task.is_empty(prediction) for prediction in gathered.predictions),
        "failed": len(task.ids) - len(gathered.ids),
        "limited": task.dataset.limit is not None,
        "task_seconds": gathered.seconds,
        "images": gathered.images,
        **_rates(gathered.streams),
        "rate_kind": "" if not isinstance(series, Series) else ESTIMATED if series.estimated else MEASURED,
    }
    for metric in task.metrics:
        yield {
            **dict.fromkeys(SCORE_COLUMNS),
            **common,
            "metric": metric.name,
            "value": values[metric.name],
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
        }


def realisation(gatherer: Gatherer, label: str, series: AnySeries) -> str:
    """Tells apart rows of one rate point whose pixels differ.

    Returns:
        The seed, if the experiment names seeds, and a digest of the decoded pixels, if decoding is not deterministic; empty if
        neither is the case.
    """
    marks = [] if series.seed is None else [f"seed={series.seed}"]
    if not series.deterministic:
        marks.append(digest([str(pixels) for pixels in gatherer.streams.pixels(gatherer.bench.dataset_of(label), series)])[:8])
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


def bit_split(gatherer: Gatherer) -> pd.DataFrame:
    """Mean bits per image of each part of the stream, for every codec point that itemises its streams.

    Returns:
        Columns codec, point, part and bits, as `icmbench.results.analyses` draws them; the mean is over seeds too.
    """
    bench = gatherer.bench
    records = []
    for series in bench.series:
        if not isinstance(series, Series):
            continue
        parts = [gatherer.streams.parts(dataset, series) for dataset in bench.datasets if bench.task_labels(dataset)]
        bits, count = Counter[str](), sum(of_dataset.itemised for of_dataset in parts)
        for of_dataset in parts:
            bits.update(of_dataset.bits)
        records += [(series.label, series.point, part, total / count) for part, total in bits.items()]
    frame = pd.DataFrame(records, columns=["codec", "point", "part", "bits"])
    return frame.groupby(["codec", "point", "part"], sort=False, as_index=False)["bits"].mean()


def _rates(streams: pd.DataFrame | None) -> dict[str, Any]:
    """Bits of the scored images' streams, or estimated ones, over their source pixels; and seconds per image."""
    if streams is None:
        return {}
    pixels = streams["height"].astype("int64") * streams["width"]
    bits = streams["bits"]
    payload = None
    if streams["parts"].notna().all():
        payload = float((bits - streams["header"]).sum() / pixels.sum())
    return {
        "bpp": float(bits.sum() / pixels.sum()),
        "payload_bpp": payload,
        "mean_image_bpp": float((bits / pixels).mean()),
        "encode_seconds": one_machine_mean(streams, "encode_seconds"),
        "decode_seconds": one_machine_mean(streams, "decode_seconds"),
        "machine": " ".join(sorted(streams["machine"].unique())),
    }
