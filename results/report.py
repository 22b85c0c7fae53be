"""report/index.html: everything a run says, in one file that opens without a server or a network.

    scores, bdrate -> tables as text, curves as inline SVG -> report.html.j2

Equal scores give equal bytes. Everything that comes from the run is escaped, and the page allows itself no network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from icmbench.results import curves
from icmbench.results.columns import ESTIMATED
from icmbench.results.figures import extra_figures
from icmbench.results.fonts import printable
from icmbench.results.json_files import parse_json
from icmbench.results.plain_files import read_plain_file
from icmbench.results.published import with_reported
from icmbench.results.scores import (
    LAYER,
    UNCOMPRESSED,
    CurveKey,
    Scores,
    codec_names,
    curve_keys,
    estimated_codecs,
    group_by_reference,
    marked_name,
    primary_keys,
)
from icmbench.results.tables import LIMITED, mean_frame, method_and_envelope, rate_frame, signed_text
from icmbench.results.writers import (
    TITLES,
    checks_table,
    details_table,
    extra_tables,
    means_table,
    overview_table,
    scores_table,
    write_tables,
)

# Columns of text, lined up on the left. All others are lined up on the right.
TEXT_COLUMNS = (
    "Codec", "Point", "Dataset", "Task", "Model", "Metric", "Unit", "Realisation", "Datasets", "Stage", "Part", "Closest layer",
)  # fmt: skip
# The paragraph that opens the section of a reference.
LEADS = {
    "labels": "Task models on the reconstructions, scored against the datasets' labels.",
    "source": "Reconstructions compared with the images that were coded.",
    "original": "Task models on the reconstructions, scored against what the same models find on the uncompressed images. "
    "This is agreement, not accuracy: do not compare it with scores against labels.",
}
# How the page describes each envelope.
ENVELOPES = {
    "pareto": "the Pareto envelope of its points: one that costs more and is no better is dropped",
    "isotonic": "the closest rising curve: points that dip are moved",
    "error": "its points as they are: one that dips refuses the number",
}


def write_report(
    run_folder: str | Path,
    scores: Scores,
    bdrate: pd.DataFrame,
    meta: Mapping[str, Any] | None = None,
    reported: pd.DataFrame | None = None,
    codec_analyses: Mapping[str, pd.DataFrame] | None = None,
    pictures: Mapping[str, Any] | None = None,
) -> Path:
    """Write report/index.html, the curves as PNG and SVG, and the tables as Markdown and LaTeX.

    Args:
        run_folder: the folder that gets the folder `report`.
        scores: normalised scores, from `read_scores` or `normalise`.
        bdrate: as `bdrate_frame` returns it.
        meta: every key is optional: `title`, by default the name of the folder; `environment`, a JSON-like mapping, by default the
            folder's environment.json; `primary`, from task label to the metric that stands for it, by default each task's first.
        reported: curves of papers, as `reported_curves` returns them: dashed in the figures, in no table.
        codec_analyses: frames of codecs' own analyses, by a name of `analyses.COLUMNS`.
        pictures: `entries`, as `pictures.image_entry` returns them, and `left_out`, sentences on why some pictures are missing.

    Returns:
        The path of the page.

    Raises:
        ScoresError: a metric of `primary` or a column of an analysis is missing.
    """
    meta, pictures = meta or {}, pictures or {}
    folder = Path(run_folder) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    primary = meta.get("primary")
    write_figures(folder, scores, bdrate, primary, reported, codec_analyses, (".png", ".svg"))
    write_tables(scores, bdrate, folder, primary, codec_analyses)
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=printable(str(meta.get("title") or Path(run_folder).name)),
        **_results(scores, bdrate, primary, reported, codec_analyses),
        pictures=_script_json(pictures.get("entries")),
        left_out=pictures.get("left_out", []),
        environment=_environment(meta.get("environment"), Path(run_folder)),
    )
    path = folder / "index.html"
    # Facts of the environment, such as arguments of the command, may hold half of a character, which no file can.
    path.write_text(page, encoding="utf-8", newline="\n", errors="replace")
    return path


def write_figures(
    folder: Path,
    scores: Scores,
    bdrate: pd.DataFrame,
    primary: Mapping[str, str] | None = None,
    reported: pd.DataFrame | None = None,
    codec_analyses: Mapping[str, pd.DataFrame] | None = None,
    formats: Sequence[str] = (".png", ".svg", ".pdf"),
) -> list[Path]:
    """Write every figure that the data allow.

    Args:
        folder: a folder that exists.
        scores: normalised scores, from `read_scores` or `normalise`.
        bdrate: as `bdrate_frame` returns it.
        primary: from task label to the metric that stands for it; a task that it leaves out has its first metric in file order.
        reported: curves of papers, as `reported_curves` returns them, to be drawn dashed.
        codec_analyses: frames of codecs' own analyses, by a name of `analyses.COLUMNS`.
        formats: endings among .png, .svg and .pdf.

    Returns:
        The paths of the files.
    """
    drawn = with_reported(scores, reported)
    looks = curves.codec_styles(codec_names(drawn), estimated_codecs(drawn))
    keys = primary_keys(scores, primary)
    paths = []
    for key, stem in _file_stems(keys).items():
        paths += curves.save_figure(curves.draw_curves(drawn, key, looks), folder / stem, formats)
    for stem, _, figure in extra_figures(_rows_to_draw(scores, keys), bdrate, codec_analyses):
        paths += curves.save_figure(figure, folder / stem, formats)
    return paths


def _results(
    scores: Scores,
    bdrate: pd.DataFrame,
    primary: Mapping[str, str] | None,
    reported: pd.DataFrame | None,
    codec_analyses: Mapping[str, pd.DataFrame] | None,
) -> dict[str, Any]:
    """What the template shows of scores and BD-rates; the arguments are those of `write_figures`."""
    drawn = with_reported(scores, reported)
    estimated = estimated_codecs(drawn)
    looks = curves.codec_styles(codec_names(drawn), estimated)
    keys = primary_keys(scores, primary)
    stems = _file_stems(keys)
    method, envelope = method_and_envelope(bdrate)
    rates = rate_frame(scores, envelope)
    figures = extra_figures(_rows_to_draw(scores, keys), bdrate, codec_analyses, curves.PAGE)
    return {
        "anchor": marked_name(str(bdrate["anchor"].iloc[0]), estimated) if len(bdrate) else None,
        "method": method,
        "envelope": ENVELOPES[envelope],
        "limited": LIMITED if scores["limited"].any() else "",
        "facts": _facts(scores),
        "codecs": [
            (k, marked_name(name, estimated), Markup(curves.swatch_svg(look))) for k, (name, look) in enumerate(looks.items())
        ],
        "estimated": bool(estimated),
        "blocks": [
            _section(scores, bdrate, rates, reference, section_keys)
            | {"figures": [_curve_figure(drawn, key, looks, stems[key]) for key in section_keys]}
            for reference, section_keys in group_by_reference(keys)
        ],
        "more": [
            {"title": title, "stem": stem, "svg": Markup(curves.page_svg(figure, stem, title))} for stem, title, figure in figures
        ],
        "reported": len(drawn) > len(scores),
        "tables": [(title, _grid(table)) for _, title, table in extra_tables(scores, codec_analyses)],
        "gaps": _gaps(bdrate),
        "rows": len(scores),
        "dash": signed_text(None),
    }


def _section(scores: Scores, bdrate: pd.DataFrame, rates: pd.DataFrame, reference: str, keys: list[CurveKey]) -> dict[str, Any]:
    """The texts and tables of one reference: agreement and accuracy have sections of their own."""
    means = mean_frame(bdrate)
    details = details_table(rates, bdrate, reference)
    checks = checks_table(bdrate, reference)
    overview = overview_table(bdrate, keys)
    return {
        "id": reference or "scores",
        "title": TITLES.get(reference, "Scores"),
        "lead": LEADS.get(reference, ""),
        "overview": _grid(overview, percent=overview.columns[1:]),
        "details": _grid(details, _is_primary(details, keys), ["BD-rate %"]),
        "checks": _grid(checks, _is_primary(checks, keys), [*({"BD-rate %", "PCHIP", "Cubic", "Akima"} & {*checks.columns})]),
        "means": _grid(means_table(means[means["reference"] == reference]), percent=["Mean BD-rate %"]),
        "scores": _grid(scores_table(scores[scores["reference"] == reference])),
    }


def _curve_figure(drawn: Scores, key: CurveKey, looks: Mapping[str, curves.Style], stem: str) -> dict[str, Any]:
    return {"title": curves.figure_title(key), "stem": stem, "svg": Markup(curves.curves_svg(drawn, key, looks))}


def _script_json(value: Any) -> Markup:
    """JSON that is safe within a script element; empty without content."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")) if value else ""
    return Markup(text.replace("<", r"\u003c").replace("\u2028", r"\u2028").replace("\u2029", r"\u2029"))


