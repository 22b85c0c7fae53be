"""The scores frame: reading it, checking it, and the curves in it.

    scores.csv, curves made elsewhere --read_scores--\
    a frame made in memory            --normalise----+--> Scores --> curve_keys, codec_names --> curve_points, ceiling_value

A row is one metric of one task on one point of one codec, with the columns `SCORE_COLUMNS`: `low` and `high` are its 95% interval
over images, `undefined` the share of bootstrap replicates without a number. `rate_kind` says how the rate was had: `measured`,
which is the default, or `estimated` by a codec that writes no streams. Rows of the codec `uncompressed` have no rate; they are the
ceiling. Curves made elsewhere come as a CSV with `codec`, `bpp` (or `rate`) and either `metric` and `value` or one column per
metric; columns that such a file leaves out are filled with defaults.

A frame is normalised once, where it enters. Every function of `icmbench.results` whose argument has the type `Scores` relies on
that and checks nothing again.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from icmbench.results.columns import (
    ESTIMATED,
    ESTIMATED_MARK,
    FALSE_WORDS,
    KEY_COLUMNS,
    LAYER,
    LOWER_IS_BETTER,
    MEASURED,
    NUMBER_COLUMNS,
    SCORE_COLUMNS,
    TEXT_COLUMNS,
    UNCOMPRESSED,
    Scores,
)
from icmbench.results.csv_files import plain_numbers, read_csv_text
from icmbench.results.errors import ScoresError, quote, quote_all
from icmbench.results.score_checks import RUN_COLUMNS, check_flags, check_rows

__all__ = [
    "KEY_COLUMNS", "LAYER", "SCORE_COLUMNS", "UNCOMPRESSED", "CurveKey", "Scores", "ScoresError", "ceiling_value", "codec_names",
    "curve_keys", "curve_points", "estimated_codecs", "group_by_reference", "marked_name", "normalise", "primary_keys",
    "read_scores", "unknown_name_message",
]  # fmt: skip


@dataclass(frozen=True)
class CurveKey:
    """What all points of one figure share.

    Attributes:
        dataset: name of the dataset.
        task: label of the task.
        model: name of the task model.
        metric: name of the metric.
        reference: what predictions are scored against: "labels", "original" (agreement) or "source"; empty if not stated.
    """

    dataset: str
    task: str
    model: str
    metric: str
    reference: str

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows that belong to this key, of a frame with the columns `KEY_COLUMNS`."""
        return frame[np.logical_and.reduce([frame[column] == getattr(self, column) for column in KEY_COLUMNS])]


def read_scores(path: str | Path, lower_is_better: Collection[str] = ()) -> Scores:
    """Read a run's scores.csv, or curves made elsewhere.

    Args:
        path: a CSV file as `csv_files.read_csv_text` takes it.
        lower_is_better: metrics of which less is better, beside `LOWER_IS_BETTER`; a column `higher_is_better` overrides both.

    Returns:
        The normalised frame. Text columns hold the characters of the file: a realisation "1e5" or "007" stays as it is.

    Raises:
        ScoresError: the file is missing, is no CSV, a cell of it holds no number or one out of range, a rate of a curve is given
            twice, or it holds a frame that `normalise` refuses. The message names file, line and column.
    """
    try:
        frame, separator = read_csv_text(path, "codec", exact=RUN_COLUMNS)
        if "rate" in frame and "bpp" in frame:
            raise ScoresError("has both columns bpp and rate; leave one out")
        is_run, has_bpp = {*frame.columns} >= RUN_COLUMNS, "bpp" in frame
        if not len(frame) and not is_run:
            raise ScoresError(f"has a header of {quote_all(frame.columns)} and no line below it")
        long = _to_long_form(frame, separator)
        scores = normalise(long, lower_is_better)
        check_rows(scores, [f"line {line}" for line in long.index], is_run, has_bpp, "point" in frame)
        return scores
    except ScoresError as error:
        raise ScoresError(f"{path}: {' '.join(str(error).split())}") from None


