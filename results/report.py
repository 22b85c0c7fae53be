"""report/index.html: everything a run says, in one file that opens without a server or a network.

    scores, bdrate -> tables as text, curves as inline SVG -> report.html.j2

The same scores give the same bytes. Everything that comes from the run is escaped, and the page allows itself no network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from icmbench.results import curves
from icmbench.results.figures import extra_figures
from icmbench.results.published import with_reported
from icmbench.results.scores import LAYER, UNCOMPRESSED, Key, by_reference, codecs, keys, normalise, primary_keys
from icmbench.results.tables import LIMITED, declared, mean_frame, rate_frame, signed
from icmbench.results.writers import TITLES, checks, details, extra_tables, means_table, overview, scores_table, write_tables

TEXT = (
    "Codec", "Point", "Dataset", "Task", "Model", "Metric", "Unit", "Realisation", "Datasets", "Stage", "Part", "Closest layer",
)  # fmt: skip  # all else lines up on the right
LEADS = {
    "labels": "Task models on the reconstructions, scored against the datasets' labels.",
    "source": "Reconstructions compared with the images that were coded.",
    "original": "Task models on the reconstructions, scored against what the same models find on the uncompressed images. "
    "This is agreement, not accuracy: do not compare it with scores against labels.",
}

ENVELOPES = {
    "pareto": "the Pareto envelope of its points: one that costs more and is no better is dropped",
    "isotonic": "the closest rising curve: points that dip are moved",
    "error": "its points as they are: one that dips refuses the number",
}


def write_report(
    run_folder: str | Path,
    scores: pd.DataFrame,
    bdrate: pd.DataFrame,
    meta: Mapping[str, Any] | None = None,
    reported: pd.DataFrame | None = None,
    own: Mapping[str, pd.DataFrame] | None = None,
    pictures: Mapping[str, Any] | None = None,
) -> Path:
    """Write report/index.html, the curves as PNG and SVG, and the tables as Markdown and LaTeX; returns the page's path.

    scores, bdrate: as of `normalise` and `bdrate_frame`. meta, every key optional: `title`; `environment`, a JSON-like
    mapping, else the run folder's environment.json; `primary`, task to metric, else each task's first metric.
    reported: curves of papers, as of `reported_curves`: dashed in the figures, in no table. own: frames of codecs' own analyses,
    by name as of `analyses.COLUMNS`. pictures: `entries`, as of
    `pictures.entry`, and `left_out`, why some are not shown. Raises ScoresError for scores that are malformed.
    """
    meta = meta or {}
    scores = normalise(scores)
    folder = Path(run_folder) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    primary = meta.get("primary")
    drawn = with_reported(scores, reported)
    looks = curves.styles(codecs(drawn))
    chosen = primary_keys(scores, primary)
    names = _stems(chosen)
    method, envelope = declared(bdrate)
    rates = rate_frame(scores, envelope)
    write_figures(folder, scores, bdrate, primary, reported, own, (".png", ".svg"))
    write_tables(scores, bdrate, folder, primary, own)
    on_page = extra_figures(_shown_rows(scores, chosen), bdrate, own, curves.PAGE)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=curves.shown(str(meta.get("title") or Path(run_folder).name)),
        anchor=str(bdrate["anchor"].iloc[0]) if len(bdrate) else None,
        method=method,
        envelope=ENVELOPES[envelope],
        limited=LIMITED if scores["limited"].any() else "",
        facts=_facts(scores),
        codecs=[(k, name, Markup(curves.swatch(look))) for k, (name, look) in enumerate(looks.items())],
        blocks=[_block(scores, drawn, bdrate, rates, reference, keys, looks, names) for reference, keys in by_reference(chosen)],
        more=[
            {"title": title, "stem": name, "svg": Markup(curves.page_svg(figure, name, title))} for name, title, figure in on_page
        ],
        reported=len(drawn) > len(scores),
        tables=[(title, _table(frame)) for _, title, frame in extra_tables(scores, own)],
        pictures=_json((pictures or {}).get("entries")),
        left_out=(pictures or {}).get("left_out", []),
        gaps=_gaps(bdrate),
        environment=_environment(meta.get("environment"), Path(run_folder)),
        rows=len(scores),
        dash=signed(None),
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def write_figures(
    folder: Path,
    scores: pd.DataFrame,
    bdrate: pd.DataFrame,
    primary: Mapping[str, str] | None = None,
    reported: pd.DataFrame | None = None,
    own: Mapping[str, pd.DataFrame] | None = None,
    formats: Sequence[str] = (".png", ".svg", ".pdf"),
) -> list[Path]:
    """Every figure that the data allow, in a folder that exists; the arguments are those of `write_report`."""
    scores = normalise(scores)
    drawn = with_reported(scores, reported)
    looks = curves.styles(codecs(drawn))
    chosen = primary_keys(scores, primary)
    paths = []
    for key, name in _stems(chosen).items():
        paths += curves.save(curves.draw(drawn, key, looks), folder / name, formats)
    for name, _, figure in extra_figures(_shown_rows(scores, chosen), bdrate, own):
        paths += curves.save(figure, folder / name, formats)
    return paths


def _json(value: Any) -> Markup:
    """JSON that is safe within a script element; empty without content."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")) if value else ""
    return Markup(text.replace("<", r"\u003c").replace("\u2028", r"\u2028").replace("\u2029", r"\u2029"))


