"""Paired bootstrap over images: intervals for every score, and for BD-rate and BD-quality.

    weights of the images (how often each was drawn) --aggregate--> scores  --\
        equal for every codec and point              --bits, pixels--> bpp  ---> replicates -> intervals, BD intervals

A replicate draws n of the n images with replacement, once for all codecs and points, so that what the images have in common
cancels in a difference (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8). All scores, those of a whole
dataset included, and all rates are aggregated anew under these weights: a replicate is a whole set of curves.

Intervals are percentiles of the replicates, moved so that their median lies on the estimate. Resampling repeats images and so
shifts a score such as AP on few images and many categories (on 100 images by 4 points), by the same amount for every codec: plain
percentiles then miss the score itself, and the bias corrections BC and BCa collapse to one side of it. If the replicates are
centred on the estimate, this is the plain percentile interval. BCa would also take a jackknife over all images for every point
and every delta.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from icmbench.results.batch import pareto_pchip_deltas
from icmbench.results.bd import Envelope, Method, bd_rate

Array = npt.NDArray[np.float64]

# The columns of replicates beside bpp and the metrics.
INDEX = ["codec", "point", "realisation", "replicate"]
SCORE_INTERVAL_COLUMNS = ["codec", "point", "realisation", "metric", "value", "low", "high", "undefined"]
BD_INTERVAL_COLUMNS = [
    "codec", "anchor", "metric", "low", "high", "undefined", "quality_low", "quality_high", "quality_undefined", "replicates",
]  # fmt: skip
# Replicates per job: enough to outweigh the start of a job and to score together, few enough to share one point among processes.
JOB_SIZE = 256
# Weights that are drawn at once, 128 MiB of float64: fewer replicates are scored together if there are very many images.
DRAWN_AT_ONCE = 2**24
# With a smaller share of defined replicates there is no interval.
MIN_DEFINED_SHARE = 0.5


@dataclass(frozen=True)
class Point:
    """A codec at one rate point: what the bootstrap needs to know about it.

    Attributes:
        codec: name of the codec.
        point: label of the rate point.
        aggregate: from weights, float64 (images,), how often each image counts, to {metric: value}. All points have the images in
            the same order. It must pickle to be used by an executor of processes. If it has an attribute `takes_batches` that is
            true (or is a `functools.partial` of a function or method that has), it is called with the weights of many replicates,
            float64 (replicates, images), and returns float64 (replicates,) for each metric: the same numbers sooner.
        bits: size of each image's stream in bits, (images,); None for what has no rate (uncompressed).
        pixels: number of pixels of each image's source, (images,); None for what has no rate.
        realisation: tells repeated codings of one point apart.
    """

    codec: str
    point: str
    aggregate: Callable[[Array], Mapping[str, Any]]
    bits: npt.ArrayLike | None = None
    pixels: npt.ArrayLike | None = None
    realisation: str = ""


def draw_weights(n_images: int, seed: int, replicate: int) -> Array:
    """How often each image counts in a replicate: a multinomial draw; all ones in replicate 0.

    The weights follow from the arguments alone, so that no order of jobs can unpair two codecs.

    Args:
        n_images: number of images.
        seed: of the whole bootstrap, from 0.
        replicate: number of the replicate, from 0.

    Returns:
        float64 (n_images,), whole numbers that add up to n_images.

    Example:
        >>> draw_weights(3, seed=0, replicate=0)
        array([1., 1., 1.])
        >>> float(draw_weights(100, seed=0, replicate=1).sum())
        100.0
    """
    if replicate == 0:
        return np.ones(n_images)
    drawn = np.random.default_rng([seed, replicate]).integers(0, n_images, n_images)
    return np.bincount(drawn, minlength=n_images).astype(np.float64)


def draw_replicates(
    points: Sequence[Point],
    n_images: int,
    metrics: Sequence[str],
    count: int = 1000,
    seed: int = 0,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Scores and rates of all points under resampled images.

    Args:
        points: codecs at their rate points, all of them on the same images.
        n_images: number of images.
        metrics: the metrics to resample; leave out those that declare `bootstrap=False`.
        count: number of resamplings.
        seed: of the resamplings, from 0.
        executor: computes points and replicates in parallel; the numbers do not depend on it.

    Returns:
        Columns codec, point, realisation, replicate (int), bpp (NaN without bits), then one per metric, float64. Replicate 0 is
        the images as they are, replicates 1 to `count` are resampled.

    Raises:
        ValueError: there is no image or no replicate, the sizes of a point do not fit, a point is given twice, a metric has the
            name of another column, or a point does not have the metric.
    """
    if n_images < 1 or count < 1 or seed < 0:
        raise ValueError(f"a bootstrap needs images, replicates and a seed from 0, got {n_images}, {count} and {seed}")
    if {*metrics} & {*INDEX, "bpp"}:
        raise ValueError(f"a metric cannot be called {', '.join({*metrics} & {*INDEX, 'bpp'})}; rename it")
    names = [(point.codec, point.point, point.realisation) for point in points]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"codec {name[0]!r} has point {name[1]!r} twice; name their realisation")
    columns = [*INDEX, "bpp", *metrics]
    if not points or not metrics:
        return pd.DataFrame(columns=columns)
    jobs = [(point, n_images, tuple(metrics), seed, first, min(first + JOB_SIZE, count + 1)) for point in points
            for first in range(0, count + 1, JOB_SIZE)]  # fmt: skip
    values = np.concatenate([*(executor.map if executor else map)(_resample, *zip(*jobs, strict=True))])
    frame = pd.DataFrame(
        {column: [name[k] for name in names for _ in range(count + 1)] for k, column in enumerate(INDEX[:3])}, columns=columns[:3]
    )
    frame["replicate"] = np.tile(np.arange(count + 1), len(points))
    return pd.concat([frame, pd.DataFrame(values, columns=columns[4:])], axis=1)


