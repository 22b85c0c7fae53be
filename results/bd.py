"""Bjontegaard deltas between two rate-quality curves: BD-rate, BD-quality, and the rate at a quality.

    points --validate, sort--> curve --envelope--> strictly rising --interpolate--> mean difference over the shared interval

Method: Bjontegaard, VCEG-M33 (2001): the rate is taken as log10, each curve is interpolated, and the mean horizontal
(BD-rate) or vertical (BD-quality) distance over the interval that both curves cover is the result. A negative BD-rate is a
saving. The two numbers need different things of a curve:

    BD-rate      rate as a function of quality: better quality must cost more, point after point. `envelope` says what happens
                 to a curve that does not: "error" refuses, "pareto" keeps the points that no other point beats at a
                 lower or equal rate, "isotonic" fits the closest rising curve (least squares) and merges tied points.
    BD-quality   quality as a function of rate: distinct rates suffice. A dip is a loss that was measured, so the points are
                 taken as they are; points of one rate are averaged ("error" refuses them).

Nothing undefined is printed: a refused number is None and its reason says which points would close the gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator
from scipy.optimize import isotonic_regression

Method: TypeAlias = Literal["pchip", "cubic", "akima"]
Envelope: TypeAlias = Literal["error", "pareto", "isotonic"]
Interval: TypeAlias = tuple[float, float]
Array: TypeAlias = npt.NDArray[np.float64]

MIN_POINTS: Mapping[str, int] = {"pchip": 2, "akima": 3, "cubic": 4}  # fewer do not determine the interpolant
NARROW = 0.5  # a smaller overlap gets a hint


@dataclass(frozen=True)
class Change:
    """A measured point that the envelope dropped (`to` is None) or moved to `to` = (rate, quality)."""

    curve: str
    rate: float
    quality: float
    to: tuple[float, float] | None = None

    def __str__(self) -> str:
        point = f"{self.curve} at rate {self.rate:.4g}, value {self.quality:.4g}"
        return f"dropped {point}" if self.to is None else f"moved {point} to {self.to[0]:.4g}, {self.to[1]:.4g}"


@dataclass(frozen=True)
class BDResult:
    """Both deltas of a test curve against an anchor, and what is needed to judge them.

    bd_rate_percent: percent of rate at equal quality, negative is a saving; None where undefined, see `reason`.
    bd_quality: test minus anchor in the metric's unit at equal rate; None where undefined, see `quality_reason`.
    overlap: the shared quality interval over the anchor's, 0 to 1; None where a curve is not one.
    interval, rate_interval: the shared quality and rate intervals, low to high; None where there is none.
    points, points_inside: number of points (anchor, test) on the envelope, and of those within the shared quality interval.
    cross_checks: BD-rate in percent by the other methods on the same envelope; None where undefined.
    hint: the points that would widen a shared interval covering less than half of the anchor's.
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
    """The rate at which a curve reaches a quality; None where it does not within its points, with the reason."""

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
    cross_checks: bool = True,
) -> BDResult:
    """BD-rate and BD-quality of `test` against `anchor`.

    anchor, test: arrays of shape (n, 2), float, columns (rate, quality), in any order; rate > 0 in any unit that both share.
    metric, names: used in the reasons only. cross_checks: whether the other methods are tried too.
    Raises ValueError for another shape, method or envelope; data that leave a delta undefined give None and a reason.
    """
    if method not in get_args(Method) or envelope not in get_args(Envelope):
        raise ValueError(f"unknown method {method!r} or envelope {envelope!r}; use one of {get_args(Method)}, {get_args(Envelope)}")
    words = _Words(metric, 1.0 if higher_is_better else -1.0)
    arrays = [_points(points) for points in (anchor, test)]
    result: dict = {"method": method, "envelope": envelope}
    try:
        curves = [_sorted(points, name, words) for points, name in zip(arrays, names, strict=True)]
    except _Undefined as undefined:
        return BDResult(**result, reason=str(undefined), quality_reason=str(undefined))
    try:
        a, b = (_rising(curve, envelope, words) for curve in curves)
        result |= {"changes": (*a.changes, *b.changes), "points": (len(a.x), len(b.x))}
        result |= _horizontal(a, b, method, words, cross_checks)
    except _Undefined as undefined:
        result |= {"reason": str(undefined), **undefined.known}
    try:
        a, b = (_distinct(curve, envelope) for curve in curves)
        result |= _vertical(a, b, method, words)
    except _Undefined as undefined:
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
    """The rate at which a curve of shape (n, 2) reaches `quality`: PCHIP in log10 rate, never extrapolated."""
    words = _Words(metric, 1.0 if higher_is_better else -1.0)
    try:
        rising = _rising(_sorted(_points(curve), name, words), envelope, words)
    except _Undefined as undefined:
        return RateAt(None, str(undefined))
    x, y, target = rising.x, rising.y, words.sign * quality
    if not np.isfinite(target):
        return RateAt(None, f"{metric} {quality:g} is not finite")
    if target > y[-1]:
        return RateAt(None, f"not reached: best {metric} of {name} is {words.show(y[-1])} at rate {10 ** x[-1]:.4g}")
    if target < y[0]:
        return RateAt(None, f"below rate {10 ** x[0]:.4g}, the lowest measured")
    return RateAt(float(10 ** (PchipInterpolator(y, x)(target) if len(x) > 1 else x[0])))


