"""Tables derived from a scores frame: BD-rates against an anchor, their means over datasets, rates at shares of the ceiling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, get_args

import pandas as pd

from icmbench.results.bd import BDResult, Envelope, Method, bd_rate, mean_bd_rate, rate_at
from icmbench.results.bootstrap import bd_intervals
from icmbench.results.columns import ESTIMATED, MEASURED
from icmbench.results.scores import (
    CurveKey,
    Scores,
    ScoresError,
    ceiling_value,
    codec_names,
    curve_keys,
    curve_points,
    estimated_codecs,
    unknown_name_message,
)

BDRATE_COLUMNS = [
    "codec", "anchor", "dataset", "task", "model", "metric", "bd_rate_percent", "bd_quality", "overlap", "low", "high", "note",
    "reference", "quality_low", "quality_high", "undefined", "pchip", "cubic", "akima", "spread", "interval_low", "interval_high",
    "anchor_points", "test_points", "anchor_inside", "test_inside", "method", "envelope", "rate_kind", "anchor_rate_kind",
]  # fmt: skip
MEAN_COLUMNS = ["codec", "anchor", "task", "model", "metric", "bd_rate_percent", "datasets", "note", "reference", "rate_kind"]
RATE_COLUMNS = ["codec", "dataset", "task", "model", "metric", "ceiling", "share", "rate", "note", "reference", "rate_kind"]
INTERVAL_COLUMNS = ("low", "high", "quality_low", "quality_high", "undefined")
# Shares of the uncompressed score whose rates are tabulated.
SHARES = (0.90, 0.95, 0.99)
LIMITED = "limited: not reportable"
BOTH_ESTIMATED = "estimated rates: neither codec writes real bytes"
AGREEMENT = "agreement with the predictions on the originals, not accuracy"


def bdrate_frame(
    scores: Scores,
    anchor: str | None,
    method: Method = "pchip",
    envelope: Envelope = "pareto",
    replicates: Mapping[str, pd.DataFrame] | None = None,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """BD-rate and BD-quality of every codec against the anchor. Several realisations of a point are averaged first.

    Args:
        scores: normalised scores, from `read_scores` or `normalise`.
        anchor: name of the codec to compare with; None gives no rows.
        method: interpolation of the curves, as in `bd_rate`.
        envelope: what happens to curves that do not rise, as in `bd_rate`.
        replicates: from task label to what `draw_replicates` returned; gives intervals.
        executor: computes intervals in parallel; the numbers do not depend on it.

    Returns:
        One row per codec except the anchor, dataset, task, model, metric and reference, columns `BDRATE_COLUMNS`:

        - `bd_rate_percent`, `bd_quality` and `overlap` as in `BDResult`, NaN if undefined.
        - `low` and `high`, the 95% interval of BD-rate over images; `quality_low` and `quality_high`, that of BD-quality;
          `undefined`, the share of replicates without a BD-rate. NaN without replicates of the task.
        - `note`, what else is needed to judge the number: the reason for an undefined one, points dropped or moved, failed images,
          the mark of a limited run, the number of replicates.
        - `reference`, which tells scores against labels from agreement ("original").
        - `pchip`, `cubic` and `akima`, BD-rate by each interpolation, and `spread`, their range.
        - `interval_low` to `interval_high`, the quality that both curves reach; `anchor_points` and `test_points`, the number of
          points on the envelopes; `anchor_inside` and `test_inside`, the number of these within the interval.
        - `rate_kind` and `anchor_rate_kind`, how the rates of the codec and of the anchor were had: "measured" or "estimated". If
          these differ, both deltas are undefined.

    Raises:
        ScoresError: the anchor is not among the codecs.

    Example:
        >>> from icmbench.results.scores import normalise
        >>> curves = pd.DataFrame({"codec": ["a", "a", "b", "b"], "bpp": [1, 2, 0.5, 1], "value": [20, 30, 20, 30]})
        >>> bdrate_frame(normalise(curves.assign(metric="AP")), anchor="a")[["codec", "bd_rate_percent"]].round(3)
          codec  bd_rate_percent
        0     b            -50.0
    """
    if anchor is None:
        return pd.DataFrame(columns=BDRATE_COLUMNS)
    if anchor not in codec_names(scores):
        raise ScoresError(f"anchor: {unknown_name_message('codec', anchor, codec_names(scores))}")
    estimated = estimated_codecs(scores)
    intervals = _intervals(scores, anchor, method, envelope, replicates or {}, executor)
    records = []
    for key in curve_keys(scores):
        rows = key.rows(scores)
        anchor_curve = curve_points(rows, anchor)
        higher_is_better = bool(rows["higher_is_better"].iloc[0])
        for codec in codec_names(rows):
            if codec == anchor:
                continue
            curves = {anchor: anchor_curve, codec: curve_points(rows, codec)}
            anchor_points, test_points = (curve[["bpp", "value"]].to_numpy() for curve in curves.values())
            kinds = (anchor in estimated, codec in estimated)
            result = bd_rate(
                anchor_points, test_points, method, envelope, higher_is_better,
                metric=key.metric, names=(anchor, codec), estimated=kinds,
            )  # fmt: skip
            interval = intervals.get((key.task, codec, key.metric))
            words = dict(zip(("anchor_rate_kind", "rate_kind"), (ESTIMATED if kind else MEASURED for kind in kinds), strict=True))
            records.append({"codec": codec, "anchor": anchor, **_bdrate_record(key, result, curves, interval, all(kinds)), **words})
    return pd.DataFrame(records, columns=BDRATE_COLUMNS)


def mean_frame(bdrate: pd.DataFrame) -> pd.DataFrame:
    """BD-rates averaged in log rate over the datasets that share a task label, model and metric.

    Args:
        bdrate: as `bdrate_frame` returns it.

    Returns:
        One row per codec, task, model, metric and reference with several datasets, columns `MEAN_COLUMNS`. `datasets` lists each
        dataset with its number. A mean over an undefined BD-rate is undefined: NaN, and the note names the datasets.
    """
    records = []
    shared = ["codec", "anchor", "task", "model", "metric", "reference"]
    for identity, rows in bdrate.groupby(shared, sort=False):
        if len(rows) < 2:
            continue
        undefined = rows.loc[rows["bd_rate_percent"].isna(), "dataset"]
        listed = zip(rows["dataset"], rows["bd_rate_percent"], strict=True)
        records.append(
            {
                **dict(zip(shared, identity, strict=True)),
                "bd_rate_percent": math.nan if len(undefined) else mean_bd_rate(rows["bd_rate_percent"].tolist()),
                "datasets": ", ".join(f"{dataset} {signed_text(value)}" for dataset, value in listed),
                "note": f"undefined on {', '.join(undefined)}" if len(undefined) else "",
                "rate_kind": rows["rate_kind"].iloc[0],
            }
        )
    return pd.DataFrame(records, columns=MEAN_COLUMNS)


def method_and_envelope(bdrate: pd.DataFrame) -> tuple[Method, Envelope]:
    """The interpolation and the envelope behind a `bdrate_frame`; the defaults of that function if the frame has no rows."""
    return (bdrate["method"].iloc[0], bdrate["envelope"].iloc[0]) if len(bdrate) else ("pchip", "pareto")


def rate_frame(scores: Scores, envelope: Envelope = "pareto", shares: Sequence[float] = SHARES) -> pd.DataFrame:
    """The rate at which each codec reaches a share of the uncompressed score.

    Args:
        scores: normalised scores, from `read_scores` or `normalise`.
        envelope: what happens to curves that do not rise, as in `rate_at`.
        shares: shares of the uncompressed score, each between 0 and 1.

    Returns:
        One row per codec, key and share, columns `RATE_COLUMNS`; `rate` is in bits per pixel. A metric of which less is better, or
        without a finite, positive uncompressed score, has no such rate: NaN, and the note says why.
    """
    records = []
    estimated = estimated_codecs(scores)
    for key in curve_keys(scores):
        rows = key.rows(scores)
        ceiling = ceiling_value(rows)
        why_not = _why_no_rates(ceiling, bool(rows["higher_is_better"].iloc[0]))
        for codec in codec_names(rows):
            points = curve_points(rows, codec)[["bpp", "value"]].to_numpy()
            for share in shares:
                rate, note = None, f"n/a: {why_not}"
                if ceiling is not None and not why_not:
                    reached = rate_at(points, share * ceiling, envelope, metric=key.metric, name=codec)
                    rate, note = reached.rate, reached.reason
                record = {"codec": codec, **_identity(key), "ceiling": _nan_if_none(ceiling), "share": share}
                record["rate_kind"] = ESTIMATED if codec in estimated else MEASURED
                records.append(record | {"rate": _nan_if_none(rate), "note": note})
    return pd.DataFrame(records, columns=RATE_COLUMNS)


def signed_text(number: float | None, digits: int = 1) -> str:
    """A number with its sign, or an en dash if there is none.

    Example:
        >>> [signed_text(number) for number in (-12.34, 4.0, -0.01, None)]
        ['-12.3', '+4.0', '0.0', '–']
    """
    if number is None or math.isnan(number):
        return "–"
    text = f"{number:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def share_text(share: float) -> str:
    """A share of replicates in words: `none`, `under 0.1%`, `2.5%`."""
    return "none" if share == 0 else "under 0.1%" if share < 0.001 else f"{share:.1%}"


def _bdrate_record(
    key: CurveKey, result: BDResult, curves: Mapping[str, pd.DataFrame], interval: pd.Series | None, both_estimated: bool
) -> dict[str, Any]:
    """The columns of one BD-rate beside codec, anchor and the kinds of their rates.

    Args:
        key: what the curves share.
        result: the deltas.
        curves: the points of the anchor, then of the test codec.
        interval: the row of `bd_intervals`, if there are replicates.
        both_estimated: whether the rates of both curves are estimated.
    """
    estimated = [BOTH_ESTIMATED] if both_estimated else []
    return {
        **_identity(key),
        "bd_rate_percent": _nan_if_none(result.bd_rate_percent),
        "bd_quality": _nan_if_none(result.bd_quality),
        "overlap": _nan_if_none(result.overlap),
        **_check_numbers(result),
        "method": result.method,
        "envelope": result.envelope,
        **({} if interval is None else {name: interval[name] for name in INTERVAL_COLUMNS}),
        "note": "; ".join((*estimated, *_notes(key, result, curves), *_interval_note(interval))),
    }


def _notes(key: CurveKey, result: BDResult, curves: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    if any(points["limited"].any() for points in curves.values()):
        yield LIMITED
    if key.reference == "original":
        yield AGREEMENT
    if result.reason and result.reason == result.quality_reason:
        yield f"undefined: {result.reason}"
    else:
        if result.reason:
            yield f"BD-rate undefined: {result.reason}"
        if result.quality_reason:
            yield f"BD-quality undefined: {result.quality_reason}"
    if result.hint and result.overlap is not None:
        yield f"overlap only {result.overlap:.0%}: {result.hint}"
    yield from map(str, result.changes)
    for (codec, points), count in zip(curves.items(), result.points, strict=True):
        if 0 < count < 4:
            yield f"{codec} has {count} point{'s' * (count > 1)} on its envelope"
        if (points["realisations"] > 1).any():
            fewest, most = points["realisations"].min(), points["realisations"].max()
            yield f"{codec}: mean of {fewest if fewest == most else f'{fewest} to {most}'} realisations"
        for row in points[points["failed"] > 0].itertuples():
            yield f"{codec} at {row.point}: {row.failed:.0f} of {row.expected:.0f} images failed"


def _intervals(
    scores: Scores,
    anchor: str,
    method: Method,
    envelope: Envelope,
    replicates: Mapping[str, pd.DataFrame],
    executor: Executor | None,
) -> dict[tuple[str, str, str], pd.Series]:
    """Rows of `bd_intervals` by task, codec and metric; codecs whose rates are of another kind than the anchor's are left out."""
    intervals = {}
    estimated = estimated_codecs(scores)
    for task, frame in replicates.items():
        if estimated:
            frame = frame[frame["codec"].isin(estimated) == (anchor in estimated)]
        rows = scores[scores["task"] == task]
        less = rows.loc[~rows["higher_is_better"], "metric"].unique().tolist()
        for _, row in bd_intervals(frame, anchor, less, method, envelope, executor=executor).iterrows():
            intervals[task, str(row["codec"]), str(row["metric"])] = row
    return intervals


