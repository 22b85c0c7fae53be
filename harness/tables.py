"""The files of a run folder that are derived from its scores."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from icmbench.harness.errors import UserError
from icmbench.results.report import write_report
from icmbench.results.tables import bdrate_frame


def derive(folder: Path, scores: pd.DataFrame, anchor: str | None, title: str) -> tuple[pd.DataFrame, Path]:
    """Write bdrate.csv and report/; return the BD frame and the path of the report."""
    if anchor is not None and anchor not in set(scores["codec"]):
        raise UserError(f"anchor: no codec {anchor!r} in {folder / 'scores.csv'}")
    bdrate = bdrate_frame(scores, anchor)
    bdrate.to_csv(folder / "bdrate.csv", index=False)
    return bdrate, write_report(folder, scores, bdrate, {"title": title})


def recorded(folder: Path) -> tuple[pd.DataFrame, str | None, str]:
    """Scores, anchor and name of a finished run."""
    try:
        experiment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["experiment"]
        scores = pd.read_csv(folder / "scores.csv", keep_default_na=True, na_values=[""])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not the folder of a finished run ({error}); give the --out of `icmbench run`") from None
    return scores, experiment["anchor"], experiment["name"]
