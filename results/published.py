"""Curves and tables that papers report: kept apart from what was measured, and marked in every table and figure.

    published.json or a user's CSV or JSON -> reported curves, a scores frame -> dashed in figures
                                           -> tables as printed in the papers

A JSON file has `curves`: [{codec, source, dataset, task, bpp: [...], metrics: {name: [...]}}], and `tables`: [{source, title,
columns, rows, note}]; `task` and `note` are optional. A CSV has the columns that `read_scores` takes. Papers differ in what they
divide bits by (some by padded pixels) and in their evaluation code, so a reported curve takes part in a BD-rate only if a caller
asks for scores `with_reported` curves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icmbench.results.scores import KEY_COLUMNS, SCORE_COLUMNS, CurveKey, Scores, ScoresError, curve_keys, normalise, read_scores

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
    if path is not None and Path(path).suffix.lower() != ".json":
        frame = read_scores(path)
    else:
        name = path or "published.json"
        records = [record for curve in _read_json(path).get("curves", []) for record in _curve_records(curve, name)]
        try:
            frame = normalise(pd.DataFrame(records, columns=["codec", "dataset", "task", "metric", "bpp", "value"]))
        except ScoresError as error:
            raise ScoresError(f"{name}: {error}") from None
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
    tables = []
    for table in _read_json(path).get("tables", []):
        try:
            rows = [["" if cell is None else str(cell) for cell in row] for row in table["rows"]]
            frame = pd.DataFrame(rows, columns=table["columns"])
            note = f" {table['note']}" if table.get("note") else ""
            tables.append((f"{table['source']}, {table['title']}{REPORTED}.{note}", frame))
        except (KeyError, TypeError, ValueError) as error:
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
        content = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScoresError(f"{path}: cannot be read as a JSON file of curves and tables ({error})") from None
    if not isinstance(content, dict) or not {"curves", "tables"} & {*content}:
        raise ScoresError(f"{path}: has neither curves nor tables; give an object with one of them")
    return content


def _curve_records(curve: Any, file_name: object) -> list[dict[str, Any]]:
    """One record per metric and rate of a curve of a JSON file."""
    try:
        codec, source, bpp = str(curve["codec"]), str(curve["source"]), curve["bpp"]
        metrics = {
            str(name): np.broadcast_to(np.array(values, dtype=float), (len(bpp),)) for name, values in curve["metrics"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ScoresError(f"{file_name}: a curve needs codec, source, bpp and metrics of as many numbers ({error!r})") from None
    name = codec if codec == source else f"{codec}, {source}"
    shared = {"codec": name, "dataset": curve.get("dataset", ""), "task": curve.get("task", "")}
    return [
        {**shared, "metric": metric, "bpp": rate, "value": value}
        for metric, values in metrics.items()
        for rate, value in zip(bpp, values, strict=True)
    ]
