"""Rate-quality curves and their envelopes: from measured points to curves that can be interpolated.

    measured points --check_points, sort_points--> Curve --rising_curve----> rate as a function of quality (BD-rate)
                                                         --distinct_rates--> quality as a function of rate (BD-quality)

A Curve holds log10 rates, and qualities multiplied by the metric's sign, so that higher is always better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Envelope: TypeAlias = Literal["error", "pareto", "isotonic"]
Array: TypeAlias = npt.NDArray[np.float64]


class UndefinedDelta(ValueError):
    """A delta has no value; the message is the reason that users read.

    Attributes:
        defined_fields: the fields of the result that have a value nevertheless, by name.
    """

    def __init__(self, reason: str, **defined_fields: Any) -> None:
        super().__init__(reason)
        self.defined_fields = defined_fields


@dataclass(frozen=True)
class Change:
    """A measured point that the envelope dropped or moved.

    Attributes:
        curve: name of the curve.
        rate: measured rate of the point.
        quality: measured quality of the point, in the metric's unit.
        to: the (rate, quality) that the point was moved to; None if it was dropped.
    """

    curve: str
    rate: float
    quality: float
    to: tuple[float, float] | None = None

    def __str__(self) -> str:
        point = f"{self.curve} at rate {self.rate:.4g}, value {self.quality:.4g}"
        return f"dropped {point}" if self.to is None else f"moved {point} to {self.to[0]:.4g}, {self.to[1]:.4g}"


@dataclass(frozen=True)
class Curve:
    """A rate-quality curve, ascending in rate.

    Attributes:
        name: used in reasons only.
        x: log10 rates, float64 (n,), ascending.
        y: qualities times the metric's sign, float64 (n,); higher is better.
        measured: number of measured points behind the curve.
        changes: how the points of the curve differ from the measured ones.
    """

    name: str
    x: Array
    y: Array
    measured: int
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class MetricWords:
    """Words about a metric, made from qualities that carry its sign.

    Attributes:
        metric: name of the metric.
        sign: 1.0 if higher is better, -1.0 if lower is better.
    """

    metric: str
    sign: float

    def number(self, quality: float) -> str:
        """A quality in the metric's unit."""
        return f"{self.sign * quality + 0.0:.4g}"  # Adding 0.0 turns -0.0 into 0.0.

    def better_than(self, quality: float) -> str:
        """`AP above 30`, or `lpips below 0.4`."""
        return f"{self.metric} {'above' if self.sign > 0 else 'below'} {self.number(quality)}"

    def worse_than(self, quality: float) -> str:
        """`AP below 30`, or `lpips above 0.4`."""
        return f"{self.metric} {'below' if self.sign > 0 else 'above'} {self.number(quality)}"

    def span(self, curve: Curve) -> str:
        """`20 to 29`: the qualities of a curve's first and last point."""
        return f"{self.number(curve.y[0])} to {self.number(curve.y[-1])}"


def check_points(points: npt.ArrayLike) -> Array:
    """Points as an array.

    Args:
        points: (n, 2), columns (rate, quality); may be empty.

    Returns:
        float64 (n, 2).

    Raises:
        ValueError: the points have another shape.
    """
    array = np.asarray(points, dtype=float)
    if array.size == 0:
        return array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"a curve is an array of shape (n, 2) of (rate, quality), got {array.shape}")
    return array


def sort_points(points: Array, name: str, words: MetricWords) -> Curve:
    """The curve of measured points, by ascending rate; of points at one rate the best comes first.

    Args:
        points: float64 (n, 2), columns (rate, quality), in any order.
        name: of the curve, for reasons.
        words: of the metric.

    Raises:
        UndefinedDelta: there are no points, a rate is not finite and above 0, or a quality is not finite.
    """
    if not len(points):
        raise UndefinedDelta(f"{name} has no points")
    for rate, quality in points:
        if not (np.isfinite(rate) and rate > 0):
            raise UndefinedDelta(f"{name} has {words.metric} {quality:.4g} at rate {rate:g} (a rate must be finite and above 0)")
        if not np.isfinite(quality):
            raise UndefinedDelta(
                f"{name} has {words.metric} {quality:g} at rate {rate:.4g} (measure that point again or leave it out)"
            )
    x, y = np.log10(points[:, 0]), words.sign * points[:, 1]
    order = np.lexsort((-y, x))
    return Curve(name, x[order], y[order], len(x))


