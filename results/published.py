"""Curves and tables that papers report: kept apart from what was measured, and marked in every table and figure.

    published.json or a user's CSV or JSON -> reported curves, a scores frame -> dashed in figures
                                           -> tables as printed in the papers

A JSON file has `curves`: [{codec, source, dataset, task, rate_kind, bpp: [...], metrics: {name: [...]}}], and `tables`: [{source,
title, columns, rows, note}]; `task`, `rate_kind` ("measured" or "estimated") and `note` are optional. A CSV has the columns that
`read_scores` takes. Papers differ in what they divide bits by (some by padded pixels) and in their evaluation code, so a reported
curve takes part in a BD-rate only if a caller asks for scores `with_reported` curves.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from icmbench.results.columns import ESTIMATED, MEASURED
from icmbench.results.errors import ScoresError, quote
from icmbench.results.json_files import parse_json
from icmbench.results.plain_files import read_plain_file
from icmbench.results.score_checks import check_rows
from icmbench.results.scores import KEY_COLUMNS, SCORE_COLUMNS, CurveKey, Scores, curve_keys, normalise, read_scores

# Ends the name of every codec whose numbers were not measured here.
REPORTED = " (reported)"


def reported_curves(path: str | Path | None = None) -> Scores:
    """Read curves that papers report.

    Args:
        path: a CSV or JSON file; None for the curves that come with icmbench.

    Returns:
        A normalised frame whose codec names end in `REPORTED`.

    Raises:
        ScoresError: the file is malformed.
    """
    is_json = path is None or Path(path).suffix.lower() == ".json"
    frame = _read_json_curves(path) if path is None or is_json else read_scores(path)
    frame["codec"] = [codec if codec.endswith(REPORTED) else codec + REPORTED for codec in frame["codec"]]
    return frame


def reported_tables(path: str | Path | None = None) -> list[tuple[str, pd.DataFrame]]:
    """Read tables that papers report.

    Args:
        path: a JSON file; None for the tables that come with icmbench.

    Returns:
        (title, text table) of each.

    Raises:
        ScoresError: the file is malformed.
    """
    tables: list[tuple[str, pd.DataFrame]] = []
    stored = _read_json(path).get("tables", [])
    if not isinstance(stored, list):
        raise ScoresError(f"{path}: tables are {quote(stored)}; give a list of tables")
    for table in stored:
        try:
            rows = [["" if cell is None else str(cell) for cell in row] for row in table["rows"]]
            frame = pd.DataFrame(rows, columns=table["columns"])
            note = f" {table['note']}" if table.get("note") else ""
            tables.append((f"{table['source']}, {table['title']}{REPORTED}.{note}", frame))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ScoresError(
                f"{path}: table {len(tables) + 1} needs source, title, columns and rows that fit ({error!r})"
            ) from None
    return tables


def with_reported(scores: Scores, reported: pd.DataFrame | None) -> Scores:
    """The scores together with the reported curves that match one of their keys.

    A reported row matches a key if dataset, task and metric agree, case and punctuation aside; one without a dataset or task
    matches every one. Agreement, which no paper shares, gets none.

    Args:
        scores: normalised scores, from `read_scores` or `normalise`.
        reported: rows of `reported_curves`, or of several files together. Rows that two files repeat are not removed: pass the
            result to `normalise`, which refuses such rows, before BD-rates are computed from it.

    Returns:
        The scores themselves if nothing matches, otherwise a new frame.
    """
    frames = [scores]
    for key in curve_keys(scores) if reported is not None and len(reported) else []:
        rows = _matching_rows(reported, key)
        if len(rows):
            measured = key.rows(scores).iloc[0]
            shared = {column: measured[column] for column in (*KEY_COLUMNS, "unit", "higher_is_better")}
            frames.append(rows.assign(**shared)[SCORE_COLUMNS])
    return pd.concat(frames, ignore_index=True) if len(frames) > 1 else scores


def _read_json_curves(path: str | Path | None) -> Scores:
    """The curves of a JSON file."""
    name = path or "published.json"
    curves = _read_json(path).get("curves", [])
    if not isinstance(curves, list):
        raise ScoresError(f"{name}: curves are {quote(curves)}; give a list of curves")
    records = [(number, record) for number, curve in enumerate(curves, start=1) for record in _curve_records(curve, number, name)]
    columns = ["codec", "dataset", "task", "rate_kind", "metric", "bpp", "value"]
    frame = pd.DataFrame([record for _, record in records], columns=columns)
    try:
        scores = normalise(frame)
        check_rows(scores, [f"curve {number}" for number, _ in records], is_run=False, has_bpp=True, has_points=False)
    except ScoresError as error:
        raise ScoresError(f"{name}: {error}") from None
    return scores


def _matching_rows(reported: pd.DataFrame, key: CurveKey) -> pd.DataFrame:
    if key.reference == "original":
        return reported.iloc[:0]
    return reported[
        (reported["metric"].map(_fold) == _fold(key.metric))
        & reported["dataset"].map(_fold).isin(["", _fold(key.dataset)])
        & reported["task"].map(_fold).isin(["", _fold(key.task)])
    ]


def _fold(name: str) -> str:
    """A name without case and punctuation, for comparison."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _read_json(path: str | Path | None) -> Mapping[str, Any]:
    source = files("icmbench.results") / "published.json" if path is None else Path(path)
    try:
        content = parse_json(read_plain_file(source))
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # Fails for half of a character, which no table can hold.
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise ScoresError(f"{path}: cannot be read as a JSON file of curves and tables ({cause})") from None
    if not isinstance(content, dict) or not {"curves", "tables"} & {*content}:
        raise ScoresError(f"{path}: has neither curves nor tables; give an object with one of them")
    return content


