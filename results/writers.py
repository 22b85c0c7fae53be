"""Tables as files: CSV for programs, Markdown and LaTeX for people. Agreement never shares a table with labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from icmbench.results.analyses import complexity_table
from icmbench.results.correlation import correlation_frame, correlation_table
from icmbench.results.scores import UNCOMPRESSED, Key, by_reference, normalise, primary_keys
from icmbench.results.tables import LIMITED, declared, mean_frame, rate_frame, share_text, signed

TITLES = {
    "labels": "Accuracy against labels",
    "source": "Fidelity to the source images",
    "original": "Agreement with the predictions on the originals",
}
_TEX = str.maketrans(
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
    """A scores or BD-rate frame with all digits; what is undefined is left empty."""
    frame.to_csv(path, index=False, lineterminator="\n")


def write_tables(
    scores: pd.DataFrame,
    bdrate: pd.DataFrame,
    folder: str | Path,
    primary: Mapping[str, str] | None = None,
    own: Mapping[str, pd.DataFrame] | None = None,
) -> list[Path]:
    """bdrate, scores and what else there is (correlation, complexity), each as .md and .tex, in a folder that exists.

    own: frames of codecs' own analyses, by name as of `analyses.COLUMNS`. Returns their paths.
    """
    scores = normalise(scores)
    tables = {"bdrate": [*bdrate_tables(scores, bdrate, primary)], "scores": [*scores_tables(scores)]}
    for name, title, frame in extra_tables(scores, own):
        tables[name] = [(title, frame)]
    warning = f"{LIMITED}. " if scores["limited"].any() else ""
    return [path for name, named in tables.items() for path in write_text(Path(folder) / name, named, warning)]


def write_text(stem: Path, named: Iterable[tuple[str, pd.DataFrame]], warning: str = "") -> list[Path]:
    """`stem`.md and .tex of titled text tables; returns their paths."""
    named = [*named]
    texts = {
        ".md": "\n".join(f"## {to_line(warning + title)}\n\n{to_markdown(frame)}\n" for title, frame in named),
        ".tex": "\n".join(to_latex(frame, warning + title) for title, frame in named),
    }
    paths = []
    for suffix, text in texts.items():
        paths.append(stem.with_name(stem.name + suffix))
        paths[-1].write_text(text, encoding="utf-8", newline="\n")
    return paths


def extra_tables(scores: pd.DataFrame, own: Mapping[str, pd.DataFrame] | None) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(file stem, title, text table) of what goes with some runs only."""
    related = correlation_frame(scores)
    if len(related):
        yield "correlation", "Feature difference against task drop, over the rate points", correlation_table(related)
    if own and "complexity" in own:
        yield "complexity", "Parameters and multiply-accumulates", complexity_table(own["complexity"])


