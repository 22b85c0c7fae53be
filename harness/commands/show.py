"""Tables of results and plans on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from icmbench.harness.config.quantities import format_duration, format_size
from icmbench.results.columns import ESTIMATED, ESTIMATED_MARK, UNCOMPRESSED
from icmbench.results.footnotes import Footnotes
from icmbench.results.tables import signed_text
from icmbench.results.writers import interval_text

LEAST_PERCENT = 1.0  # Less than this on the originals is below chance or close to it for every task that is scored in percent.


def show_bdrate(frame: pd.DataFrame) -> None:
    """Print a short BD table: one line per codec, dataset and task. Negative BD-rates are savings.

    The name of a codec that estimates its rate says so. An undefined number is a dash with a letter, which a line below the table
    explains; the reasons in full are in the column `note` of bdrate.csv and in the report.

    Args:
        frame: the columns of bdrate.csv, of one metric per task.
    """
    title = "BD-rate"
    if len(frame):
        title += f" against {frame['anchor'].iloc[0]}{_mark(frame['anchor_rate_kind'].iloc[0])}"
    table = Table(title=title, box=SIMPLE_HEAD)
    has_intervals = bool(frame["low"].notna().any())
    for column in ("codec", *(["dataset"] if frame["dataset"].nunique() > 1 else []), "task", "metric"):
        table.add_column(column)
    for column in ("BD-rate %", *(["95% interval"] if has_intervals else []), "BD-quality", "overlap"):
        table.add_column(column, justify="right")
    table.add_column("")
    footnotes = Footnotes()
    for _, row in frame.iterrows():
        rate, quality = row["bd_rate_percent"], row["bd_quality"]
        cells = {
            "codec": f"{row['codec']}{_mark(row['rate_kind'])}",
            "BD-rate %": f"- {footnotes.undefined(row, 'BD-rate')}" if pd.isna(rate) else signed_text(rate),
            "95% interval": interval_text(row["low"], row["high"]),
            "BD-quality": f"- {footnotes.undefined(row, 'BD-quality')}" if pd.isna(quality) else signed_text(quality, 2),
            "overlap": _format_number(row["overlap"], ".0%"),
            "": footnotes.mark(row),
        }
        table.add_row(*(str(cells.get(str(column.header), row.get(column.header))) for column in table.columns))
    _print(table)
    for line in footnotes.lines():
        print(line)


def show_scores(frame: pd.DataFrame) -> None:
    """Print the scores at every rate point, for experiments without a BD table.

    Args:
        frame: the columns of scores.csv.
    """
    table = Table(title="Scores")
    for column in ("codec", "point", "dataset", "task", "metric"):
        table.add_column(column)
    for column in ("bpp", "value"):
        table.add_column(column, justify="right")
    for row in frame.to_dict("records"):
        codec = f"{row['codec']}{_mark(row['rate_kind'])}"
        names = (codec, *(row[column] for column in ("point", "dataset", "task", "metric")))
        table.add_row(*names, _format_number(row["bpp"], ".4f"), _format_number(row["value"], ".2f"))
    _print(table)


def doubts_of_originals(scores: pd.DataFrame, primary: Mapping[str, str]) -> list[str]:
    """Sentences on tasks whose model fails on the originals too, which most often means labels of other images or classes.

    Args:
        scores: the columns of scores.csv.
        primary: by task label, the name of the metric that stands for the task.
    """
    originals = scores[(scores["codec"] == UNCOMPRESSED) & (scores["metric"] == scores["task"].map(dict(primary)))]
    failing = originals[(originals["unit"] == "%") & originals["higher_is_better"] & (originals["value"] < LEAST_PERCENT)]
    return [
        f"{row.task}: the model reaches {row.value:.2f} % {row.metric} on the uncompressed images: "
        "do the labels belong to these images, and are their classes those of the model?"
        for row in failing.itertuples()
    ]


def show_plan(frame: pd.DataFrame) -> None:
    """Print the missing cells of each codec point and task, with their estimated time.

    Args:
        frame: what `plan` returns.
    """
    table = Table(title=f"{frame['missing'].sum()} of {frame['cells'].sum()} cells missing")
    for column in ("codec", "point", "dataset", "task"):
        table.add_column(column)
    for column in ("missing", "of", "images", "time"):
        table.add_column(column, justify="right")
    for row in frame.to_dict("records"):
        point = row["point"] if pd.isna(row["seed"]) else f"{row['point']} seed={row['seed']:g}"
        counts = (str(row["missing"]), str(row["cells"]), str(row["images"]))
        table.add_row(row["codec"], point, row["dataset"], row["task"], *counts, format_duration(row["seconds"]))
    unmeasured = int(frame["seconds"].isna().sum())
    if unmeasured:
        table.caption = f"{unmeasured} rows were never measured; --probe N measures N images of each first"
    _print(table)


def show_standard_sets(frame: pd.DataFrame) -> None:
    """Print what the experiment would cost on the standard sets. Prints nothing if nothing has been measured.

    Args:
        frame: what `estimate_standard_sets` returns.
    """
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


def _mark(rate_kind: str) -> str:
    """What follows the name of a codec whose rate is estimated."""
    return ESTIMATED_MARK if rate_kind == ESTIMATED else ""


def _cost(seconds: float, size: float) -> str:
    return "unknown" if math.isnan(seconds) or math.isnan(size) else f"{format_duration(seconds)}, {format_size(size)}"


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 200  # Rich would wrap a table in a file or pipe at 80 columns.
    console.print(table)


def _format_number(value: float | None, style: str) -> str:
    return "" if value is None or pd.isna(value) else format(value, style)
