"""The files of a run folder that are derived from its scores."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from icmbench.harness.errors import UserError
from icmbench.results.report import write_report
from icmbench.results.scores import read_scores
from icmbench.results.tables import bdrate_frame
from icmbench.results.writers import write_csv


def derive(folder: Path, scores: pd.DataFrame, anchor: str | None, title: str) -> tuple[pd.DataFrame, Path]:
    """Write bdrate.csv and report/; return the BD frame and the path of the report. Raises ScoresError for an unknown anchor."""
    bdrate = bdrate_frame(scores, anchor)
    write_csv(bdrate, folder / "bdrate.csv")
    return bdrate, write_report(folder, scores, bdrate, {"title": title})


def recorded(folder: Path) -> tuple[pd.DataFrame, str | None, str]:
    """Scores, anchor and name of a finished run."""
    try:
        experiment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["experiment"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not the folder of a finished run ({error}); give the --out of `icmbench run`") from None
    return read_scores(folder / "scores.csv"), experiment["anchor"], experiment["name"]
