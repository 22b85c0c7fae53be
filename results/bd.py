"""Bjontegaard deltas between two rate-quality curves: BD-rate, BD-quality, and the rate at a quality.

    points --check, sort--> curve --envelope--> strictly rising --interpolate--> mean difference over the shared interval

Method: Bjontegaard, VCEG-M33 (2001): the rate is taken as log10, each curve is interpolated, and the mean horizontal
(BD-rate) or vertical (BD-quality) distance over the interval that both curves cover is the result. A negative BD-rate is a
saving. The two numbers need different things of a curve:

    BD-rate      rate as a function of quality: better quality must cost more, point after point. `envelope` says what happens
                 to a curve that does not rise so: "error" refuses it, "pareto" keeps the points that no other point beats at
                 a lower or equal rate, "isotonic" fits the closest rising curve (least squares) and merges tied points.
    BD-quality   quality as a function of rate: distinct rates suffice. A dip is a loss that was measured, so the points are
                 taken as they are; points at one rate are averaged ("error" refuses them).

No undefined number is reported: it is None, and its reason says which points would close the gap.

A rate that a codec estimates is another quantity than the length of a stream: a curve of the one and a curve of the other have no
delta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from icmbench.results.deltas import Method, horizontal_delta, vertical_delta
from icmbench.results.envelopes import (
    Change,
    Envelope,
    MetricWords,
    UndefinedDelta,
    check_points,
    distinct_rates,
    rising_curve,
    sort_points,
)

__all__ = ["BDResult", "Change", "Envelope", "Method", "RateAt", "bd_rate", "mean_bd_rate", "quality_at", "rate_at"]

Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class BDResult:
    """Both deltas of a test curve against an anchor, and what is needed to judge them.

    Attributes:
        method: the interpolation.
        envelope: what was done to curves that do not rise.
        bd_rate_percent: percent of rate at equal quality, negative is a saving; None if undefined, see `reason`.
        bd_quality: test minus anchor in the metric's unit at equal rate; None if undefined, see `quality_reason`.
        overlap: the shared quality interval as a share of the anchor's, 0 to 1; None if a curve has no such interval.
        interval: the shared quality interval, low to high; None if the curves share none.
        rate_interval: the shared rate interval, low to high; None if the curves share none.
        points: number of points (anchor, test) on the envelopes.
        points_inside: number of these points (anchor, test) within the shared quality interval.
        reason: why BD-rate is undefined; empty if it is defined.
        quality_reason: why BD-quality is undefined; empty if it is defined.
        hint: the points that would widen a shared interval that covers less than half of the anchor's.
        cross_checks: BD-rate in percent by each other method on the same envelopes; None if undefined.
        changes: measured points that the envelopes dropped or moved.
    """

    method: Method
    envelope: Envelope
    bd_rate_percent: float | None = None
    bd_quality: float | None = None
    overlap: float | None = None
    interval: Interval | None = None
    rate_interval: Interval | None = None
    points: tuple[int, int] = (0, 0)
    points_inside: tuple[int, int] = (0, 0)
    reason: str = ""
    quality_reason: str = ""
    hint: str = ""
    cross_checks: Mapping[str, float | None] = field(default_factory=dict)
    changes: Sequence[Change] = ()

    @property
    def spread(self) -> float | None:
        """Largest minus smallest BD-rate over all methods, in percentage points; None with fewer than two numbers."""
        values = [v for v in (self.bd_rate_percent, *self.cross_checks.values()) if v is not None]
        return max(values) - min(values) if len(values) > 1 else None


@dataclass(frozen=True)
class RateAt:
    """The rate at which a curve reaches a quality.

    Attributes:
        rate: in the unit of the curve; None if the curve does not reach the quality within its points.
        reason: why `rate` is None; empty otherwise.
    """

    rate: float | None
    reason: str = ""


def bd_rate(
    anchor: npt.ArrayLike,
    test: npt.ArrayLike,
    method: Method = "pchip",
    envelope: Envelope = "pareto",
    higher_is_better: bool = True,
    *,
    metric: str = "quality",
    names: tuple[str, str] = ("anchor", "test"),
    estimated: tuple[bool, bool] = (False, False),
    cross_checks: bool = True,
) -> BDResult:
    """BD-rate and BD-quality of a test curve against an anchor.

    Args:
        anchor: float (n, 2), columns (rate, quality), points in any order; rates above 0, in any unit that both curves share.
        test: float (m, 2), with the same columns and units.
        method: interpolation: "pchip" (needs 2 points on the envelope), "akima" (3) or "cubic" (4).
        envelope: what happens to a curve that does not rise: "pareto", "isotonic" or "error".
        higher_is_better: whether a higher quality is better.
        metric: name of the quality, used in reasons only.
        names: names of anchor and test, used in reasons only.
        estimated: whether the rates of anchor and test are estimated. If those of one are, both deltas are undefined.
        cross_checks: whether to compute BD-rate by the other methods too.

    Returns:
        Both deltas. Data that leave a delta undefined give None and a reason.

    Raises:
        ValueError: a curve has another shape, or the method or envelope is unknown.

    Example:
        >>> anchor = [(0.1, 30), (0.2, 33), (0.4, 36), (0.8, 39)]
        >>> bd_rate(anchor, anchor).bd_rate_percent
        0.0
        >>> half_the_rate = [(rate / 2, psnr) for rate, psnr in anchor]
        >>> result = bd_rate(anchor, half_the_rate)
        >>> f"{result.bd_rate_percent:.1f} % of rate, {result.bd_quality:+.1f} dB"
        '-50.0 % of rate, +3.0 dB'
        >>> result = bd_rate(anchor, [(0.1, 20), (0.2, 23)])
        >>> result.bd_rate_percent is None, result.reason.partition(":")[0]
        (True, 'no shared quality interval')
    """
    if method not in get_args(Method) or envelope not in get_args(Envelope):
        raise ValueError(f"unknown method {method!r} or envelope {envelope!r}; use one of {get_args(Method)}, {get_args(Envelope)}")
    words = MetricWords(metric, 1.0 if higher_is_better else -1.0)
    arrays = [check_points(points) for points in (anchor, test)]
    result: dict[str, Any] = {"method": method, "envelope": envelope}
    if estimated[0] != estimated[1]:
        estimating, measured = names if estimated[0] else names[::-1]
        reason = f"the rate of {estimating} is estimated and that of {measured} is of real bytes, which share no BD-rate"
        return BDResult(**result, reason=reason, quality_reason=reason)
    try:
        curves = [sort_points(points, name, words) for points, name in zip(arrays, names, strict=True)]
    except UndefinedDelta as undefined:
        return BDResult(**result, reason=str(undefined), quality_reason=str(undefined))
    try:
        a, b = (rising_curve(curve, envelope, words) for curve in curves)
        result |= {"changes": (*a.changes, *b.changes), "points": (len(a.x), len(b.x))}
        result |= horizontal_delta(a, b, method, words, cross_checks)
    except UndefinedDelta as undefined:
        result |= {"reason": str(undefined), **undefined.defined_fields}
    try:
        a, b = (distinct_rates(curve, envelope) for curve in curves)
        result |= vertical_delta(a, b, method, words)
    except UndefinedDelta as undefined:
        result["quality_reason"] = str(undefined)
    return BDResult(**result)


def rate_at(
    curve: npt.ArrayLike,
    quality: float,
    envelope: Envelope = "pareto",
    higher_is_better: bool = True,
    *,
    metric: str = "quality",
    name: str = "curve",
) -> RateAt:
    """The rate at which a curve reaches a quality, by PCHIP in log10 rate, never extrapolated.

    Args:
        curve: float (n, 2), columns (rate, quality), points in any order; rates above 0.
        quality: the quality to reach, in the unit of the curve.
        envelope: what happens to a curve that does not rise: "pareto", "isotonic" or "error".
        higher_is_better: whether a higher quality is better.
        metric: name of the quality, used in reasons only.
        name: name of the curve, used in reasons only.

    Returns:
        The rate, or None and the reason if the curve does not reach the quality within its points.

    Raises:
        ValueError: the curve has another shape.

    Example:
        >>> curve = [(0.1, 30), (0.2, 33), (0.4, 36), (0.8, 39)]
        >>> round(rate_at(curve, 36).rate, 6)
        0.4
        >>> rate_at(curve, 40, metric="psnr", name="jpeg").reason
        'not reached: best psnr of jpeg is 39 at rate 0.8'
    """
    words = MetricWords(metric, 1.0 if higher_is_better else -1.0)
    try:
        rising = rising_curve(sort_points(check_points(curve), name, words), envelope, words)
    except UndefinedDelta as undefined:
        return RateAt(None, str(undefined))
    x, y, target = rising.x, rising.y, words.sign * quality
    if not np.isfinite(target):
        return RateAt(None, f"{metric} {quality:g} is not finite")
    if target > y[-1]:
        return RateAt(None, f"not reached: best {metric} of {name} is {words.number(y[-1])} at rate {10 ** x[-1]:.4g}")
    if target < y[0]:
        return RateAt(None, f"below rate {10 ** x[0]:.4g}, the lowest measured")
    return RateAt(float(10 ** _interpolate(y, x, target)))


def quality_at(curve: npt.ArrayLike, rate: float) -> float | None:
    """The quality of a curve at a rate, by PCHIP over log10 rate, never extrapolated.

    Args:
        curve: float (n, 2), columns (rate, quality), points in any order; points at one rate are averaged.
        rate: above 0, in the unit of the curve.

    Returns:
        The quality; None if the rate lies beyond the curve's points or the curve has none.

    Raises:
        ValueError: the curve has another shape.

    Example:
        >>> round(quality_at([(0.1, 30), (0.4, 36)], 0.2), 6)
        33.0
        >>> quality_at([(0.1, 30), (0.4, 36)], 0.8) is None
        True
    """
    try:
        points = distinct_rates(sort_points(check_points(curve), "curve", MetricWords("quality", 1.0)), "pareto")
    except UndefinedDelta:
        return None
    x, y, target = points.x, points.y, np.log10(rate)
    if not x[0] <= target <= x[-1]:
        return None
    return _interpolate(x, y, target)


def _interpolate(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], target: float) -> float:
    """The PCHIP through the points (x, y), each float64 (n,) with n at least 1, at a place between the first and the last."""
    if len(x) == 1:
        return float(y[0])
    from scipy.interpolate import PchipInterpolator

    return float(PchipInterpolator(x, y)(target))


def mean_bd_rate(percents: Sequence[float]) -> float:
    """Average of BD-rates in log rate, so that a codec and its reverse cancel.

    Args:
        percents: BD-rates in percent, at least one.

    Raises:
        ValueError: there are none, or one is not above -100.

    Example:
        >>> mean_bd_rate([-50.0, 100.0])
        0.0
    """
    values = np.asarray(percents, dtype=float)
    if not values.size or not np.all(values > -100):
        raise ValueError(f"BD-rates to average must be above -100 percent, got {[*percents]}")
    return float(100 * np.expm1(np.mean(np.log1p(values / 100))))
