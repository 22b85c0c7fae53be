"""What a paper takes from a run: tables as LaTeX, Markdown and CSV, figures as PNG, SVG and PDF, and where they come from.

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
from icmbench.results.scores import normalise
from icmbench.results.tables import declared, mean_frame, rate_frame
from icmbench.results.writers import write_csv, write_tables, write_text


def write_bundle(
    folder: str | Path,
    scores: pd.DataFrame,
    bdrate: pd.DataFrame,
    provenance: Mapping[str, Any],
    primary: Mapping[str, str] | None = None,
    reported: pd.DataFrame | None = None,
    own: Mapping[str, pd.DataFrame] | None = None,
) -> list[Path]:
    """Write a folder, made if need be; returns the paths, provenance.json last. The arguments are those of `write_report`.

    provenance: facts of the run, taken as they are; the SHA-256 of every file of the bundle is added to them.
    reported: with curves of papers, the papers' tables that come with icmbench are written too, as tables/published.
    """
    scores = normalise(scores)
    root = Path(folder)
    for place in (root / "tables", root / "figures"):
        place.mkdir(parents=True, exist_ok=True)
    frames = {
        "scores": scores,
        "bdrate": bdrate,
        "rates": rate_frame(scores, declared(bdrate)[1]),
        "means": mean_frame(bdrate),
        "correlation": correlation_frame(scores),
        **(own or {}),
    }
    if reported is not None and len(reported):
        frames["published"] = reported
    paths = []
    for name, frame in frames.items():
        if len(frame):
            paths.append(root / "tables" / f"{name}.csv")
            write_csv(frame, paths[-1])
    paths += write_tables(scores, bdrate, root / "tables", primary, own)
    if "published" in frames:
        paths += write_text(root / "tables" / "published", reported_tables())
    paths += write_figures(root / "figures", scores, bdrate, primary, reported, own)
    hashes = {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}
    paths.append(root / "provenance.json")
    facts = {**provenance, "limited": bool(scores["limited"].any()), "files": hashes}
    paths[-1].write_text(json.dumps(facts, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8", newline="\n")
    return paths
