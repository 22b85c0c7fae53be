"""The files of a run folder that are derived from its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from icmbench.harness.errors import UserError
from icmbench.results.report import write_report
from icmbench.results.scores import read_scores
from icmbench.results.tables import bdrate_frame
from icmbench.results.writers import write_csv


@dataclass(frozen=True)
class Heading:
    """What the tables of a run need to know beside its scores. primary: by task label, the metric that stands for it."""

    title: str
    anchor: str | None
    primary: Mapping[str, str]

    def only_primary(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of each task's primary metric."""
        return frame[frame["metric"] == frame["task"].map(self.primary)]


def derive(folder: Path, scores: pd.DataFrame, heading: Heading) -> tuple[pd.DataFrame, Path]:
    """Write bdrate.csv and report/; return the BD frame and the path of the report. Raises ScoresError for an unknown anchor."""
    bdrate = bdrate_frame(scores, heading.anchor)
    write_csv(bdrate, folder / "bdrate.csv")
    return bdrate, write_report(folder, scores, bdrate, {"title": heading.title, "primary": dict(heading.primary)})


def recorded(folder: Path) -> tuple[pd.DataFrame, Heading]:
    """Scores and heading of a finished run."""
    try:
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        experiment = environment["experiment"]
        heading = Heading(experiment["name"], experiment["anchor"], environment["primary"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not the folder of a finished run ({error}); give the --out of `icmbench run`") from None
    scores = read_scores(folder / "scores.csv")
    return scores, heading if heading.anchor in set(scores["codec"]) else replace(
        heading, anchor=None
    )  # it may be among the missing
