"""Tables derived from a scores frame: BD-rates against an anchor, their means over datasets, rates at shares of the ceiling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, get_args

import pandas as pd

from icmbench.results.bd import BDResult, Envelope, Method, bd_rate, mean_bd_rate, rate_at
from icmbench.results.bootstrap import bd_intervals
from icmbench.results.scores import Key, ScoresError, ceiling, codecs, curve, keys, nearest, normalise

BDRATE = [
    "codec", "anchor", "dataset", "task", "model", "metric", "bd_rate_percent", "bd_quality", "overlap", "low", "high", "note",
    "reference", "quality_low", "quality_high", "undefined", "pchip", "cubic", "akima", "spread", "interval_low", "interval_high",
    "anchor_points", "test_points", "anchor_inside", "test_inside", "method", "envelope",
]  # fmt: skip
MEANS = ["codec", "anchor", "task", "model", "metric", "bd_rate_percent", "datasets", "note", "reference"]
RATES = ["codec", "dataset", "task", "model", "metric", "ceiling", "share", "rate", "note", "reference"]
INTERVALS = ("low", "high", "quality_low", "quality_high", "undefined")
SHARES = (0.90, 0.95, 0.99)
LIMITED = "limited: not reportable"
AGREEMENT = "agreement with the predictions on the originals, not accuracy"


def bdrate_frame(
    scores: pd.DataFrame,
    anchor: str | None,
    method: Method = "pchip",
    envelope: Envelope = "pareto",
    replicates: Mapping[str, pd.DataFrame] | None = None,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """BD-rate and BD-quality of every codec but the anchor, a row for each dataset, task, model, metric and reference.

    Columns `BDRATE`. Points of several realisations are averaged first. `reference` tells labels from agreement ("original").
    `pchip`, `cubic` and `akima` are BD-rates by each interpolation and `spread` their range; `interval_low` to `interval_high` the
    quality that both curves reach, `anchor_points` and `test_points` the points on the envelopes, `_inside` those within the
    interval. `note` holds what else is needed to judge the number: the reason where there is none, points dropped or moved,
    failed images, the mark of a limited run.
    replicates: of each task, by its label, as of `bootstrap.replicates`; `low` and `high` are the 95% interval of BD-rate over
    images, `quality_low` and `quality_high` that of BD-quality, `undefined` the share of replicates without a BD-rate, whose number
    is in the note. executor: as of `bd_intervals`.
    An anchor of None gives no rows. Raises ScoresError for an anchor that is not in the scores.
    """
    scores = normalise(scores)
    if anchor is not None and anchor not in codecs(scores):
        raise ScoresError(f"anchor: {nearest('codec', anchor, codecs(scores))}")
    records = []
    intervals = _intervals(scores, anchor, method, envelope, replicates or {}, executor)
    for key in keys(scores) if anchor is not None else []:
        rows = key.rows(scores)
        base = curve(rows, str(anchor))
        for codec in codecs(rows):
            if codec == anchor:
                continue
            points = curve(rows, codec)
            higher = bool(rows["higher_is_better"].iloc[0])
            anchor_points, test_points = (frame[["bpp", "value"]].to_numpy() for frame in (base, points))
            names = (str(anchor), codec)
            bars = intervals.get((key.task, codec, key.metric))
            result = bd_rate(anchor_points, test_points, method, envelope, higher, metric=key.metric, names=names)
            records.append(
                {
                    "codec": codec,
                    "anchor": anchor,
                    **_identity(key),
                    "bd_rate_percent": _nan(result.bd_rate_percent),
                    "bd_quality": _nan(result.bd_quality),
                    "overlap": _nan(result.overlap),
                    **_checks(result),
                    **{"method": method, "envelope": envelope},
                    **({} if bars is None else {name: bars[name] for name in INTERVALS}),
                    "note": "; ".join((*_notes(key, result, {str(anchor): base, codec: points}), *_interval_note(bars))),
                }
            )
    return pd.DataFrame(records, columns=BDRATE)


def mean_frame(bdrate: pd.DataFrame) -> pd.DataFrame:
    """BD-rates averaged in log-rate over the datasets that share a task label, model and metric; columns `MEANS`.

    `datasets` lists each with its number. Only what was measured on several datasets has a row; a mean over an undefined
    BD-rate is undefined.
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
                "datasets": ", ".join(f"{dataset} {signed(value)}" for dataset, value in listed),
                "note": f"undefined on {', '.join(undefined)}" if len(undefined) else "",
            }
        )
    return pd.DataFrame(records, columns=MEANS)