def _check_numbers(result: BDResult) -> dict[str, float]:
    """Numbers beside a BD-rate by which to judge it."""
    low, high = result.interval or (math.nan, math.nan)
    percents = {**result.cross_checks, result.method: result.bd_rate_percent}
    return {
        **{method: _nan_if_none(percents.get(method)) for method in get_args(Method)},
        "spread": _nan_if_none(result.spread),
        "interval_low": low,
        "interval_high": high,
        **dict(zip(("anchor_points", "test_points"), result.points, strict=True)),
        **dict(zip(("anchor_inside", "test_inside"), result.points_inside, strict=True)),
    }


def _interval_note(interval: pd.Series | None) -> Iterator[str]:
    if interval is not None:
        yield f"95% interval of {interval['replicates']:,} paired replicates, {share_text(interval['undefined'])} undefined"


def _why_no_rates(ceiling: float | None, higher_is_better: bool) -> str:
    """Why no share of the uncompressed score has a rate; empty if it has one."""
    if not higher_is_better:
        return "less is better"
    if ceiling is None:
        return "no finite uncompressed score"
    return "" if ceiling > 0 else "the uncompressed score is not above 0"


def _identity(key: CurveKey) -> dict[str, Any]:
    return {"dataset": key.dataset, "task": key.task, "model": key.model, "metric": key.metric, "reference": key.reference}


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value