def _rows_to_draw(scores: Scores, primary: list[CurveKey]) -> Scores:
    """The rows of primary metrics and of layers."""
    rows = [key.rows(scores) for key in curve_keys(scores) if key in primary or LAYER.fullmatch(key.metric)]
    return pd.concat([scores.iloc[:0], *rows])


def _is_primary(table: pd.DataFrame, keys: list[CurveKey]) -> list[bool]:
    """Which rows of a text table belong to one of the keys."""
    primary = {(key.dataset, key.task, key.metric) for key in keys}
    rows = table[["Dataset", "Task", "Metric"]].itertuples(index=False, name=None) if len(table) else ()
    return [row in primary for row in rows]


def _grid(table: pd.DataFrame, main: Sequence[bool] = (), percent: Sequence[str] = ()) -> dict[str, Any] | None:
    """A text table for the template; None if it is empty.

    Args:
        table: the text table.
        main: which rows stay when only primary metrics are shown; all of them if it is empty.
        percent: columns to be shaded as savings and costs.
    """
    if not len(table):
        return None
    kinds = {**dict.fromkeys(TEXT_COLUMNS, "text"), "Note": "note", "Limited": "mark", **dict.fromkeys(percent, "percent")}
    rows = [[str(cell) for cell in row] for row in table.itertuples(index=False)]
    return {
        "columns": [(name, kinds.get(name, "number")) for name in table.columns],
        "rows": [*zip(rows, main or [True] * len(rows), strict=True)],
    }


