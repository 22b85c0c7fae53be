"""Paired bootstrap over images: intervals for every score, and for BD-rate and BD-quality.

    weights of the images (how often each was drawn) --aggregate--> scores  --\
            the same for every codec and point       --bits, pixels--> bpp  ---> replicates -> intervals, BD intervals

A replicate draws n of the n images with replacement, once for all codecs and points, so that what the images have in common
cancels in a difference (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8). Scores are aggregated anew
under these weights, dataset-level ones too, and rates likewise: a replicate is a whole set of curves.

Intervals are percentiles of the replicates, moved so that their median lies on the estimate. Resampling repeats images and so
shifts a score such as AP on few images and many categories (on 100 images by 4 points), the same way for every codec: plain
percentiles then miss the score itself, and the bias corrections BC and BCa collapse to one side of it. Where the replicates are
centred, this is the percentile interval. BCa would also take a jackknife over all images for every point and every delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from icmbench.results.batch import pareto_pchip_deltas
from icmbench.results.bd import Envelope, Method, bd_rate

Array = npt.NDArray[np.float64]
INDEX = ["codec", "point", "realisation", "replicate"]  # the columns of replicates beside bpp and the metrics
SCORE_INTERVALS = ["codec", "point", "realisation", "metric", "value", "low", "high", "undefined"]
BD_INTERVALS = [
    "codec", "anchor", "metric", "low", "high", "undefined", "quality_low", "quality_high", "quality_undefined", "replicates",
]  # fmt: skip
CHUNK = 100  # replicates a job: enough to outweigh its start, few enough to share one point among processes
DEFINED = 0.5  # with a smaller share of defined replicates there is no interval


@dataclass(frozen=True)
class Point:
    """A codec at one rate point: what the bootstrap needs of it.

    aggregate: from weights, float64 (images,) of how often each image counts, to {metric: value}; the images in the same order
    for every point. It must pickle to be used by an executor of processes.
    bits, pixels: (images,) of each image's stream and of its source; None for what has no rate (uncompressed).
    """

    codec: str
    point: str
    aggregate: Callable[[Array], Mapping[str, float]]
    bits: npt.ArrayLike | None = None
    pixels: npt.ArrayLike | None = None
    realisation: str = ""


def draw_weights(n_images: int, seed: int, replicate: int) -> Array:
    """How often each image counts in a replicate, float64 (n_images,): multinomial; all ones in replicate 0.

    A function of its arguments alone, so that no order of jobs can unpair two codecs.
    """
    if replicate == 0:
        return np.ones(n_images)
    drawn = np.random.default_rng([seed, replicate]).integers(0, n_images, n_images)
    return np.bincount(drawn, minlength=n_images).astype(np.float64)


def replicates(
    points: Sequence[Point],
    n_images: int,
    metrics: Sequence[str],
    count: int = 1000,
    seed: int = 0,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Scores and rates of all points under `count` resamplings of the images, and first, as replicate 0, as they are.

    metrics: those to resample; leave out the ones that declare `bootstrap=False`. executor: shares points and replicates out;
    the numbers are the same without one.
    Returns columns codec, point, realisation, replicate (int, 0 to count), bpp (NaN without bits), then one a metric, float64.
    Raises ValueError for sizes that do not fit together, a point given twice, or a metric that a point does not have.
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
    jobs = [(point, n_images, tuple(metrics), seed, first, min(first + CHUNK, count + 1)) for point in points
            for first in range(0, count + 1, CHUNK)]  # fmt: skip
    values = np.concatenate([*(executor.map if executor else map)(_resample, *zip(*jobs, strict=True))])
    frame = pd.DataFrame(
        {column: [name[k] for name in names for _ in range(count + 1)] for k, column in enumerate(INDEX[:3])}, columns=columns[:3]
    )
    frame["replicate"] = np.tile(np.arange(count + 1), len(points))
    return pd.concat([frame, pd.DataFrame(values, columns=columns[4:])], axis=1)


def _resample(point: Point, n_images: int, metrics: tuple[str, ...], seed: int, first: int, end: int) -> Array:
    """bpp and metrics of replicates first to end - 1, float64 (end - first, 1 + metrics)."""
    rated = point.bits is not None and point.pixels is not None
    sizes = [np.asarray(column, dtype=np.float64) for column in ((point.bits, point.pixels) if rated else ())]
    if any(column.shape != (n_images,) for column in sizes):
        shapes = " and ".join(str(column.shape) for column in sizes)
        raise ValueError(
            f"codec {point.codec!r}, point {point.point!r} has bits and pixels of shapes {shapes} for {n_images} images"
        )
    rows = np.empty((end - first, 1 + len(metrics)))
    for row, replicate in zip(rows, range(first, end), strict=True):
        weights = draw_weights(n_images, seed, replicate)
        bpp = np.divide(*(column @ weights for column in sizes)) if rated else np.nan
        values = point.aggregate(weights)
        try:
            row[:] = [bpp, *(values[metric] for metric in metrics)]
        except KeyError as error:
            raise ValueError(
                f"codec {point.codec!r}, point {point.point!r} has no metric {error}; it has {', '.join(values)}"
            ) from None
    return rows


def interval(estimate: float, samples: npt.ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """(low, high, share of undefined samples) of a number from its replicates (n,), those that are not finite left out.

    No interval, NaN twice, for an estimate that is not finite or with fewer than half of the replicates defined.
    """
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, got {level}")
    samples = np.asarray(samples, dtype=np.float64)
    finite = samples[np.isfinite(samples)]
    undefined = 1 - len(finite) / len(samples) if len(samples) else 1.0
    if not np.isfinite(estimate) or 1 - undefined < DEFINED:
        return math.nan, math.nan, undefined
    low, median, high = np.quantile(finite, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return float(estimate + low - median), float(estimate + high - median), undefined


def score_intervals(replicates: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Intervals of every score; columns `SCORE_INTERVALS`, `undefined` the share of replicates without a finite value."""
    records = []
    for name, rows in replicates.groupby(INDEX[:3], sort=False):
        for metric in _metrics(replicates):
            estimate, samples = _split(rows.sort_values("replicate")[metric].to_numpy())
            low, high, undefined = interval(estimate, samples, level)
            records.append((*name, metric, estimate, low, high, undefined))
    return pd.DataFrame(records, columns=SCORE_INTERVALS)