def normalise(frame: pd.DataFrame, lower_is_better: Collection[str] = ()) -> Scores:
    """Check and type a scores frame. This is the entry for frames that no `read_scores` made, such as those of a run in memory.

    Args:
        frame: at least the columns codec, bpp, metric and value; of the others in `SCORE_COLUMNS`, those left out are filled with
            defaults, and further columns are dropped. It is not changed.
        lower_is_better: metrics of which less is better, beside `LOWER_IS_BETTER`; a column `higher_is_better` overrides both.

    Returns:
        A new frame with the columns `SCORE_COLUMNS` in order, text as str, numbers as float64, flags as bool, index 0 to n - 1.

    Raises:
        ScoresError: a column is missing, a value is no number, a row is given twice, rows of one metric differ in its unit or
            direction, or rates of one codec are partly estimated.

    Example:
        >>> scores = normalise(pd.DataFrame({"codec": ["jpeg"], "bpp": [0.5], "metric": ["lpips"], "value": ["0.1"]}))
        >>> scores[["codec", "point", "bpp", "metric", "value", "higher_is_better"]]
          codec point  bpp metric  value  higher_is_better
        0  jpeg     1  0.5  lpips    0.1             False
    """
    for column in ("codec", "bpp", "metric", "value"):
        if column not in frame:
            raise ScoresError(
                f"no column {column!r}; a scores table has codec, bpp, metric and value, or one column a metric, and this one has "
                f"{quote_all(frame.columns)}"
            )
    source = frame.reset_index(drop=True)
    result = pd.DataFrame(index=source.index)
    for column in SCORE_COLUMNS:
        values = source[column] if column in source else pd.Series([None] * len(source), dtype=object)
        if column in TEXT_COLUMNS:
            result[column] = values.map(_to_text).astype(object)
            _refuse_half_characters(column, result[column])
        elif column in NUMBER_COLUMNS:
            result[column] = _to_numbers(column, values)
        elif column == "limited":
            result[column] = [_to_text(value).lower() not in FALSE_WORDS for value in values]
        else:
            less = LOWER_IS_BETTER | {name.lower() for name in lower_is_better}
            flags = zip([_to_text(value).lower() for value in values], result["metric"], strict=True)
            result[column] = [flag not in FALSE_WORDS if flag else metric.lower() not in less for flag, metric in flags]
    if "point" not in source:
        result["point"] = (result.groupby([*KEY_COLUMNS, "codec", "realisation"]).cumcount() + 1).astype(str)
    result["rate_kind"] = _rate_kinds(result)
    _refuse_contradictions(result)
    return result


def curve_keys(scores: Scores) -> list[CurveKey]:
    """Every key of the scores, in file order."""
    return [CurveKey(*map(str, row)) for row in scores[KEY_COLUMNS].drop_duplicates().itertuples(index=False)]


def codec_names(scores: Scores) -> list[str]:
    """Every codec of the scores except `uncompressed`, in file order."""
    return [str(name) for name in scores["codec"].drop_duplicates() if name != UNCOMPRESSED]


def estimated_codecs(scores: Scores) -> frozenset[str]:
    """The codecs of the scores whose rates are estimated."""
    return frozenset(scores.loc[scores["rate_kind"] == ESTIMATED, "codec"])


def marked_name(name: str, estimated: Collection[str]) -> str:
    """A codec's name in tables for people and in figures, which say if its rate is estimated.

    Args:
        name: the codec.
        estimated: the codecs whose rates are estimated.

    Example:
        >>> [marked_name(name, {"vq"}) for name in ("vq", "jpeg")]
        ['vq (estimated rate)', 'jpeg']
    """
    return name + ESTIMATED_MARK if name in estimated else name


def primary_keys(scores: Scores, primary: Mapping[str, str] | None = None) -> list[CurveKey]:
    """The keys of each task's primary metric.

    Args:
        scores: normalised scores.
        primary: from task label to metric; a task that it leaves out has its first metric in file order.

    Raises:
        ScoresError: a task of the scores has no such metric.
    """
    chosen = dict(primary or {})
    for task, metric in chosen.items():
        metrics = scores.loc[scores["task"] == task, "metric"].unique()
        if len(metrics) and metric not in metrics:
            raise ScoresError(f"primary: task {task!r} has no metric {metric!r}; it has {', '.join(metrics)}")
    for key in curve_keys(scores):
        chosen.setdefault(key.task, key.metric)
    return [key for key in curve_keys(scores) if chosen[key.task] == key.metric]