def _curve_records(curve: Any, number: int, file_name: object) -> list[dict[str, Any]]:
    """One record per metric and rate of a curve of a JSON file.

    Args:
        curve: what the file says.
        number: position of the curve in the file, from 1.
        file_name: named in errors.
    """
    where = f"{file_name}: curve {number}"
    if not isinstance(curve, dict) or not {"codec", "source", "bpp", "metrics"} <= {*curve}:
        raise ScoresError(f"{where}: a curve needs codec, source, bpp and metrics, not {quote(curve)}")
    names = {key: curve.get(key) or "" for key in ("codec", "source", "dataset", "task", "rate_kind")}
    for key, text in names.items():
        if not isinstance(text, str) or (key in ("codec", "source") and not text):
            raise ScoresError(f"{where}: {key} is {quote(text)}; write a name")
    if names["rate_kind"] not in ("", MEASURED, ESTIMATED):
        raise ScoresError(f"{where}: rate_kind is {quote(names['rate_kind'])}; write {MEASURED} or {ESTIMATED}")
    rates = _numbers(curve["bpp"], f"{where}: bpp")
    metrics = curve["metrics"]
    if not isinstance(metrics, dict) or not metrics:
        raise ScoresError(f"{where}: metrics are {quote(metrics)}; give an object of lists of numbers")
    name = names["codec"] if names["codec"] == names["source"] else f"{names['codec']}, {names['source']}"
    shared = {"codec": name, **{key: names[key] for key in ("dataset", "task", "rate_kind")}}
    records = []
    for metric, values in metrics.items():
        numbers = _numbers(values, f"{where}: {metric}")
        if len(numbers) != len(rates):
            raise ScoresError(f"{where}: {metric} has {len(numbers)} values and bpp {len(rates)}; give as many numbers")
        records += [{**shared, "metric": metric, "bpp": rate, "value": value} for rate, value in zip(rates, numbers, strict=True)]
    return records


def _numbers(values: Any, where: str) -> list[float]:
    """Finite numbers of a JSON list."""
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(values, list) or isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
            raise ScoresError(f"{where} holds {quote(value)}; give a list of finite numbers")
    return [float(value) for value in values]


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # A whole number beyond the largest float.
        return False