def declared(bdrate: pd.DataFrame) -> tuple[Method, Envelope]:
    """The interpolation and the envelope behind a BD frame; those of `bdrate_frame` where it has no rows."""
    return (bdrate["method"].iloc[0], bdrate["envelope"].iloc[0]) if len(bdrate) else ("pchip", "pareto")


def rate_frame(scores: pd.DataFrame, envelope: Envelope = "pareto", shares: Sequence[float] = SHARES) -> pd.DataFrame:
    """The rate at which each codec reaches a share of the uncompressed score; columns `RATES`, a row for each share.

    A metric without a finite, positive ceiling, or of which less is better, has no such rate: NaN, and the note says why.
    """
    scores = normalise(scores)
    records = []
    for key in keys(scores):
        rows = key.rows(scores)
        top = ceiling(rows)
        higher = bool(rows["higher_is_better"].iloc[0])
        usable = top is not None and top > 0 and higher
        for codec in codecs(rows):
            points = curve(rows, codec)[["bpp", "value"]].to_numpy()
            for share in shares:
                found = (
                    rate_at(points, share * top, envelope, metric=key.metric, name=codec) if usable and top is not None else None
                )
                note = found.reason if found else f"n/a: {_why_no_ceiling(top, higher)}"
                rate = _nan(found.rate if found else None)
                records.append({"codec": codec, **_identity(key), "ceiling": _nan(top), "share": share, "rate": rate, "note": note})
    return pd.DataFrame(records, columns=RATES)


def signed(percent: float | None, digits: int = 1) -> str:
    """`-12.3`, `+4.0`, `0.0`, or an en dash where there is no number."""
    if percent is None or math.isnan(percent):
        return "–"
    text = f"{percent:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def _notes(key: Key, result: BDResult, curves: dict[str, pd.DataFrame]) -> Iterator[str]:
    if any(frame["limited"].any() for frame in curves.values()):
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
    for (codec, frame), points in zip(curves.items(), result.points, strict=True):
        if 0 < points < 4:
            yield f"{codec} has {points} point{'s' * (points > 1)} on its envelope"
        if (frame["realisations"] > 1).any():
            fewest, most = frame["realisations"].min(), frame["realisations"].max()
            yield f"{codec}: mean of {fewest if fewest == most else f'{fewest} to {most}'} realisations"
        for row in frame[frame["failed"] > 0].itertuples():
            yield f"{codec} at {row.point}: {row.failed:.0f} of {row.expected:.0f} images failed"


def _intervals(
    scores: pd.DataFrame,
    anchor: str | None,
    method: Method,
    envelope: Envelope,
    replicates: Mapping[str, pd.DataFrame],
    executor: Executor | None,
) -> dict[tuple[str, str, str], pd.Series]:
    """Rows of `bd_intervals` by task, codec and metric."""
    found = {}
    for task, frame in replicates.items() if anchor is not None else ():
        mine = scores[scores["task"] == task]
        less = mine.loc[~mine["higher_is_better"], "metric"].unique().tolist()
        for _, row in bd_intervals(frame, str(anchor), less, method, envelope, executor=executor).iterrows():
            found[task, str(row["codec"]), str(row["metric"])] = row
    return found


def _checks(result: BDResult) -> dict[str, float]:
    """Numbers beside a BD-rate by which to judge it."""
    low, high = result.interval or (math.nan, math.nan)
    methods = {**result.cross_checks, result.method: result.bd_rate_percent}
    return {
        **{method: _nan(methods.get(method)) for method in get_args(Method)},
        "spread": _nan(result.spread),
        "interval_low": low,
        "interval_high": high,
        **dict(zip(("anchor_points", "test_points"), result.points, strict=True)),
        **dict(zip(("anchor_inside", "test_inside"), result.points_inside, strict=True)),
    }


def _interval_note(bars: pd.Series | None) -> Iterator[str]:
    if bars is not None:
        yield f"95% interval of {bars['replicates']:,} paired replicates, {share_text(bars['undefined'])} undefined"


def share_text(share: float) -> str:
    """A share of replicates in words."""
    return "none" if share == 0 else "under 0.1%" if share < 0.001 else f"{share:.1%}"


def _why_no_ceiling(top: float | None, higher_is_better: bool) -> str:
    if not higher_is_better:
        return "less is better"
    return "no finite uncompressed score" if top is None else "the uncompressed score is not above 0"


def _identity(key: Key) -> dict[str, Any]:
    return {"dataset": key.dataset, "task": key.task, "model": key.model, "metric": key.metric, "reference": key.reference}


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