def quality_at(curve: npt.ArrayLike, rate: float) -> float | None:
    """The quality of a curve of shape (n, 2) at a rate: PCHIP over log10 rate; None beyond its points."""
    try:
        points = _distinct(_sorted(_points(curve), "curve", _Words("quality", 1.0)), "pareto")
    except _Undefined:
        return None
    x, y, target = points.x, points.y, np.log10(rate)
    if not x[0] <= target <= x[-1]:
        return None
    return float(PchipInterpolator(x, y)(target) if len(x) > 1 else y[0])


def mean_bd_rate(percents: Sequence[float]) -> float:
    """Average of BD-rates in log-rate, so that a codec and its reverse (-50% and +100%) cancel."""
    values = np.asarray(percents, dtype=float)
    if not values.size or not np.all(values > -100):
        raise ValueError(f"BD-rates to average must be above -100 percent, got {[*percents]}")
    return float(100 * np.expm1(np.mean(np.log1p(values / 100))))


class _Undefined(ValueError):
    """A delta has no value; the message is the reason shown to the user, `known` the fields of the result known even so."""

    def __init__(self, reason: str, **known: Any) -> None:
        super().__init__(reason)
        self.known = known


@dataclass(frozen=True)
class _Curve:
    """x: log10 rates, ascending; y: qualities with the sign applied, so that higher is better."""

    name: str
    x: Array
    y: Array
    measured: int
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class _Words:
    """Turns qualities with the sign applied into words about the metric."""

    metric: str
    sign: float

    def show(self, quality: float) -> str:
        return f"{self.sign * quality + 0.0:.4g}"

    def better(self, quality: float) -> str:
        return f"{self.metric} {'above' if self.sign > 0 else 'below'} {self.show(quality)}"

    def worse(self, quality: float) -> str:
        return f"{self.metric} {'below' if self.sign > 0 else 'above'} {self.show(quality)}"

    def span(self, curve: _Curve) -> str:
        return f"{self.show(curve.y[0])} to {self.show(curve.y[-1])}"


def _points(points: npt.ArrayLike) -> Array:
    array = np.asarray(points, dtype=float)
    if array.size == 0:
        return array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"a curve is an array of shape (n, 2) of (rate, quality), got {array.shape}")
    return array


def _sorted(points: Array, name: str, words: _Words) -> _Curve:
    if not len(points):
        raise _Undefined(f"{name} has no points")
    for rate, quality in points:
        if not (np.isfinite(rate) and rate > 0):
            raise _Undefined(f"{name} has {words.metric} {quality:.4g} at rate {rate:g} (a rate must be finite and above 0)")
        if not np.isfinite(quality):
            raise _Undefined(f"{name} has {words.metric} {quality:g} at rate {rate:.4g} (measure that point again or leave it out)")
    x, y = np.log10(points[:, 0]), words.sign * points[:, 1]
    order = np.lexsort((-y, x))
    return _Curve(name, x[order], y[order], len(x))


def _rising(curve: _Curve, envelope: Envelope, words: _Words) -> _Curve:
    """The curve made to rise strictly in rate and quality, with how its points differ from the measured ones."""
    x, y = curve.x, curve.y

    def change(i: int, to: tuple[float, float] | None = None) -> Change:
        return Change(curve.name, float(10 ** x[i]), float(words.sign * y[i]), to)

    if envelope == "error":
        for i in np.flatnonzero((np.diff(x) <= 0) | (np.diff(y) <= 0)):
            pair = " then ".join(f"{words.metric} {words.show(y[k])} at rate {10 ** x[k]:.4g}" for k in (i, i + 1))
            raise _Undefined(f"{curve.name} does not rise: {pair} (measure these again or use another envelope)")
        return curve
    if envelope == "pareto":
        keep = y > np.maximum.accumulate(np.concatenate([[-np.inf], y[:-1]]))
        return replace(curve, x=x[keep], y=y[keep], changes=tuple(change(int(i)) for i in np.flatnonzero(~keep)))

    # isotonic: equal rates first, then tied fitted qualities; each block becomes one point at its mean log-rate
    same_rate = _blocks(x)
    counts = np.bincount(same_rate).astype(float)
    fit = isotonic_regression(np.bincount(same_rate, y) / counts, weights=counts).x[same_rate]
    block = _blocks(fit)
    size = np.bincount(block)
    x_fit, y_fit = np.bincount(block, x) / size, fit[np.searchsorted(block, np.arange(len(size)))]
    moved = ((i, b) for i, b in enumerate(block) if size[b] > 1)
    changes = tuple(change(i, (float(10 ** x_fit[b]), float(words.sign * y_fit[b]))) for i, b in moved)
    return replace(curve, x=x_fit, y=y_fit, changes=changes)


def _blocks(values: Array) -> npt.NDArray[np.intp]:
    """0, 0, 1, 2, 2, ...: the index of the run of equal values that each of the ascending values lies in."""
    return np.concatenate([[0], np.cumsum(np.diff(values) > 0)]).astype(np.intp)


