"""Tables as files: CSV for programs, Markdown and LaTeX for people. Agreement never shares a table with labels.

In a table for people, the name of a codec that estimates its rate says so; in a CSV the column `rate_kind` does.

A text table is a frame whose cells are strings, ready to be printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from icmbench.results.analyses import complexity_table
from icmbench.results.columns import ESTIMATED
from icmbench.results.correlation import correlation_frame, correlation_table
from icmbench.results.scores import (
    UNCOMPRESSED,
    CurveKey,
    Scores,
    estimated_codecs,
    group_by_reference,
    marked_name,
    primary_keys,
)
from icmbench.results.tables import LIMITED, mean_frame, method_and_envelope, rate_frame, share_text, signed_text

TITLES = {
    "labels": "Accuracy against labels",
    "source": "Fidelity to the source images",
    "original": "Agreement with the predictions on the originals",
}
_TEX_ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def write_csv(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a frame with all digits, NaN as an empty cell."""
    frame.to_csv(path, index=False, lineterminator="\n")


def write_tables(
    scores: Scores,
    bdrate: pd.DataFrame,
    folder: str | Path,
    primary: Mapping[str, str] | None = None,
    codec_analyses: Mapping[str, pd.DataFrame] | None = None,
) -> list[Path]:
    """Write the tables of BD-rates and scores, and those of correlation and complexity if there are any, as .md and .tex.

    Args:
        scores: normalised scores, from `read_scores` or `normalise`.
        bdrate: as `bdrate_frame` returns it.
        folder: a folder that exists.
        primary: from task label to the metric that stands for it; a task that it leaves out has its first metric in file order.
        codec_analyses: frames of codecs' own analyses, by a name of `analyses.COLUMNS`.

    Returns:
        The paths of the files.
    """
    tables = {"bdrate": [*bdrate_tables(scores, bdrate, primary)], "scores": [*scores_tables(scores)]}
    for name, title, table in extra_tables(scores, codec_analyses):
        tables[name] = [(title, table)]
    warning = f"{LIMITED}. " if scores["limited"].any() else ""
    return [path for name, titled in tables.items() for path in write_text(Path(folder) / name, titled, warning)]


def write_text(stem: Path, tables: Iterable[tuple[str, pd.DataFrame]], warning: str = "") -> list[Path]:
    """Write text tables into one Markdown and one LaTeX file.

    Args:
        stem: path of the files without .md and .tex.
        tables: (title, text table).
        warning: put before each title.

    Returns:
        The paths of the files.
    """
    tables = [*tables]
    texts = {
        ".md": "\n".join(f"## {escape_markdown(warning + title)}\n\n{to_markdown(table)}\n" for title, table in tables),
        ".tex": "\n".join(to_latex(table, warning + title) for title, table in tables),
    }
    paths = []
    for suffix, text in texts.items():
        paths.append(stem.with_name(stem.name + suffix))
        paths[-1].write_text(text, encoding="utf-8", newline="\n")
    return paths


def extra_tables(scores: Scores, codec_analyses: Mapping[str, pd.DataFrame] | None) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(file stem, title, text table) of the tables that only some runs have; the arguments are those of `write_tables`."""
    correlations, estimated = correlation_frame(scores), estimated_codecs(scores)
    if len(correlations):
        table = _mark_codecs(correlation_table(correlations), estimated)
        yield "correlation", "Feature difference against task drop, over the rate points", table
    if codec_analyses and "complexity" in codec_analyses:
        table = _mark_codecs(complexity_table(codec_analyses["complexity"]), estimated)
        yield "complexity", "Parameters and multiply-accumulates", table


def bdrate_tables(
    scores: Scores, bdrate: pd.DataFrame, primary: Mapping[str, str] | None = None
) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, text table) of BD-rates, reference by reference: the primary metrics, every number with its note, and means.

    Args:
        scores: normalised scores.
        bdrate: as `bdrate_frame` returns it.
        primary: from task label to the metric that stands for it; a task that it leaves out has its first metric in file order.
    """
    means, rates = mean_frame(bdrate), rate_frame(scores, method_and_envelope(bdrate)[1])
    for reference, keys in group_by_reference(primary_keys(scores, primary)):
        name = TITLES.get(reference, "Scores")
        anchor = marked_name(bdrate["anchor"].iloc[0], estimated_codecs(scores)) if len(bdrate) else None
        if anchor is not None:
            yield f"BD-rate (%) against {anchor}. {name}", overview_table(bdrate, keys)
        for title, table in (
            ("BD-rate, BD-quality and rate at shares of the uncompressed score", details_table(rates, bdrate, reference)),
            ("What the BD-rates rest on", checks_table(bdrate, reference)),
        ):
            if len(table):
                yield f"{title}. {name}", table
        averages = means_table(means[means["reference"] == reference])
        if len(averages):
            yield f"BD-rate (%) averaged over datasets in log-rate. {name}", averages