def curve_points(scores: Scores, codec: str) -> pd.DataFrame:
    """The rate points of one codec, ascending in rate.

    Args:
        scores: the rows of one key.
        codec: name of the codec.

    Returns:
        One row per point, columns point, bpp, value, low, high, realisations, expected, scored, failed, limited, estimated. Several
        realisations of a point are averaged, and their extremes are its low and high.
    """
    rows_of_point: dict[str, list[int]] = {}
    labels = scores["point"].to_numpy()
    for row in np.flatnonzero(scores["codec"].to_numpy() == codec).tolist():
        rows_of_point.setdefault(labels[row], []).append(row)
    # Without pandas' grouping, which takes 10 ms a curve; a report of ten codecs and 25 metrics reads a thousand curves.
    numbers = {name: scores[name].to_numpy() for name in ("bpp", "value", "low", "high", "expected", "scored", "failed", "limited")}
    kinds = scores["rate_kind"].to_numpy()
    records = []
    for point, rows in rows_of_point.items():
        cells = {name: values[rows] for name, values in numbers.items()}
        several = len(rows) > 1
        records.append(
            {
                "point": point,
                "bpp": cells["bpp"].mean(),
                "value": cells["value"].mean(),  # NaN if one realisation is NaN, which must not pass unnoticed.
                "low": cells["value"].min() if several else cells["low"][0],
                "high": cells["value"].max() if several else cells["high"][0],
                "realisations": len(rows),
                **{name: _sum_of_known(cells[name]) for name in ("expected", "scored", "failed")},
                "limited": cells["limited"].any(),
                "estimated": bool((kinds[rows] == ESTIMATED).any()),
            }
        )
    columns = ["point", "bpp", "value", "low", "high", "realisations", "expected", "scored", "failed", "limited", "estimated"]
    if not records:  # All columns would be of dtype object.
        return pd.DataFrame(columns=columns).astype(dict.fromkeys(("bpp", "value", "low", "high"), float))
    order = np.argsort([record["bpp"] for record in records], kind="stable")  # NaN comes last.
    return pd.DataFrame({name: [records[k][name] for k in order] for name in columns})


def _sum_of_known(counts: npt.NDArray[np.float64]) -> float:
    """The sum of the numbers that are not NaN; NaN if there are no others."""
    known = counts[~np.isnan(counts)]
    return float(known.sum()) if len(known) else math.nan


def ceiling_value(scores: Scores) -> float | None:
    """The uncompressed value within the rows of one key; None if there is none or if it is not finite, as for PSNR."""
    value = scores.loc[scores["codec"] == UNCOMPRESSED, "value"].to_numpy()
    return float(value.mean()) if len(value) and np.isfinite(value).all() else None


def group_by_reference(keys: list[CurveKey]) -> Iterator[tuple[str, list[CurveKey]]]:
    """Each reference with its keys, labels first and agreement last: the two never share a table."""
    order = ["labels", "source", "", "original"]
    references = sorted({key.reference for key in keys}, key=lambda r: (order.index(r) if r in order else 2, r))
    for reference in references:
        yield reference, [key for key in keys if key.reference == reference]


