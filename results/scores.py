"""The scores frame: reading it, checking it, and the curves in it.

A row is one metric of one task on one point of one codec, with the columns `SCORES`: `low` and `high` are its 95% interval over
images, `undefined` the share of bootstrap replicates without a number. Rows of the codec `uncompressed` (no
rate) are the ceiling. Curves made elsewhere come as a CSV of `codec`, `bpp` (or `rate`) and either `metric`, `value` or one
column a metric; what such a file leaves out is filled with defaults.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SCORES = [
    "codec", "point", "dataset", "task", "model", "metric", "value", "low", "high", "unit", "higher_is_better", "reference",
    "realisation", "bpp", "payload_bpp", "mean_image_bpp", "expected", "scored", "empty", "failed", "limited", "encode_seconds",
    "decode_seconds", "task_seconds", "undefined",
]  # fmt: skip
TEXT = ["codec", "point", "dataset", "task", "model", "metric", "unit", "reference", "realisation"]
FLAGS = ["higher_is_better", "limited"]
NUMBERS = [column for column in SCORES if column not in (*TEXT, *FLAGS)]
GROUP = ["dataset", "task", "model", "metric", "reference"]  # what must agree for points to stand on one pair of axes
UNCOMPRESSED = "uncompressed"
LOWER_IS_BETTER = frozenset({"lpips", "dists", "fid", "kid", "parse_failures"})  # where `higher_is_better` is left out
LAYER = re.compile(r"layer(\d+)\.(\d+)")  # metrics of the task `layers`: feature difference by stage and block
NO = frozenset({"", "0", "false", "no", "nan", "none", "<na>"})


class ScoresError(ValueError):
    """A scores frame or CSV is malformed. One sentence that names the file, column or codec and the remedy."""


@dataclass(frozen=True)
class Key:
    """What the points of one figure share. `reference` is labels, original (agreement) or source; empty where not stated."""

    dataset: str
    task: str
    model: str
    metric: str
    reference: str

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a frame with the columns `GROUP` that belong to this key."""
        return frame[np.logical_and.reduce([frame[column] == getattr(self, column) for column in GROUP])]


def read_scores(path: str | Path, lower_is_better: Collection[str] = ()) -> pd.DataFrame:
    """The scores frame of a scores.csv, or of curves made elsewhere.

    lower_is_better: metrics of which less is better, beside `LOWER_IS_BETTER`; a column `higher_is_better` overrides both.
    Raises ScoresError.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except FileNotFoundError:
        raise ScoresError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ScoresError(f"{path}: cannot be read as a CSV file ({' '.join(str(error).split())})") from None
    try:
        return normalise(_long(frame), lower_is_better)
    except ScoresError as error:
        raise ScoresError(f"{path}: {' '.join(str(error).split())}") from None


def normalise(frame: pd.DataFrame, lower_is_better: Collection[str] = ()) -> pd.DataFrame:
    """The frame with the columns `SCORES` in order, typed: text as str, numbers as float64, flags as bool; index 0..n-1.

    Columns that are left out are filled with defaults. Raises ScoresError for a missing column, a value that is no number, a
    row given twice, or a metric whose rows disagree on its unit or direction.
    """
    for column in ("codec", "bpp", "metric", "value"):
        if column not in frame:
            raise ScoresError(f"no column {column!r}; a scores table has codec, bpp, metric and value, or one column a metric")
    given = frame.reset_index(drop=True)
    result = pd.DataFrame(index=given.index)
    for column in SCORES:
        values = given[column] if column in given else pd.Series([None] * len(given), dtype=object)
        if column in TEXT:
            result[column] = values.map(_text).astype(object)
        elif column in NUMBERS:
            result[column] = _numbers(column, values)
        elif column == "limited":
            result[column] = [_text(value).lower() not in NO for value in values]
        else:
            less = LOWER_IS_BETTER | {name.lower() for name in lower_is_better}
            known = [_text(value).lower() for value in values]
            result[column] = [k not in NO if k else m.lower() not in less for k, m in zip(known, result["metric"], strict=True)]
    if "point" not in given:
        result["point"] = (result.groupby([*GROUP, "codec", "realisation"]).cumcount() + 1).astype(str)
    _check(result)
    return result


def keys(scores: pd.DataFrame) -> list[Key]:
    """Every key of a normalised frame, in file order."""
    return [Key(*map(str, row)) for row in scores[GROUP].drop_duplicates().itertuples(index=False)]


def codecs(scores: pd.DataFrame) -> list[str]:
    """Every codec of a normalised frame but `uncompressed`, in file order."""
    return [str(name) for name in scores["codec"].drop_duplicates() if name != UNCOMPRESSED]


def primary_keys(scores: pd.DataFrame, primary: Mapping[str, str] | None = None) -> list[Key]:
    """The keys of each task's primary metric: as `primary` maps task to metric, else the task's first metric in file order."""
    chosen = dict(primary or {})
    for task, metric in chosen.items():
        known = scores.loc[scores["task"] == task, "metric"].unique()
        if len(known) and metric not in known:
            raise ScoresError(f"primary: task {task!r} has no metric {metric!r}; it has {', '.join(known)}")
    for key in keys(scores):
        chosen.setdefault(key.task, key.metric)
    return [key for key in keys(scores) if chosen[key.task] == key.metric]


def curve(scores: pd.DataFrame, codec: str) -> pd.DataFrame:
    """One codec's points within the rows of one key, ascending in rate.

    Columns: point, bpp, value, low, high, realisations, expected, scored, failed, limited. Several realisations of a point
    are averaged and low, high are their extremes.
    """
    records = []
    for point, rows in scores[scores["codec"] == codec].groupby("point", sort=False):
        value = rows["value"].to_numpy()
        several = len(rows) > 1
        records.append(
            {
                "point": point,
                "bpp": rows["bpp"].to_numpy().mean(),
                "value": value.mean(),  # NaN if one is: not to be passed over
                "low": value.min() if several else rows["low"].iloc[0],
                "high": value.max() if several else rows["high"].iloc[0],
                "realisations": len(rows),
                **{column: rows[column].sum(min_count=1) for column in ("expected", "scored", "failed")},
                "limited": rows["limited"].any(),
            }
        )
    columns = ["point", "bpp", "value", "low", "high", "realisations", "expected", "scored", "failed", "limited"]
    frame = pd.DataFrame(records, columns=columns).sort_values("bpp", kind="stable", ignore_index=True)
    return frame.astype(dict.fromkeys(("bpp", "value", "low", "high"), float))  # also where there is no record


def ceiling(scores: pd.DataFrame) -> float | None:
    """The uncompressed value within the rows of one key; None where there is none or it is not finite (PSNR)."""
    value = scores.loc[scores["codec"] == UNCOMPRESSED, "value"].to_numpy()
    return float(value.mean()) if len(value) and np.isfinite(value).all() else None


def nearest(what: str, name: str, known: Collection[str]) -> str:
    """`no codec 'jpg'; did you mean 'jpeg'?`, or the known ones where none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"no {what} {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}")