def rising_curve(curve: Curve, envelope: Envelope, words: MetricWords) -> Curve:
    """The envelope of a curve: it rises strictly in rate and quality.

    Args:
        curve: as `sort_points` returns it.
        envelope: "error" accepts only a curve that rises; "pareto" keeps the points that no other point beats at a lower or
            equal rate; "isotonic" fits the closest rising curve (least squares) and merges tied points.
        words: of the metric.

    Returns:
        The rising curve, with the points that were dropped or moved in `changes`.

    Raises:
        UndefinedDelta: the envelope is "error" and the curve does not rise.
    """
    x, y = curve.x, curve.y
    if envelope == "error":
        for i in np.flatnonzero((np.diff(x) <= 0) | (np.diff(y) <= 0)):
            pair = " then ".join(f"{words.metric} {words.number(y[k])} at rate {10 ** x[k]:.4g}" for k in (i, i + 1))
            raise UndefinedDelta(f"{curve.name} does not rise: {pair} (measure these again or use another envelope)")
        return curve
    return _pareto_front(curve, words) if envelope == "pareto" else _isotonic_fit(curve, words)


def distinct_rates(curve: Curve, envelope: Envelope) -> Curve:
    """The curve with the qualities of points at one rate averaged.

    Raises:
        UndefinedDelta: the envelope is "error" and several points lie at one rate.
    """
    block = _equal_runs(curve.x)
    counts = np.bincount(block)
    if envelope == "error" and np.any(counts > 1):
        rate = 10 ** curve.x[np.searchsorted(block, np.argmax(counts > 1))]
        raise UndefinedDelta(f"{curve.name} has several points at rate {rate:.4g} (leave one or use another envelope)")
    return replace(curve, x=np.unique(curve.x), y=np.bincount(block, curve.y) / counts)


def _pareto_front(curve: Curve, words: MetricWords) -> Curve:
    x, y = curve.x, curve.y
    keep = y > np.maximum.accumulate(np.concatenate([[-np.inf], y[:-1]]))
    return replace(curve, x=x[keep], y=y[keep], changes=tuple(_change(curve, int(i), words) for i in np.flatnonzero(~keep)))


def _isotonic_fit(curve: Curve, words: MetricWords) -> Curve:
    """Points at one rate become one, then points of one fitted quality become one at their mean log rate."""
    from scipy.optimize import isotonic_regression

    x, y = curve.x, curve.y
    same_rate = _equal_runs(x)
    counts = np.bincount(same_rate).astype(float)
    fit = isotonic_regression(np.bincount(same_rate, y) / counts, weights=counts).x[same_rate]
    block = _equal_runs(fit)
    size = np.bincount(block)
    x_fit, y_fit = np.bincount(block, x) / size, fit[np.searchsorted(block, np.arange(len(size)))]
    moved = ((i, b) for i, b in enumerate(block) if size[b] > 1)
    changes = tuple(_change(curve, i, words, (float(10 ** x_fit[b]), float(words.sign * y_fit[b]))) for i, b in moved)
    return replace(curve, x=x_fit, y=y_fit, changes=changes)


def _change(curve: Curve, i: int, words: MetricWords, to: tuple[float, float] | None = None) -> Change:
    """What became of the i-th point, in measured units."""
    return Change(curve.name, float(10 ** curve.x[i]), float(words.sign * curve.y[i]), to)


def _equal_runs(values: Array) -> npt.NDArray[np.intp]:
    """For ascending values (n,), the index of the run of equal values that each lies in, (n,): 0, 0, 1, 2, 2, ..."""
    return np.concatenate([[0], np.cumsum(np.diff(values) > 0)]).astype(np.intp)