def unknown_name_message(kind: str, name: str, known: Collection[str]) -> str:
    """What to tell a user whose name is unknown: the nearest known name, or all of them if none is near.

    Args:
        kind: what the name stands for, such as "codec".
        name: the unknown name.
        known: the names that exist.

    Example:
        >>> unknown_name_message("codec", "jpg", ["jpeg", "webp"])
        "no codec 'jpg'; did you mean 'jpeg'?"
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"no {kind} {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}")


def _to_long_form(frame: pd.DataFrame, separator: str) -> pd.DataFrame:
    """One row per metric, indexed by line, from a frame of text that may have one column per metric, or `rate` instead of `bpp`."""
    if "bpp" not in frame and "rate" in frame:
        frame = frame.rename(columns={"rate": "bpp"})
    check_flags(frame)
    numbers = [column for column in NUMBER_COLUMNS if column in frame]
    if "metric" in frame or "value" in frame or not {"codec", "bpp"} <= {*frame.columns}:
        _refuse_misspelt_columns(frame)
        return plain_numbers(frame, numbers, separator, ["value", "low", "high"] if {*frame.columns} >= RUN_COLUMNS else [])
    metrics = [column for column in frame.columns if column not in SCORE_COLUMNS]
    if not metrics:
        raise ScoresError("no metric; give columns metric and value, or one column a metric")
    frame = plain_numbers(frame, [*numbers, *metrics], separator)
    # A wide CSV does not say which metric these bounds belong to.
    frame = frame.drop(columns=["low", "high"], errors="ignore")
    ids = [column for column in frame.columns if column in SCORE_COLUMNS]
    long = frame.melt(id_vars=ids, value_vars=metrics, var_name="metric", value_name="value", ignore_index=False)
    # An empty cell stands for a metric that was not measured at this point.
    return long[long["value"] != ""]


def _refuse_misspelt_columns(frame: pd.DataFrame) -> None:
    """Raise ScoresError for a column without a meaning whose name is close to one that is missing: its default would be taken."""
    missing = [column for column in SCORE_COLUMNS if column not in frame]
    for column in frame.columns:
        near = difflib.get_close_matches(column.lower(), missing, n=1, cutoff=0.7) if column not in SCORE_COLUMNS else []
        if near:
            raise ScoresError(f"column {quote(column)} is unknown; did you mean {near[0]!r}? Rename it, or leave it out")


def _to_text(value: Any) -> str:
    return "" if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)) else str(value)


def _refuse_half_characters(column: str, texts: pd.Series) -> None:
    """Raise ScoresError for text with a lone surrogate, which no file can hold."""
    for text in texts.unique():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ScoresError(f"column {column!r} holds {quote(text)}, which has half of a character; rename it") from None


def _to_numbers(column: str, values: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    for value in values[numbers.isna()]:
        if _to_text(value).strip().lower() not in ("", "nan", "none", "<na>"):
            raise ScoresError(f"column {column!r} holds {value!r}, which is no number; correct it or leave that column out")
    return numbers


def _rate_kinds(scores: pd.DataFrame) -> list[str]:
    """How each rate was had, `measured` by default; empty for the uncompressed images, which have none.

    Raises:
        ScoresError: a word is none of the two.
    """
    kinds = []
    for codec, text in zip(scores["codec"], scores["rate_kind"], strict=True):
        kind = text.strip().lower() or MEASURED
        if kind not in (MEASURED, ESTIMATED):
            raise ScoresError(f"column 'rate_kind' holds {quote(text)}; write {MEASURED} or {ESTIMATED}, or nothing for {MEASURED}")
        kinds.append("" if codec == UNCOMPRESSED else kind)
    return kinds


def _refuse_contradictions(scores: pd.DataFrame) -> None:
    """Raise ScoresError for a row given twice, a metric whose rows differ in unit or direction, or a codec that mixes rates."""
    twice = scores[scores.duplicated([*KEY_COLUMNS, "codec", "point", "realisation"])]
    for row in twice.itertuples():
        raise ScoresError(
            f"codec {row.codec!r} has two rows of {row.metric!r} at point {row.point!r}; keep one or name their realisation"
        )
    mixing = estimated_codecs(scores) & {*scores.loc[scores["rate_kind"] == MEASURED, "codec"]}
    for codec in sorted(mixing):
        raise ScoresError(f"codec {quote(codec)} has both measured and estimated rates; give those that are estimated another name")
    _refuse_other_images(scores)
    for key, rows in scores.groupby(KEY_COLUMNS, sort=False):
        for column in ("unit", "higher_is_better"):
            if rows[column].nunique() > 1:
                raise ScoresError(f"metric {key[3]!r} of task {key[1]!r} has rows that differ in {column}; make them the same")


def _refuse_other_images(scores: Scores) -> None:
    """Raise ScoresError if rows that would share a curve or a table were scored on different images.

    The column `images` tells sets of images apart by their pixels. Where it is empty, as in files from elsewhere, different numbers
    of scored images do.
    """
    for key, rows in scores.groupby(KEY_COLUMNS, sort=False):
        for column, noun in (("images", "other images"), ("scored", "another number of images")):
            stated = rows[(rows[column] != "") & rows[column].notna()]
            if stated[column].nunique() > 1:
                first = stated.iloc[0]
                other = stated[stated[column] != first[column]].iloc[0]
                raise ScoresError(
                    f"codec {quote(other['codec'])} at point {quote(other['point'])} was scored on {noun} than "
                    f"{quote(first['codec'])} at point {quote(first['point'])} ({quote(key[3])} of dataset {quote(key[0])}): "
                    f"{_share(other)} and {_share(first)}; score all codecs on the same images, or put them into two files"
                )


def _share(row: pd.Series) -> str:
    return "an unknown number" if pd.isna(row["scored"]) else f"{row['scored']:g} images"