def _long(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a metric, from a file of text with one column a metric, or with `rate` for `bpp`."""
    if "bpp" not in frame and "rate" in frame:
        frame = frame.rename(columns={"rate": "bpp"})
    if "metric" in frame or "value" in frame or not {"codec", "bpp"} <= {*frame.columns}:
        return frame
    metrics = [column for column in frame.columns if column not in SCORES]
    if not metrics:
        raise ScoresError("no metric; give columns metric and value, or one column a metric")
    for column in metrics:
        _numbers(column, frame[column])
    frame = frame.drop(columns=["low", "high"], errors="ignore")  # of which metric, nobody can say
    ids = [column for column in frame.columns if column in SCORES]
    long = frame.melt(id_vars=ids, value_vars=metrics, var_name="metric", value_name="value")
    return long[long["value"].str.strip() != ""]  # an empty cell: not measured


def _text(value: Any) -> str:
    return "" if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)) else str(value)


def _numbers(column: str, values: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    for value in values[numbers.isna()]:
        if _text(value).strip().lower() not in ("", "nan", "none", "<na>"):
            raise ScoresError(f"column {column!r} holds {value!r}, which is no number; correct it or leave that column out")
    return numbers


def _check(scores: pd.DataFrame) -> None:
    twice = scores[scores.duplicated([*GROUP, "codec", "point", "realisation"])]
    for row in twice.itertuples():
        raise ScoresError(
            f"codec {row.codec!r} has two rows of {row.metric!r} at point {row.point!r}; keep one or name their realisation"
        )
    for key, rows in scores.groupby(GROUP, sort=False):
        for column in ("unit", "higher_is_better"):
            if rows[column].nunique() > 1:
                raise ScoresError(f"metric {key[3]!r} of task {key[1]!r} has rows that differ in {column}; make them the same")


def by_reference(items: list[Key]) -> Iterator[tuple[str, list[Key]]]:
    """Keys in blocks of one reference, labels first: agreement never shares a block with labels."""
    order = ["labels", "source", "", "original"]
    found = sorted({key.reference for key in items}, key=lambda r: (order.index(r) if r in order else 2, r))
    for reference in found:
        yield reference, [key for key in items if key.reference == reference]
