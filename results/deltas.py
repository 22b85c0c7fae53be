"""The two Bjontegaard deltas of curves that are ready to be interpolated: interpolation, shared interval, mean difference.

two curves --> interval that both cover --> interpolate each --> mean difference over that interval
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from icmbench.results.envelopes import Array, Curve, MetricWords, UndefinedDelta

Method: TypeAlias = Literal["pchip", "cubic", "akima"]

# The fewest points that determine each interpolant.
MIN_POINTS: Mapping[str, int] = {"pchip": 2, "akima": 3, "cubic": 4}
# Results whose shared quality interval is a smaller share of the anchor's carry a hint.
NARROW_OVERLAP = 0.5


def horizontal_delta(anchor: Curve, test: Curve, method: Method, words: MetricWords, cross_checks: bool) -> dict[str, Any]:
    """BD-rate: the mean difference of log10 rates at equal quality.

    Args:
        anchor: the curve to compare with; it rises strictly in rate and quality.
        test: the curve to judge; it rises strictly in rate and quality.
        method: the interpolation.
        words: of the metric.
        cross_checks: whether to compute BD-rate by the other interpolations too.

    Returns:
        The fields of `BDResult` that belong to BD-rate.

    Raises:
        UndefinedDelta: a curve has too few points, the curves share no quality interval, or the number is not finite.
    """
    for curve in (anchor, test):
        if len(curve.x) < MIN_POINTS[method]:
            raise UndefinedDelta(
                f"{curve.name} keeps {len(curve.x)} of {curve.measured} points on its envelope and {method} needs "
                f"{MIN_POINTS[method]} (add a point above rate {10 ** curve.x[-1]:.4g} with {words.better_than(curve.y[-1])}, "
                f"or below rate {10 ** curve.x[0]:.4g} with {words.worse_than(curve.y[0])})"
            )
    low, high = max(anchor.y[0], test.y[0]), min(anchor.y[-1], test.y[-1])
    if high <= low:
        upper, lower = (anchor, test) if anchor.y[0] >= test.y[-1] else (test, anchor)
        raise UndefinedDelta(
            f"no shared {words.metric} interval: {anchor.name} spans {words.span(anchor)}, {test.name} {words.span(test)} "
            f"(add a point of {lower.name} with {words.better_than(upper.y[0])}, or of {upper.name} with "
            f"{words.worse_than(lower.y[-1])})",
            overlap=0.0,
        )
    methods = get_args(Method) if cross_checks else (method,)
    percents = {m: _bd_rate_percent(anchor, test, m, low, high) for m in methods}
    if percents[method] is None:
        raise UndefinedDelta(f"{method} gives no finite number on these points")
    overlap = float((high - low) / (anchor.y[-1] - anchor.y[0]))
    missing = [words.better_than(test.y[-1])] if test.y[-1] < anchor.y[-1] else []
    missing += [words.worse_than(test.y[0])] if test.y[0] > anchor.y[0] else []
    ends = sorted((float(words.sign * low), float(words.sign * high)))
    return {
        "bd_rate_percent": percents.pop(method),
        "cross_checks": percents,
        "overlap": overlap,
        "interval": (ends[0], ends[1]),
        "points_inside": tuple(int(np.sum((c.y >= low) & (c.y <= high))) for c in (anchor, test)),
        "hint": f"add a point of {test.name} with {' and one with '.join(missing)}" if overlap < NARROW_OVERLAP and missing else "",
    }


def vertical_delta(anchor: Curve, test: Curve, method: Method, words: MetricWords) -> dict[str, Any]:
    """BD-quality: the mean difference of qualities at equal rate.

    Args:
        anchor: the curve to compare with; its rates are distinct, its quality may fall.
        test: the curve to judge; its rates are distinct, its quality may fall.
        method: the interpolation.
        words: of the metric.

    Returns:
        The fields of `BDResult` that belong to BD-quality.

    Raises:
        UndefinedDelta: a curve has too few points, or the curves share no rate interval.
    """
    for curve in (anchor, test):
        if len(curve.x) < MIN_POINTS[method]:
            raise UndefinedDelta(f"{curve.name} has {len(curve.x)} distinct rate(s) and {method} needs {MIN_POINTS[method]}")
    low, high = max(anchor.x[0], test.x[0]), min(anchor.x[-1], test.x[-1])
    if high <= low:
        spans = [f"{c.name} spans {10 ** c.x[0]:.4g} to {10 ** c.x[-1]:.4g}" for c in (anchor, test)]
        side = f"above rate {10 ** anchor.x[0]:.4g}" if anchor.x[0] >= test.x[-1] else f"below rate {10 ** anchor.x[-1]:.4g}"
        raise UndefinedDelta(f"no shared rate interval: {', '.join(spans)} (add a point of {test.name} {side})")
    delta = _mean(test.x, test.y, method, low, high) - _mean(anchor.x, anchor.y, method, low, high)
    return {"bd_quality": float(words.sign * delta) + 0.0, "rate_interval": (float(10**low), float(10**high))}


def _bd_rate_percent(anchor: Curve, test: Curve, method: Method, low: float, high: float) -> float | None:
    """BD-rate over [low, high] of quality; None if a curve has too few points or the number is not finite."""
    if min(len(anchor.x), len(test.x)) < MIN_POINTS[method]:
        return None
    delta = _mean(test.y, test.x, method, low, high) - _mean(anchor.y, anchor.x, method, low, high)
    with np.errstate(over="ignore"):
        percent = float(100 * np.expm1(delta * np.log(10)))
    return percent if np.isfinite(percent) else None


def _mean(x: Array, y: Array, method: Method, low: float, high: float) -> float:
    """Mean over [low, high] of the interpolant through the points (x, y), each float64 (n,)."""
    if method == "cubic":
        integral = np.polynomial.Polynomial.fit(x, y, 3).integ()
        return float((integral(high) - integral(low)) / (high - low))
    from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

    interpolator = PchipInterpolator(x, y) if method == "pchip" else Akima1DInterpolator(x, y)
    return float(interpolator.integrate(low, high) / (high - low))
