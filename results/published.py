"""Curves and tables that papers report: kept apart from what was measured, and marked wherever they are shown.

    published.json or a user's CSV or JSON -> reported curves, a scores frame -> dashed in figures
                                           -> tables as printed

A JSON file has `curves`: [{codec, source, dataset, task, bpp: [...], metrics: {name: [...]}}], and `tables`: [{source, title,
columns, rows, note}]; `task` and `note` are optional. A CSV is as of `read_scores`. Papers differ in what they divide bits by
(some by padded pixels) and in their evaluation code, so a reported curve takes part in a BD-rate only where a caller asks for
`with_reported` scores.
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

from icmbench.results.scores import GROUP, SCORES, Key, ScoresError, keys, normalise, read_scores

REPORTED = " (reported)"  # ends the name of every codec whose numbers were not measured here


def reported_curves(path: str | Path | None = None) -> pd.DataFrame:
    """The curves of a CSV or JSON file, or those that come with icmbench, as a scores frame; codec names end in `REPORTED`.

    Raises ScoresError for a file that is malformed.
    """
    if path is not None and Path(path).suffix.lower() != ".json":
        frame = read_scores(path)
    else:
        where = path or "published.json"
        records = [record for curve in _read(path).get("curves", []) for record in _records(curve, where)]
        try:
            frame = normalise(pd.DataFrame(records, columns=["codec", "dataset", "task", "metric", "bpp", "value"]))
        except ScoresError as error:
            raise ScoresError(f"{where}: {error}") from None
    frame["codec"] = [name if name.endswith(REPORTED) else name + REPORTED for name in frame["codec"]]
    return frame


def reported_tables(path: str | Path | None = None) -> list[tuple[str, pd.DataFrame]]:
    """(title, text frame) of the tables of a JSON file, or of those that come with icmbench. Raises ScoresError."""
    tables = []
    for table in _read(path).get("tables", []):
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


def with_reported(scores: pd.DataFrame, reported: pd.DataFrame | None) -> pd.DataFrame:
    """The scores with the reported curves of the same dataset and metric (case and punctuation aside), and task where given.

    A reported row without a dataset or task joins every one. Agreement, which no paper shares, gets none.
    """
    scores = normalise(scores)
    found = [scores]
    for key in keys(scores) if reported is not None and len(reported) else []:
        rows = _matching(reported, key)
        if len(rows):
            first = key.rows(scores).iloc[0]
            same = {column: first[column] for column in (*GROUP, "unit", "higher_is_better")}
            found.append(rows.assign(**same)[SCORES])
    return pd.concat(found, ignore_index=True) if len(found) > 1 else scores


def _matching(reported: pd.DataFrame, key: Key) -> pd.DataFrame:
    if key.reference == "original":
        return reported.iloc[:0]
    return reported[
        (reported["metric"].map(_plain) == _plain(key.metric))
        & reported["dataset"].map(_plain).isin(["", _plain(key.dataset)])
        & reported["task"].map(_plain).isin(["", _plain(key.task)])
    ]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _read(path: str | Path | None) -> Mapping[str, Any]:
    source = files("icmbench.results") / "published.json" if path is None else Path(path)
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScoresError(f"{path}: cannot be read as a JSON file of curves and tables ({error})") from None
    if not isinstance(found, dict) or not {"curves", "tables"} & {*found}:
        raise ScoresError(f"{path}: has neither curves nor tables; give an object with one of them")
    return found


def _records(curve: Any, where: object) -> list[dict[str, Any]]:
    try:
        codec, source, bpp = str(curve["codec"]), str(curve["source"]), curve["bpp"]
        metrics = {
            str(name): np.broadcast_to(np.array(values, dtype=float), (len(bpp),)) for name, values in curve["metrics"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ScoresError(f"{where}: a curve needs codec, source, bpp and metrics of as many numbers ({error!r})") from None
    name = codec if codec == source else f"{codec}, {source}"
    place = {"codec": name, "dataset": curve.get("dataset", ""), "task": curve.get("task", "")}
    return [
        {**place, "metric": metric, "bpp": rate, "value": value}
        for metric, values in metrics.items()
        for rate, value in zip(bpp, values, strict=True)
    ]
