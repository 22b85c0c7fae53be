"""Tables as files: CSV for programs, Markdown and LaTeX for people. Agreement never shares a table with labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from icmbench.results.scores import UNCOMPRESSED, Key, by_reference, normalise, primary_keys
from icmbench.results.tables import LIMITED, mean_frame, rate_frame, signed

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
    scores: pd.DataFrame, bdrate: pd.DataFrame, folder: str | Path, primary: Mapping[str, str] | None = None
) -> list[Path]:
    """bdrate.md, bdrate.tex, scores.md and scores.tex, in a folder that exists; returns their paths."""
    scores = normalise(scores)
    tables = {"bdrate": [*bdrate_tables(scores, bdrate, primary)], "scores": [*scores_tables(scores)]}
    warning = f"{LIMITED}. " if scores["limited"].any() else ""
    paths = []
    for name, named in tables.items():
        markdown = "\n".join(f"## {to_line(warning + title)}\n\n{to_markdown(frame)}\n" for title, frame in named)
        latex = "\n".join(to_latex(frame, warning + title) for title, frame in named)
        for suffix, text in ((".md", markdown), (".tex", latex)):
            path = Path(folder) / f"{name}{suffix}"
            path.write_text(text, encoding="utf-8", newline="\n")
            paths.append(path)
    return paths


def bdrate_tables(
    scores: pd.DataFrame, bdrate: pd.DataFrame, primary: Mapping[str, str] | None = None
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Titled tables of text: an overview of the primary metrics, every number with its note, and means, block by block."""
    means, rates = mean_frame(bdrate), rate_frame(scores)
    for reference, block in by_reference(primary_keys(scores, primary)):
        name = TITLES.get(reference, "Scores")
        anchor = bdrate["anchor"].iloc[0] if len(bdrate) else None
        if anchor is not None:
            yield f"BD-rate (%) against {anchor}. {name}", overview(bdrate, block)
        every = details(rates, bdrate, reference)
        if len(every):
            yield f"BD-rate, BD-quality and rate at shares of the uncompressed score. {name}", every
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
    """Text table of one reference: BD-rate, BD-quality, overlap and rates at shares of the ceiling, the anchor's included.

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
                "BD-quality": "" if delta is None else signed(delta["bd_quality"], 3),
                "Overlap": "" if delta is None or pd.isna(delta["overlap"]) else f"{delta['overlap']:.0%}",
                **{f"Rate at {row.share:.0%}": rate_text(row.rate, row.note) for row in group.itertuples()},
                "Note": "" if delta is None else delta["note"],
            }
        )
    frame = pd.DataFrame(rows)
    if len(frame) and frame.groupby(["Dataset", "Task"])["Model"].nunique().max() == 1:
        frame = frame.drop(columns="Model")  # dataset and task tell
    return frame if len(bdrate) else frame.drop(columns=["BD-rate %", "BD-quality", "Overlap", "Note"], errors="ignore")


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the columns in which nothing stands."""
    return table.loc[:, (table != "").any() | table.columns.isin(["Codec", "Value"])]


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
    table["Unit"] = rows["unit"]
    table["Limited"] = [LIMITED if limited else "" for limited in rows["limited"]]
    table["bpp"] = [
        "" if codec == UNCOMPRESSED else rate_text(bpp, "") for codec, bpp in zip(rows["codec"], rows["bpp"], strict=True)
    ]
    for column in ("expected", "scored", "empty", "failed"):
        table[column.capitalize()] = [number(value) for value in rows[column]]
    table["Realisation"] = rows["realisation"]
    return _filled(table)


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