def bd_intervals(
    replicates: pd.DataFrame,
    anchor: str,
    lower_is_better: Sequence[str] = (),
    method: Method = "pchip",
    envelope: Envelope = "pareto",
    level: float = 0.95,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Intervals of BD-rate (percent) and BD-quality of every codec against the anchor, a row for each metric.

    Each replicate gives one curve a codec (its realisations averaged first) and so one delta. Columns `BD_INTERVALS`; `undefined`
    and `quality_undefined` are the shares of replicates without a number. The rows of `uncompressed`, without rates, take no part.
    """
    rated = replicates[replicates["bpp"].notna()]
    metrics = _metrics(replicates)
    curves = {str(codec): _curves(rows, metrics) for codec, rows in rated.groupby("codec", sort=False)}
    if anchor not in curves:
        return pd.DataFrame(columns=BD_INTERVALS)
    base = curves.pop(anchor)
    tests = [(codec, metric, k) for codec in curves for k, metric in enumerate(metrics, start=1)]
    jobs = [
        (base[..., [0, k]], curves[codec][..., [0, k]], method, envelope, metric not in lower_is_better)
        for codec, metric, k in tests
    ]
    found = (executor.map if executor else map)(_deltas, *zip(*jobs, strict=True)) if jobs else ()
    records = []
    for (codec, metric, _), deltas in zip(tests, found, strict=True):
        low, high, undefined = interval(*_split(deltas[:, 0]), level)
        quality_low, quality_high, quality_undefined = interval(*_split(deltas[:, 1]), level)
        records.append((codec, anchor, metric, low, high, undefined, quality_low, quality_high, quality_undefined, len(deltas) - 1))
    return pd.DataFrame(records, columns=BD_INTERVALS)


def with_intervals(scores: pd.DataFrame, replicates: Mapping[str, pd.DataFrame], level: float = 0.95) -> pd.DataFrame:
    """The scores frame with `low`, `high` and `undefined` of each task (by its label) that has replicates.

    Percentages stay within 0 to 100.
    """
    scores = scores.copy()
    place = ["codec", "point", "realisation", "metric"]
    for task, frame in replicates.items():
        found = score_intervals(frame, level).set_index(place)
        rows = scores.index[scores["task"] == task]
        where = pd.MultiIndex.from_frame(scores.loc[rows, place].fillna("").astype(str))
        known = where.isin(found.index)
        mine = found.reindex(where[known])
        bars = mine[["low", "high"]].to_numpy()
        percent = (scores.loc[rows[known], "unit"] == "%").to_numpy()
        scores.loc[rows[known], ["low", "high"]] = np.where(percent[:, None], np.clip(bars, 0, 100), bars)
        scores.loc[rows[known], "undefined"] = mine["undefined"].to_numpy()
    return scores


def _metrics(replicates: pd.DataFrame) -> list[str]:
    return [str(column) for column in replicates.columns if column not in (*INDEX, "bpp")]


def _split(values: Array) -> tuple[float, Array]:
    """The estimate and its replicates."""
    return float(values[0]), values[1:]


def _curves(rows: pd.DataFrame, metrics: list[str]) -> Array:
    """One codec's (replicates, points, 1 + metrics): bpp and scores, realisations averaged; NaN if one is."""
    columns = ["bpp", *metrics]
    points = []
    for _, point in rows.groupby("point", sort=False):
        each = [seed.sort_values("replicate")[columns].to_numpy() for _, seed in point.groupby("realisation", sort=False)]
        points.append(np.mean(each, axis=0))
    return np.stack(points, axis=1)


def _deltas(anchor: Array, test: Array, method: Method, envelope: Envelope, higher_is_better: bool) -> Array:
    """BD-rate and BD-quality of curves (replicates, points, 2), float64 (replicates, 2), NaN where undefined."""
    deltas, decided = np.full((len(anchor), 2), np.nan), np.zeros(len(anchor), bool)
    if (method, envelope) == ("pchip", "pareto"):
        deltas, decided = pareto_pchip_deltas(anchor, test, higher_is_better)
    for k in np.flatnonzero(~decided):
        result = bd_rate(anchor[k], test[k], method, envelope, higher_is_better, cross_checks=False)
        deltas[k] = [np.nan if delta is None else delta for delta in (result.bd_rate_percent, result.bd_quality)]
    return deltas