def _distinct(curve: _Curve, envelope: Envelope) -> _Curve:
    """The curve with points of one rate averaged."""
    block = _blocks(curve.x)
    counts = np.bincount(block)
    if envelope == "error" and np.any(counts > 1):
        rate = 10 ** curve.x[np.searchsorted(block, np.argmax(counts > 1))]
        raise _Undefined(f"{curve.name} has several points at rate {rate:.4g} (leave one or use another envelope)")
    return replace(curve, x=np.unique(curve.x), y=np.bincount(block, curve.y) / counts)


def _horizontal(anchor: _Curve, test: _Curve, method: Method, words: _Words, cross_checks: bool) -> dict[str, Any]:
    """The BD-rate fields of a result, from curves that rise."""
    for curve in (anchor, test):
        if len(curve.x) < MIN_POINTS[method]:
            raise _Undefined(
                f"{curve.name} keeps {len(curve.x)} of {curve.measured} points on its envelope and {method} needs "
                f"{MIN_POINTS[method]} (add a point above rate {10 ** curve.x[-1]:.4g} with {words.better(curve.y[-1])}, "
                f"or below rate {10 ** curve.x[0]:.4g} with {words.worse(curve.y[0])})"
            )
    low, high = max(anchor.y[0], test.y[0]), min(anchor.y[-1], test.y[-1])
    if high <= low:
        upper, lower = (anchor, test) if anchor.y[0] >= test.y[-1] else (test, anchor)
        raise _Undefined(
            f"no shared {words.metric} interval: {anchor.name} spans {words.span(anchor)}, {test.name} {words.span(test)} "
            f"(add a point of {lower.name} with {words.better(upper.y[0])}, or of {upper.name} with {words.worse(lower.y[-1])})",
            overlap=0.0,
        )
    methods = get_args(Method) if cross_checks else (method,)
    percents = {m: _percent(anchor, test, m, low, high) for m in methods}
    if percents[method] is None:
        raise _Undefined(f"{method} gives no finite number on these points")
    overlap = float((high - low) / (anchor.y[-1] - anchor.y[0]))
    wanted = [words.better(test.y[-1])] if test.y[-1] < anchor.y[-1] else []
    wanted += [words.worse(test.y[0])] if test.y[0] > anchor.y[0] else []
    ends = sorted((float(words.sign * low), float(words.sign * high)))
    return {
        "bd_rate_percent": percents.pop(method),
        "cross_checks": percents,
        "overlap": overlap,
        "interval": (ends[0], ends[1]),
        "points_inside": tuple(int(np.sum((c.y >= low) & (c.y <= high))) for c in (anchor, test)),
        "hint": f"add a point of {test.name} with {' and one with '.join(wanted)}" if overlap < NARROW and wanted else "",
    }


def _vertical(anchor: _Curve, test: _Curve, method: Method, words: _Words) -> dict[str, Any]:
    """The BD-quality fields of a result, from curves of distinct rates."""
    for curve in (anchor, test):
        if len(curve.x) < MIN_POINTS[method]:
            raise _Undefined(f"{curve.name} has {len(curve.x)} distinct rate(s) and {method} needs {MIN_POINTS[method]}")
    low, high = max(anchor.x[0], test.x[0]), min(anchor.x[-1], test.x[-1])
    if high <= low:
        spans = [f"{c.name} spans {10 ** c.x[0]:.4g} to {10 ** c.x[-1]:.4g}" for c in (anchor, test)]
        side = f"above rate {10 ** anchor.x[0]:.4g}" if anchor.x[0] >= test.x[-1] else f"below rate {10 ** anchor.x[-1]:.4g}"
        raise _Undefined(f"no shared rate interval: {', '.join(spans)} (add a point of {test.name} {side})")
    delta = _mean(test.x, test.y, method, low, high) - _mean(anchor.x, anchor.y, method, low, high)
    return {"bd_quality": float(words.sign * delta) + 0.0, "rate_interval": (float(10**low), float(10**high))}


def _percent(anchor: _Curve, test: _Curve, method: Method, low: float, high: float) -> float | None:
    """BD-rate over [low, high] of quality; None where a curve has too few points or the number is not finite."""
    if min(len(anchor.x), len(test.x)) < MIN_POINTS[method]:
        return None
    delta = _mean(test.y, test.x, method, low, high) - _mean(anchor.y, anchor.x, method, low, high)
    with np.errstate(over="ignore"):
        percent = float(100 * np.expm1(delta * np.log(10)))
    return percent if np.isfinite(percent) else None


def _mean(x: Array, y: Array, method: Method, low: float, high: float) -> float:
    """Mean over [low, high] of the interpolant of y(x)."""
    if method == "cubic":
        integral = np.polynomial.Polynomial.fit(x, y, 3).integ()
        return float((integral(high) - integral(low)) / (high - low))
    interpolator = PchipInterpolator(x, y) if method == "pchip" else Akima1DInterpolator(x, y)
    return float(interpolator.integrate(low, high) / (high - low))