def _resample(point: Point, n_images: int, metrics: tuple[str, ...], seed: int, first: int, end: int) -> Array:
    """bpp and metrics of replicates first to end - 1, float64 (end - first, 1 + metrics)."""
    has_rate = point.bits is not None and point.pixels is not None
    sizes = [np.asarray(column, dtype=np.float64) for column in ((point.bits, point.pixels) if has_rate else ())]
    if any(column.shape != (n_images,) for column in sizes):
        shapes = " and ".join(str(column.shape) for column in sizes)
        raise ValueError(
            f"codec {point.codec!r}, point {point.point!r} has bits and pixels of shapes {shapes} for {n_images} images"
        )
    batch = max(1, DRAWN_AT_ONCE // n_images)
    batches = [range(start, min(start + batch, end)) for start in range(first, end, batch)]
    return np.concatenate([_scores(point, sizes, metrics, n_images, seed, replicates) for replicates in batches])


def _scores(point: Point, sizes: list[Array], metrics: tuple[str, ...], n_images: int, seed: int, replicates: range) -> Array:
    """bpp and metrics of some replicates, float64 (replicates, 1 + metrics)."""
    weights = _drawn_counts(n_images, seed, replicates).astype(np.float64)
    rows = np.full((len(weights), 1 + len(metrics)), np.nan)
    if sizes:
        rows[:, 0] = [np.divide(*(column @ drawn for column in sizes)) for drawn in weights]
    if _takes_batches(point.aggregate):
        values = dict(point.aggregate(weights))
    else:
        each = [point.aggregate(drawn) for drawn in weights]
        names = [name for name in each[0] if all(name in of_one for of_one in each)]
        values = {name: [of_one[name] for of_one in each] for name in names}
    for k, metric in enumerate(metrics, start=1):
        if metric not in values:
            raise ValueError(f"codec {point.codec!r}, point {point.point!r} has no metric {metric!r}; it has {', '.join(values)}")
        if np.shape(values[metric]) != (len(weights),):
            raise ValueError(
                f"codec {point.codec!r}, point {point.point!r}: the scores {metric!r} of {len(weights)} replicates are of shape "
                f"{np.shape(values[metric])}; return one number for each row of weights, or do not declare `takes_batches`"
            )
        rows[:, k] = values[metric]
    return rows


@functools.lru_cache(maxsize=8)  # Every point and task has the same weights; a byte each, so at most 128 MiB.
def _drawn_counts(n_images: int, seed: int, replicates: range) -> npt.NDArray[np.unsignedinteger]:
    """The weights of some replicates, (replicates, images), as the smallest integers that hold them."""
    counts = [draw_weights(n_images, seed, replicate) for replicate in replicates]
    smallest = np.min_scalar_type(int(max(drawn.max() for drawn in counts)))
    return np.stack([drawn.astype(smallest) for drawn in counts])


def _takes_batches(aggregate: Callable[..., Any]) -> bool:
    while isinstance(aggregate, functools.partial):
        aggregate = aggregate.func
    return bool(getattr(aggregate, "takes_batches", False))


def centred_interval(estimate: float, samples: npt.ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """The interval of a number from its replicates, those that are not finite left out.

    Args:
        estimate: the number on the images as they are.
        samples: its replicates, float (n,).
        level: the share of replicates that the interval covers, between 0 and 1.

    Returns:
        Low, high, and the share of samples that are not finite. Low and high are NaN if the estimate is not finite, or if fewer
        than half of the samples are.

    Raises:
        ValueError: the level does not lie between 0 and 1.

    Example:
        >>> centred_interval(10.0, [0.0, 1.0, 2.0, 3.0, 4.0], level=0.5)
        (9.0, 11.0, 0.0)
    """
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, got {level}")
    samples = np.asarray(samples, dtype=np.float64)
    finite = samples[np.isfinite(samples)]
    undefined = 1 - len(finite) / len(samples) if len(samples) else 1.0
    if not np.isfinite(estimate) or 1 - undefined < MIN_DEFINED_SHARE:
        return math.nan, math.nan, undefined
    low, median, high = np.quantile(finite, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return float(estimate + low - median), float(estimate + high - median), undefined


def score_intervals(replicates: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Intervals of every score.

    Args:
        replicates: as `draw_replicates` returns them.
        level: the share of replicates that an interval covers, between 0 and 1.

    Returns:
        One row per codec, point, realisation and metric, columns `SCORE_INTERVAL_COLUMNS`; `undefined` is the share of replicates
        without a finite value.
    """
    records = []
    for name, rows in replicates.groupby(INDEX[:3], sort=False):
        for metric in _metric_columns(replicates):
            estimate, samples = _split_estimate(rows.sort_values("replicate")[metric].to_numpy())
            low, high, undefined = centred_interval(estimate, samples, level)
            records.append((*name, metric, estimate, low, high, undefined))
    return pd.DataFrame(records, columns=SCORE_INTERVAL_COLUMNS)


def bd_intervals(
    replicates: pd.DataFrame,
    anchor: str,
    lower_is_better: Sequence[str] = (),
    method: Method = "pchip",
    envelope: Envelope = "pareto",
    level: float = 0.95,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Intervals of BD-rate and BD-quality of every codec against the anchor.

    A replicate gives one curve per codec, its realisations averaged first, and so one delta. Rows of `uncompressed`, which have no
    rate, are ignored.

    Args:
        replicates: as `draw_replicates` returns them.
        anchor: name of the codec to compare with.
        lower_is_better: metrics of which less is better.
        method: interpolation of the curves, as in `bd_rate`.
        envelope: what happens to curves that do not rise, as in `bd_rate`.
        level: the share of replicates that an interval covers, between 0 and 1.
        executor: computes codecs and metrics in parallel; the numbers do not depend on it.

    Returns:
        One row per codec and metric, columns `BD_INTERVAL_COLUMNS`: `low` and `high` of BD-rate in percent, `quality_low` and
        `quality_high` of BD-quality in the metric's unit; `undefined` and `quality_undefined` are the shares of replicates without
        a number. Empty if the anchor has no rated point.
    """
    rated = replicates[replicates["bpp"].notna()]
    metrics = _metric_columns(replicates)
    curves = {str(codec): _replicate_curves(rows, metrics) for codec, rows in rated.groupby("codec", sort=False)}
    if anchor not in curves:
        return pd.DataFrame(columns=BD_INTERVAL_COLUMNS)
    anchor_curves = curves.pop(anchor)
    tests = [(codec, metric, k) for codec in curves for k, metric in enumerate(metrics, start=1)]
    jobs = [
        (anchor_curves[..., [0, k]], curves[codec][..., [0, k]], method, envelope, metric not in lower_is_better)
        for codec, metric, k in tests
    ]
    deltas_of_tests = (executor.map if executor else map)(_deltas, *zip(*jobs, strict=True)) if jobs else ()
    records = []
    for (codec, metric, _), deltas in zip(tests, deltas_of_tests, strict=True):
        low, high, undefined = centred_interval(*_split_estimate(deltas[:, 0]), level)
        quality_low, quality_high, quality_undefined = centred_interval(*_split_estimate(deltas[:, 1]), level)
        records.append((codec, anchor, metric, low, high, undefined, quality_low, quality_high, quality_undefined, len(deltas) - 1))
    return pd.DataFrame(records, columns=BD_INTERVAL_COLUMNS)


def with_intervals(scores: pd.DataFrame, replicates: Mapping[str, pd.DataFrame], level: float = 0.95) -> pd.DataFrame:
    """The scores with `low`, `high` and `undefined` filled in for each task that has replicates.

    Args:
        scores: a scores frame, normalised or as a run makes it; its columns and types are kept.
        replicates: from task label to what `draw_replicates` returned.
        level: the share of replicates that an interval covers, between 0 and 1.

    Returns:
        A new frame. Intervals of percentages stay within 0 to 100.
    """
    scores = scores.copy()
    columns = ["codec", "point", "realisation", "metric"]
    for task, frame in replicates.items():
        intervals = score_intervals(frame, level).set_index(columns)
        rows = scores.index[scores["task"] == task]
        names = pd.MultiIndex.from_frame(scores.loc[rows, columns].fillna("").astype(str))
        has_interval = names.isin(intervals.index)
        intervals = intervals.reindex(names[has_interval])
        rows = rows[has_interval]
        bounds = intervals[["low", "high"]].to_numpy()
        is_percent = (scores.loc[rows, "unit"] == "%").to_numpy()
        scores.loc[rows, ["low", "high"]] = np.where(is_percent[:, None], np.clip(bounds, 0, 100), bounds)
        scores.loc[rows, "undefined"] = intervals["undefined"].to_numpy()
    return scores


def _metric_columns(replicates: pd.DataFrame) -> list[str]:
    return [str(column) for column in replicates.columns if column not in (*INDEX, "bpp")]


def _split_estimate(values: Array) -> tuple[float, Array]:
    """Replicate 0, which is the estimate, and the others."""
    return float(values[0]), values[1:]


def _replicate_curves(rows: pd.DataFrame, metrics: list[str]) -> Array:
    """One codec's bpp and scores, (replicates, points, 1 + metrics), realisations averaged; NaN if one realisation is NaN."""
    columns = ["bpp", *metrics]
    points = []
    for _, point in rows.groupby("point", sort=False):
        each = [seed.sort_values("replicate")[columns].to_numpy() for _, seed in point.groupby("realisation", sort=False)]
        points.append(np.mean(each, axis=0))
    return np.stack(points, axis=1)


def _deltas(anchor: Array, test: Array, method: Method, envelope: Envelope, higher_is_better: bool) -> Array:
    """BD-rate and BD-quality, float64 (replicates, 2), of curves (replicates, points, 2); NaN if undefined."""
    deltas, decided = np.full((len(anchor), 2), np.nan), np.zeros(len(anchor), bool)
    if (method, envelope) == ("pchip", "pareto"):
        deltas, decided = pareto_pchip_deltas(anchor, test, higher_is_better)
    for k in np.flatnonzero(~decided):
        result = bd_rate(anchor[k], test[k], method, envelope, higher_is_better, cross_checks=False)
        deltas[k] = [np.nan if delta is None else delta for delta in (result.bd_rate_percent, result.bd_quality)]
    return deltas
