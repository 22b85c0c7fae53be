"""What a paper takes from a run: tables as LaTeX, Markdown and CSV, figures as PNG, SVG and PDF, and their provenance.

scores, bdrate -> bundle/tables/*.md .tex .csv, bundle/figures/*.png .svg .pdf, bundle/provenance.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from icmbench.results.correlation import correlation_frame
from icmbench.results.published import reported_tables
from icmbench.results.report import write_figures
from icmbench.results.scores import Scores, estimated_codecs
from icmbench.results.tables import mean_frame, method_and_envelope, rate_frame
from icmbench.results.writers import write_csv, write_tables, write_text


def write_bundle(
    folder: str | Path,
    scores: Scores,
    bdrate: pd.DataFrame,
    provenance: Mapping[str, Any],
    primary: Mapping[str, str] | None = None,
    reported: pd.DataFrame | None = None,
    codec_analyses: Mapping[str, pd.DataFrame] | None = None,
) -> list[Path]:
    """Write the bundle of a run.

    Args:
        folder: where to write; it is made if it does not exist.
        scores: normalised scores, from `read_scores` or `normalise`.
        bdrate: as `bdrate_frame` returns it.
        provenance: facts of the run, recorded as they are, beside the SHA-256 of every file of the bundle.
        primary: from task label to the metric that stands for it; a task that it leaves out has its first metric in file order.
        reported: curves of papers, as `reported_curves` returns them. With these, the papers' tables that come with icmbench are
            written too, as tables/published.
        codec_analyses: frames of codecs' own analyses, by a name of `analyses.COLUMNS`.

    Returns:
        The paths of the files, provenance.json last.
    """
    root = Path(folder)
    for subfolder in (root / "tables", root / "figures"):
        subfolder.mkdir(parents=True, exist_ok=True)
    frames = {
        "scores": scores,
        "bdrate": bdrate,
        "rates": rate_frame(scores, method_and_envelope(bdrate)[1]),
        "means": mean_frame(bdrate),
        "correlation": correlation_frame(scores),
        **(codec_analyses or {}),
    }
    if reported is not None and len(reported):
        frames["published"] = reported
    paths = []
    for name, frame in frames.items():
        if len(frame):
            paths.append(root / "tables" / f"{name}.csv")
            write_csv(frame, paths[-1])
    paths += write_tables(scores, bdrate, root / "tables", primary, codec_analyses)
    if "published" in frames:
        paths += write_text(root / "tables" / "published", reported_tables())
    paths += write_figures(root / "figures", scores, bdrate, primary, reported, codec_analyses)
    hashes = {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}
    facts = {**provenance, "limited": bool(scores["limited"].any()), "files": hashes}
    if estimated := estimated_codecs(scores):
        facts["estimated_rates"] = sorted(estimated)
    text = json.dumps(facts, indent=1, sort_keys=True, default=str) + "\n"
    (root / "provenance.json").write_text(text, encoding="utf-8", newline="\n")
    return [*paths, root / "provenance.json"]