def _block(
    scores: pd.DataFrame,
    drawn: pd.DataFrame,
    bdrate: pd.DataFrame,
    rates: pd.DataFrame,
    reference: str,
    keys: list[Key],
    looks: Mapping[str, curves.Style],
    names: Mapping[Key, str],
) -> dict[str, Any]:
    """All that the page shows of one reference: agreement and accuracy are different blocks."""
    means = mean_frame(bdrate)
    every = details(rates, bdrate, reference)
    against = checks(bdrate, reference)
    glance = overview(bdrate, keys)
    return {
        "id": reference or "scores",
        "title": TITLES.get(reference, "Scores"),
        "lead": LEADS.get(reference, ""),
        "overview": _table(glance, percent=glance.columns[1:]),
        "details": _table(every, _is_main(every, keys), ["BD-rate %"]),
        "checks": _table(against, _is_main(against, keys), [*({"BD-rate %", "PCHIP", "Cubic", "Akima"} & {*against.columns})]),
        "means": _table(means_table(means[means["reference"] == reference]), percent=["Mean BD-rate %"]),
        "figures": [
            {"title": curves.title(key), "stem": names[key], "svg": Markup(curves.inline_svg(drawn, key, looks))} for key in keys
        ],
        "scores": _table(scores_table(scores[scores["reference"] == reference])),
    }


def _shown_rows(scores: pd.DataFrame, chosen: list[Key]) -> pd.DataFrame:
    """The rows of primary metrics and of layers."""
    wanted = [key.rows(scores) for key in keys(scores) if key in chosen or LAYER.fullmatch(key.metric)]
    return pd.concat([scores.iloc[:0], *wanted])


def _is_main(table: pd.DataFrame, keys: list[Key]) -> list[bool]:
    main = {(key.dataset, key.task, key.metric) for key in keys}
    return [row in main for row in table[["Dataset", "Task", "Metric"]].itertuples(index=False, name=None)] if len(table) else []


def _table(frame: pd.DataFrame, main: Sequence[bool] = (), percent: Sequence[str] = ()) -> dict[str, Any] | None:
    """A text frame for the template; None if it is empty.

    main: which rows stay when only primary metrics are shown. percent: columns shaded as savings and costs.
    """
    if not len(frame):
        return None
    kinds = {**dict.fromkeys(TEXT, "text"), "Note": "note", "Limited": "mark", **dict.fromkeys(percent, "percent")}
    rows = [[str(cell) for cell in row] for row in frame.itertuples(index=False)]
    return {
        "columns": [(name, kinds.get(name, "number")) for name in frame.columns],
        "rows": [*zip(rows, main or [True] * len(rows), strict=True)],
    }


def _facts(scores: pd.DataFrame) -> list[tuple[str, str]]:
    """What the run covers, in a few words each."""
    images = scores.groupby("dataset", sort=False)["expected"].max()
    datasets = [name + (f" ({count:.0f} images)" if count == count else "") for name, count in images.items() if name]
    rates = scores.loc[scores["codec"] != UNCOMPRESSED, "bpp"]
    return [
        ("Codecs", ", ".join(codecs(scores))),
        ("Datasets", ", ".join(datasets)),
        ("Tasks", ", ".join(filter(None, scores["task"].drop_duplicates()))),
        ("Rates", f"{rates.min():.3g} to {rates.max():.3g} bpp" if rates.notna().any() else ""),
    ]


def _gaps(bdrate: pd.DataFrame) -> list[dict[str, str]]:
    """The undefined deltas: codec, reason, and all that it holds for."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in bdrate[bdrate["bd_rate_percent"].isna() | bdrate["bd_quality"].isna()].itertuples():
        why = "; ".join(part for part in str(row.note).split("; ") if "undefined: " in part)
        where = " ".join(filter(None, (row.dataset, row.task, row.metric, "(agreement)" if row.reference == "original" else "")))
        found.setdefault((str(row.codec), why), []).append(where)
    return [{"codec": codec, "why": why, "where": ", ".join(where)} for (codec, why), where in found.items()]


def _stems(keys: list[Key]) -> dict[Key, str]:
    """A file name for each key; those that would meet, also where case does not count, are numbered."""
    names: dict[Key, str] = {}
    for key in keys:
        name, taken = curves.stem(key), {stem.lower() for stem in names.values()}
        number = next(n for n in range(1, len(keys) + 1) if (name if n == 1 else f"{name}-{n}").lower() not in taken)
        names[key] = name if number == 1 else f"{name}-{number}"
    return names


def _environment(given: Mapping[str, Any] | None, run_folder: Path) -> list[tuple[str, str]]:
    """Each top-level key of the environment with its value as text."""
    path = run_folder / "environment.json"
    if given is None:
        given = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [
        (str(name), value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False, default=str))
        for name, value in given.items()
    ]