def means_table(means: pd.DataFrame) -> pd.DataFrame:
    """Text table of BD-rates averaged over datasets, from rows of a `mean_frame`."""
    table = means[["codec", "task", "model", "metric"]].set_axis(["Codec", "Task", "Model", "Metric"], axis=1)
    percents = means["bd_rate_percent"].map(signed_text)
    table = table.assign(**{"Mean BD-rate %": percents, "Datasets": means["datasets"], "Note": means["note"]})
    return _drop_empty_columns(_mark_codecs(table, _estimated_in(means)))


def overview_table(bdrate: pd.DataFrame, keys: list[CurveKey]) -> pd.DataFrame:
    """Text table of BD-rates in percent, from a `bdrate_frame`: one row per codec, one column per key."""
    codecs = bdrate["codec"].drop_duplicates()
    table = pd.DataFrame({"Codec": codecs.tolist()})
    for key in keys:
        percents = key.rows(bdrate).set_index("codec")["bd_rate_percent"]
        table[_column_title(key)] = [signed_text(percents.get(codec)) for codec in codecs]
    return _mark_codecs(table, _estimated_in(bdrate))


def details_table(rates: pd.DataFrame, bdrate: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Text table of one reference: BD-rate, BD-quality and rates at shares of the ceiling, the anchor's included.

    Args:
        rates: as `rate_frame` returns it, which has rows for every codec.
        bdrate: as `bdrate_frame` returns it.
        reference: "labels", "source", "original" or empty.
    """
    identity = ["codec", "dataset", "task", "model", "metric"]
    deltas = bdrate[bdrate["reference"] == reference].set_index(identity)
    rows = []
    for names, group in rates[rates["reference"] == reference].groupby(identity, sort=False):
        delta = deltas.loc[names] if names in deltas.index else None
        rows.append(
            {
                **dict(zip(("Codec", "Dataset", "Task", "Model", "Metric"), names, strict=True)),
                "BD-rate %": "anchor" if delta is None else signed_text(delta["bd_rate_percent"]),
                "95% interval": "" if delta is None else interval_text(delta["low"], delta["high"]),
                "BD-quality": "" if delta is None else signed_text(delta["bd_quality"], 3),
                **{f"Rate at {row.share:.0%}": rate_text(row.rate, row.note) for row in group.itertuples()},
                "Note": "" if delta is None else delta["note"],
            }
        )
    table = _drop_needless_model(_mark_codecs(pd.DataFrame(rows), _estimated_in(rates)))
    unused = ["95% interval"] if not bdrate["low"].notna().any() else []
    unused += [] if len(bdrate) else ["BD-rate %", "BD-quality", "Note"]
    return table.drop(columns=unused, errors="ignore")


def checks_table(bdrate: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Text table of one reference: other interpolations, what the two curves share, and how many points lie there.

    Args:
        bdrate: as `bdrate_frame` returns it.
        reference: "labels", "source", "original" or empty.
    """
    rows = [
        {
            **{name: row[name.lower()] for name in ("Codec", "Dataset", "Task", "Model", "Metric")},
            "BD-rate %": signed_text(row["bd_rate_percent"]),
            **{name: percent_text(row[name.lower()]) for name in ("PCHIP", "Cubic", "Akima")},
            "Spread": "" if pd.isna(row["spread"]) else f"{row['spread']:.1f}",
            "Overlap": "" if pd.isna(row["overlap"]) else f"{row['overlap']:.0%}",
            "Shared interval": "" if pd.isna(row["interval_low"]) else f"{row['interval_low']:.4g} to {row['interval_high']:.4g}",
            **{
                f"Points inside, {curve}": f"{row[f'{curve}_inside']:.0f} of {row[f'{curve}_points']:.0f}"
                for curve in ("anchor", "test")
            },
            "BD-quality, 95% interval": interval_text(row["quality_low"], row["quality_high"], 3),
            "Undefined replicates": "" if pd.isna(row["undefined"]) else share_text(row["undefined"]),
        }
        for row in bdrate[bdrate["reference"] == reference].to_dict("records")
    ]
    if not rows:
        return pd.DataFrame(rows)
    table = _drop_needless_model(_mark_codecs(pd.DataFrame(rows), _estimated_in(bdrate)))
    # The interpolation behind the BD-rates themselves needs no column of its own.
    main = next((name for name in ("PCHIP", "Cubic", "Akima") if (table[name] == table["BD-rate %"]).all()), "")
    return _drop_empty_columns(table.drop(columns=main, errors="ignore"), ("Codec", "Dataset", "Task", "Metric"))


def scores_tables(scores: Scores) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, text table) of all scores with their counts, reference by reference."""
    for reference in dict(group_by_reference(primary_keys(scores))):
        yield TITLES.get(reference, "Scores"), scores_table(scores[scores["reference"] == reference])


def scores_table(scores: Scores) -> pd.DataFrame:
    """Text table of scores: value, rate, and how many images were expected, scored, empty and failed."""
    columns = {"Codec": "codec", "Point": "point", "Dataset": "dataset", "Task": "task", "Model": "model", "Metric": "metric"}
    table = scores[[*columns.values()]].set_axis([*columns], axis=1)
    table["Value"] = [number_text(value) for value in scores["value"]]
    bounds = zip(scores["low"], scores["high"], strict=True)
    table["95% interval"] = ["" if pd.isna(low) else f"{number_text(low)} to {number_text(high)}" for low, high in bounds]
    table["Undefined replicates"] = ["" if pd.isna(share) or not share else share_text(share) for share in scores["undefined"]]
    table["Unit"] = scores["unit"]
    table["Limited"] = [LIMITED if limited else "" for limited in scores["limited"]]
    rates = zip(scores["codec"], scores["bpp"], strict=True)
    table["bpp"] = ["" if codec == UNCOMPRESSED else rate_text(bpp, "") for codec, bpp in rates]
    for column in ("expected", "scored", "empty", "failed"):
        table[column.capitalize()] = [number_text(value) for value in scores[column]]
    table["Realisation"] = scores["realisation"]
    return _drop_empty_columns(_mark_codecs(table, estimated_codecs(scores)))


def interval_text(low: float, high: float, digits: int = 1) -> str:
    """`-12.3 to -9.8`; empty if there is no interval."""
    return "" if pd.isna(low) or pd.isna(high) else f"{signed_text(low, digits)} to {signed_text(high, digits)}"


def percent_text(percent: float) -> str:
    """A BD-rate by another interpolation. A huge one, which means that the interpolation fails, has three digits."""
    return "n/a" if pd.isna(percent) else f"{percent:+.3g}" if abs(percent) >= 1000 else signed_text(percent)


def number_text(value: float) -> str:
    """A number with at least four significant digits, counts in full; empty for NaN.

    Example:
        >>> [number_text(value) for value in (0.123456, 12345.678, 5000.0, float("nan"))]
        ['0.1235', '12345.7', '5000', '']
    """
    if pd.isna(value):
        return ""
    is_whole = value == round(value, 9) and float(value).is_integer()
    return f"{value:.0f}" if is_whole else f"{value:.{4 if abs(value) < 1000 else 6}g}"


def rate_text(rate: float, note: str) -> str:
    """A rate in bits per pixel; for NaN the first words of the note that says why there is none."""
    if pd.isna(rate):
        return note.split(":")[0].split(",")[0]
    return f"{rate:.4f}" if rate < 10 else number_text(rate)


def escape_markdown(text: object) -> str:
    """Text for one cell of a Markdown table: a single line in which nothing is markup."""
    escaped = re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(str(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_markdown(table: pd.DataFrame) -> str:
    """A text table as Markdown."""
    escaped = table.rename(columns=escape_markdown).map(escape_markdown)
    return escaped.to_markdown(index=False, disable_numparse=True)


def escape_latex(text: object) -> str:
    """Text for LaTeX: a single line in which nothing is a command."""
    return " ".join(str(text).split()).translate(_TEX_ESCAPES)


def to_latex(table: pd.DataFrame, caption: str) -> str:
    """A text table as LaTeX (packages booktabs and longtable)."""
    align = "".join("p{0.3\\linewidth}" if column in ("Note", "Datasets") else "l" for column in table.columns)
    escaped = table.rename(columns=escape_latex).map(escape_latex)
    return escaped.to_latex(index=False, escape=False, longtable=True, caption=escape_latex(caption), column_format=align)


def _column_title(key: CurveKey) -> str:
    """`coco, yolox, AP`, for a column of the overview."""
    return ", ".join(part for part in (key.dataset, key.task, key.metric) if part)


def _estimated_in(frame: pd.DataFrame) -> frozenset[str]:
    """The codecs of a frame of BD-rates, means or rates whose own rates are estimated."""
    return frozenset(frame.loc[frame["rate_kind"] == ESTIMATED, "codec"])


def _mark_codecs(table: pd.DataFrame, estimated: frozenset[str]) -> pd.DataFrame:
    """A text table in which the names of codecs that estimate their rate say so."""
    return table.assign(Codec=[marked_name(name, estimated) for name in table["Codec"]]) if len(table) and estimated else table


def _drop_needless_model(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the column Model if each dataset and task has one model only."""
    needless = len(table) and table.groupby(["Dataset", "Task"])["Model"].nunique().max() == 1
    return table.drop(columns="Model") if needless else table


def _drop_empty_columns(table: pd.DataFrame, kept: Sequence[str] = ("Codec", "Value")) -> pd.DataFrame:
    """The table without columns in which every cell is empty, except those to keep."""
    return table.loc[:, (table != "").any() | table.columns.isin(kept)]
