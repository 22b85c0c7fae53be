"""Tables on the terminal."""

from __future__ import annotations

import math

import pandas as pd
from rich.console import Console
from rich.table import Table

from icmbench.results.writers import percent_text, span


def show_bdrate(frame: pd.DataFrame) -> None:
    """The BD table: savings are negative; where a number is undefined stands the reason."""
    title = f"BD-rate against {frame['anchor'].iloc[0]}" if len(frame) else "BD-rate"
    table = Table(title=title)
    for column in ("codec", "dataset", "task", "metric"):
        table.add_column(column)
    barred = bool(frame["low"].notna().any())
    for column in ("BD-rate %", *(["95% interval"] if barred else []), "cubic, akima", "BD-quality", "overlap"):
        table.add_column(column, justify="right")
    table.add_column("note", overflow="fold")
    for row in frame.to_dict("records"):
        others = ", ".join(percent_text(row[method]) for method in ("cubic", "akima")) if pd.notna(row["pchip"]) else ""
        numbers = (
            _number(row["bd_rate_percent"], "+.1f"),
            *([span(row["low"], row["high"])] if barred else []),
            others,
            _number(row["bd_quality"], "+.2f"),
            _number(row["overlap"], ".0%"),
        )
        table.add_row(row["codec"], row["dataset"], row["task"], row["metric"], *numbers, str(row["note"] or ""))
    _print(table)


def show_scores(frame: pd.DataFrame) -> None:
    """Scores at every point, where there is no BD table to show."""
    table = Table(title="Scores")
    for column in ("codec", "point", "dataset", "task", "metric"):
        table.add_column(column)
    for column in ("bpp", "value"):
        table.add_column(column, justify="right")
    for row in frame.to_dict("records"):
        names = (row[column] for column in ("codec", "point", "dataset", "task", "metric"))
        table.add_row(*names, _number(row["bpp"], ".4f"), _number(row["value"], ".2f"))
    _print(table)


def show_plan(frame: pd.DataFrame) -> None:
    """Missing cells by codec point and task, with estimated seconds."""
    table = Table(title=f"{frame['missing'].sum()} of {frame['cells'].sum()} cells missing")
    for column in ("codec", "point", "dataset", "task"):
        table.add_column(column)
    for column in ("missing", "of", "images", "time"):
        table.add_column(column, justify="right")
    for row in frame.to_dict("records"):
        point = row["point"] if pd.isna(row["seed"]) else f"{row['point']} seed={row['seed']:g}"
        counts = (str(row["missing"]), str(row["cells"]), str(row["images"]))
        table.add_row(row["codec"], point, row["dataset"], row["task"], *counts, duration(row["seconds"]))
    known = frame["seconds"].sum()
    unknown = int(frame["seconds"].isna().sum())
    table.caption = f"about {duration(known)} on one worker" + (f"; {unknown} rows not measured yet" if unknown else "")
    _print(table)


def show_standard(frame: pd.DataFrame) -> None:
    """What this would cost on the standard sets; nothing where nothing is measured."""
    if not len(frame):
        return
    sets = list(dict.fromkeys(frame["set"]))
    images = frame.set_index("set")["images"].to_dict()
    table = Table(title="The standard sets at these points: time of one worker, disk")
    table.add_column("codec or task")
    table.add_column("passes", justify="right")
    for name in sets:
        table.add_column(f"{name}\n{images[name]} images", justify="right")
    for part, rows in frame.groupby("part", sort=False):
        cells = rows.set_index("set")
        costs = [_cost(cells.loc[name, "seconds"], cells.loc[name, "bytes"]) for name in sets]
        table.add_row(str(part), str(rows["points"].iloc[0]), *costs)
    table.add_section()
    sums = frame.groupby("set")[["seconds", "bytes"]].sum(min_count=frame["part"].nunique())
    table.add_row("all", "", *(_cost(*sums.loc[name]) for name in sets))
    table.caption = "Judged by the images in this run folder: coding by their pixels, tasks by their number."
    _print(table)


def _cost(seconds: float, size: float) -> str:
    return "?" if math.isnan(seconds) or math.isnan(size) else f"{duration(seconds)}, {volume(size)}"


def volume(size: float) -> str:
    """Bytes as `12 MB` or `0.9 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a log is not a narrow window
    console.print(table)


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3.2 s`, or `?` where nothing is measured."""
    if math.isnan(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: float | None, style: str) -> str:
    return "" if value is None or pd.isna(value) else format(value, style)