def _facts(scores: Scores) -> list[tuple[str, str]]:
    """What the run covers: (name, a few words)."""
    images = scores.groupby("dataset", sort=False)["expected"].max()
    datasets = [name + (f" ({count:.0f} images)" if pd.notna(count) else "") for name, count in images.items() if name]
    rates = scores.loc[scores["codec"] != UNCOMPRESSED, "bpp"]
    estimated = estimated_codecs(scores)
    return [
        ("Codecs", ", ".join(marked_name(name, estimated) for name in codec_names(scores))),
        ("Datasets", ", ".join(datasets)),
        ("Tasks", ", ".join(filter(None, scores["task"].drop_duplicates()))),
        ("Rates", f"{rates.min():.3g} to {rates.max():.3g} bpp" if rates.notna().any() else ""),
    ]


def _gaps(bdrate: pd.DataFrame) -> list[dict[str, str]]:
    """The undefined deltas: codec, reason, and all tasks and metrics that the reason holds for."""
    gaps: dict[tuple[str, str], list[str]] = {}
    for row in bdrate[bdrate["bd_rate_percent"].isna() | bdrate["bd_quality"].isna()].itertuples():
        why = "; ".join(part for part in str(row.note).split("; ") if "undefined: " in part)
        where = " ".join(filter(None, (row.dataset, row.task, row.metric, "(agreement)" if row.reference == "original" else "")))
        name = marked_name(str(row.codec), {row.codec} if row.rate_kind == ESTIMATED else ())
        gaps.setdefault((name, why), []).append(where)
    return [{"codec": codec, "why": why, "where": ", ".join(where)} for (codec, why), where in gaps.items()]


def _file_stems(keys: list[CurveKey]) -> dict[CurveKey, str]:
    """A file name for each key. Names that differ at most in case are numbered, for file systems that ignore case."""
    stems: dict[CurveKey, str] = {}
    for key in keys:
        stem, taken = curves.file_stem(key), {other.lower() for other in stems.values()}
        number = next(n for n in range(1, len(keys) + 1) if (stem if n == 1 else f"{stem}-{n}").lower() not in taken)
        stems[key] = stem if number == 1 else f"{stem}-{number}"
    return stems


def _environment(environment: Mapping[str, Any] | None, run_folder: Path) -> list[tuple[str, str]]:
    """Each top-level key of the environment with its value as text; None stands for the folder's environment.json."""
    path = run_folder / "environment.json"
    if environment is None:
        try:
            environment = parse_json(read_plain_file(path)) if path.exists() else {}
        except (OSError, ValueError) as error:
            environment = {path.name: f"cannot be read ({' '.join(str(error).split())})"}
        if not isinstance(environment, dict):
            environment = {path.name: "is damaged: it is no JSON object"}
    return [
        (str(name), value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False, default=str))
        for name, value in environment.items()
    ]