def bdrate_tables(
    scores: pd.DataFrame, bdrate: pd.DataFrame, primary: Mapping[str, str] | None = None
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Titled tables of text: an overview of the primary metrics, every number with its note, and means, block by block."""
    means, rates = mean_frame(bdrate), rate_frame(scores, declared(bdrate)[1])
    for reference, block in by_reference(primary_keys(scores, primary)):
        name = TITLES.get(reference, "Scores")
        anchor = bdrate["anchor"].iloc[0] if len(bdrate) else None
        if anchor is not None:
            yield f"BD-rate (%) against {anchor}. {name}", overview(bdrate, block)
        for title, table in (
            ("BD-rate, BD-quality and rate at shares of the uncompressed score", details(rates, bdrate, reference)),
            ("What the BD-rates rest on", checks(bdrate, reference)),
        ):
            if len(table):
                yield f"{title}. {name}", table
        mine = means_table(means[means["reference"] == reference])
        if len(mine):
            yield f"BD-rate (%) averaged over datasets in log-rate. {name}", mine


def means_table(means: pd.DataFrame) -> pd.DataFrame:
    """Text table of BD-rates averaged over datasets."""
    table = means[["codec", "task", "model", "metric"]].set_axis(["Codec", "Task", "Model", "Metric"], axis=1)
    percents = means["bd_rate_percent"].map(signed)
    return _filled(table.assign(**{"Mean BD-rate %": percents, "Datasets": means["datasets"], "Note": means["note"]}))


def overview(bdrate: pd.DataFrame, columns: list[Key]) -> pd.DataFrame:
    """Text table of BD-rates in percent: a row for each codec, a column for each key."""
    codecs = bdrate["codec"].drop_duplicates()
    table = pd.DataFrame({"Codec": codecs.tolist()})
    for key in columns:
        values = key.rows(bdrate).set_index("codec")["bd_rate_percent"]
        table[label(key)] = [signed(values.get(codec)) for codec in codecs]
    return table


def details(rates: pd.DataFrame, bdrate: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Text table of one reference: BD-rate, BD-quality and rates at shares of the ceiling, the anchor's included.

    rates: as of `rate_frame`, which has a row for every codec.
    """
    identity = ["codec", "dataset", "task", "model", "metric"]
    deltas = bdrate[bdrate["reference"] == reference].set_index(identity)
    rows = []
    for where, group in rates[rates["reference"] == reference].groupby(identity, sort=False):
        delta = deltas.loc[where] if where in deltas.index else None
        rows.append(
            {
                **dict(zip(("Codec", "Dataset", "Task", "Model", "Metric"), where, strict=True)),
                "BD-rate %": "anchor" if delta is None else signed(delta["bd_rate_percent"]),
                "95% interval": "" if delta is None else span(delta["low"], delta["high"]),
                "BD-quality": "" if delta is None else signed(delta["bd_quality"], 3),
                **{f"Rate at {row.share:.0%}": rate_text(row.rate, row.note) for row in group.itertuples()},
                "Note": "" if delta is None else delta["note"],
            }
        )
    frame = _named(pd.DataFrame(rows))
    unused = ["95% interval"] if not bdrate["low"].notna().any() else []
    unused += [] if len(bdrate) else ["BD-rate %", "BD-quality", "Note"]
    return frame.drop(columns=unused, errors="ignore")


def checks(bdrate: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Text table of one reference: other interpolations, what the two curves share, and how many points lie there."""
    rows = [
        {
            **{name: row[name.lower()] for name in ("Codec", "Dataset", "Task", "Model", "Metric")},
            "BD-rate %": signed(row["bd_rate_percent"]),
            **{name: percent_text(row[name.lower()]) for name in ("PCHIP", "Cubic", "Akima")},
            "Spread": "" if pd.isna(row["spread"]) else f"{row['spread']:.1f}",
            "Overlap": "" if pd.isna(row["overlap"]) else f"{row['overlap']:.0%}",
            "Shared interval": "" if pd.isna(row["interval_low"]) else f"{row['interval_low']:.4g} to {row['interval_high']:.4g}",
            **{
                f"Points inside, {curve}": f"{row[f'{curve}_inside']:.0f} of {row[f'{curve}_points']:.0f}"
                for curve in ("anchor", "test")
            },
            "BD-quality, 95% interval": span(row["quality_low"], row["quality_high"], 3),
            "Undefined replicates": "" if pd.isna(row["undefined"]) else share_text(row["undefined"]),
        }
        for row in bdrate[bdrate["reference"] == reference].to_dict("records")
    ]
    frame = _named(pd.DataFrame(rows))
    main = next((name for name in ("PCHIP", "Cubic", "Akima") if len(frame) and (frame[name] == frame["BD-rate %"]).all()), "")
    return _filled(frame.drop(columns=main, errors="ignore"), ("Codec", "Dataset", "Task", "Metric")) if len(frame) else frame


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the model where dataset and task tell it."""
    alone = len(frame) and frame.groupby(["Dataset", "Task"])["Model"].nunique().max() == 1
    return frame.drop(columns="Model") if alone else frame


def _filled(table: pd.DataFrame, kept: Sequence[str] = ("Codec", "Value")) -> pd.DataFrame:
    """The table without the columns in which nothing stands, but those to be kept."""
    return table.loc[:, (table != "").any() | table.columns.isin(kept)]


def scores_tables(scores: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Titled text tables of all scores with their counts, block by block."""
    for reference in dict(by_reference(primary_keys(scores))):
        rows = scores[scores["reference"] == reference]
        name = TITLES.get(reference, "Scores")
        yield name, scores_table(rows)


def scores_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Text table of scores rows: value, rate, and how many images were expected, scored, empty and failed."""
    texts = {"Codec": "codec", "Point": "point", "Dataset": "dataset", "Task": "task", "Model": "model", "Metric": "metric"}
    table = rows[[*texts.values()]].set_axis([*texts], axis=1)
    table["Value"] = [number(value) for value in rows["value"]]
    bars = zip(rows["low"], rows["high"], strict=True)
    table["95% interval"] = ["" if pd.isna(low) else f"{number(low)} to {number(high)}" for low, high in bars]
    table["Undefined replicates"] = ["" if pd.isna(share) or not share else share_text(share) for share in rows["undefined"]]
    table["Unit"] = rows["unit"]
    table["Limited"] = [LIMITED if limited else "" for limited in rows["limited"]]
    table["bpp"] = [
        "" if codec == UNCOMPRESSED else rate_text(bpp, "") for codec, bpp in zip(rows["codec"], rows["bpp"], strict=True)
    ]
    for column in ("expected", "scored", "empty", "failed"):
        table[column.capitalize()] = [number(value) for value in rows[column]]
    table["Realisation"] = rows["realisation"]
    return _filled(table)


def span(low: float, high: float, digits: int = 1) -> str:
    """`-12.3 to -9.8`; empty where there is no interval."""
    return "" if pd.isna(low) or pd.isna(high) else f"{signed(low, digits)} to {signed(high, digits)}"


def percent_text(percent: float) -> str:
    """A BD-rate by another interpolation: huge ones, which mean that it fails, in three digits."""
    return "n/a" if pd.isna(percent) else f"{percent:+.3g}" if abs(percent) >= 1000 else signed(percent)


def label(key: Key) -> str:
    """`coco, yolox, AP`: what tells a column of the overview from the others."""
    return ", ".join(part for part in (key.dataset, key.task, key.metric) if part)


def number(value: float) -> str:
    """At least four significant digits, counts in full; empty where there is no number."""
    if pd.isna(value):
        return ""
    return (
        f"{value:.0f}" if value == round(value, 9) and float(value).is_integer() else f"{value:.{4 if abs(value) < 1000 else 6}g}"
    )


def rate_text(rate: float, note: str) -> str:
    """A rate, or in two words why there is none."""
    if pd.isna(rate):
        return note.split(":")[0].split(",")[0]
    return f"{rate:.4f}" if rate < 10 else number(rate)


def to_line(text: object) -> str:
    """Text for one Markdown table cell: a single line in which nothing is markup."""
    escaped = re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(str(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_markdown(frame: pd.DataFrame) -> str:
    """A Markdown table of a text frame."""
    safe = frame.rename(columns=to_line).map(to_line)
    return safe.to_markdown(index=False, disable_numparse=True)


def to_tex(text: object) -> str:
    """Text for LaTeX: a single line in which nothing is a command."""
    return " ".join(str(text).split()).translate(_TEX)


def to_latex(frame: pd.DataFrame, caption: str) -> str:
    """A LaTeX table (packages booktabs and longtable) of a text frame."""
    align = "".join("p{0.3\\linewidth}" if column in ("Note", "Datasets") else "l" for column in frame.columns)
    safe = frame.rename(columns=to_tex).map(to_tex)
    return safe.to_latex(index=False, escape=False, longtable=True, caption=to_tex(caption), column_format=align)
