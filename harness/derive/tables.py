"""The files of a run folder that are derived from its scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from icmbench.harness.config.errors import UserError
from icmbench.harness.derive.resampling import load
from icmbench.harness.store.store import Store
from icmbench.results.analyses import COLUMNS
from icmbench.results.bd import Envelope, Method
from icmbench.results.bundle import write_bundle
from icmbench.results.published import reported_curves
from icmbench.results.report import write_report
from icmbench.results.scores import read_scores
from icmbench.results.tables import bdrate_frame
from icmbench.results.writers import write_csv

PUBLISHED = "published.csv"
PICTURES = "pictures.json"


@dataclass(frozen=True)
class TableSpec:
    """What the tables of a run need to know beside its scores. primary: by task label, the metric that stands for it."""

    title: str
    anchor: str | None
    primary: Mapping[str, str]
    method: Method = "pchip"
    envelope: Envelope = "pareto"

    def only_primary(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of each task's primary metric."""
        return frame[frame["metric"] == frame["task"].map(self.primary)]


@dataclass(frozen=True)
class ReportInputs:
    """All that tables and report are made of.

    replicates: by task label, as of `resampling.load`. own: codecs' analyses by name, as of `analyses.COLUMNS`. reported: curves of
    papers, as of `reported_curves`. pictures: as of `pictures.entries`.
    """

    scores: pd.DataFrame
    table_spec: TableSpec
    replicates: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    own: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    reported: pd.DataFrame | None = None
    pictures: Mapping[str, Any] = field(default_factory=dict)


def derive(folder: Path, inputs: ReportInputs) -> tuple[pd.DataFrame, Path]:
    """Write bdrate.csv and report/; return the BD frame and the path of the report. Raises ScoresError for an unknown anchor."""
    m = inputs
    bdrate = bdrate_frame(m.scores, m.table_spec.anchor, m.table_spec.method, m.table_spec.envelope, replicates=m.replicates)
    write_csv(bdrate, folder / "bdrate.csv")
    meta = {"title": m.table_spec.title, "primary": dict(m.table_spec.primary)}
    return bdrate, write_report(folder, m.scores, bdrate, meta, m.reported, m.own, m.pictures)


def bundle(folder: Path, inputs: ReportInputs, bdrate: pd.DataFrame) -> Path:
    """Write bundle/, the tables and figures of a paper with their provenance; return its path."""
    files = [folder / "scores.csv", *folder.glob("experiment.yaml"), *sorted(folder.glob("replicates/*.parquet"))]
    facts = {
        **read_json(Store(folder), "environment.json"),
        "bd": {"method": inputs.table_spec.method, "envelope": inputs.table_spec.envelope, "anchor": inputs.table_spec.anchor},
        "bootstrap": {label: int(frame["replicate"].max()) for label, frame in inputs.replicates.items()},
        "inputs": {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    m = inputs
    write_bundle(folder / "bundle", m.scores, bdrate, facts, m.table_spec.primary, m.reported, m.own)
    return folder / "bundle"


def recorded(
    folder: Path,
    anchor: str | None = None,
    published: Sequence[str] | None = None,
    method: Method | None = None,
    envelope: Envelope | None = None,
) -> ReportInputs:
    """What a finished run left.

    anchor, method, envelope: instead of the experiment's. published: as of `gather_published`, beside the run's.
    """
    try:
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        experiment = environment["experiment"]
        title, own_anchor, primary = experiment["name"], experiment["anchor"], environment["primary"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not the folder of a finished run ({error}); give the --out of `icmbench run`") from None
    bd = method or experiment.get("method", "pchip"), envelope or experiment.get("envelope", "pareto")
    scores = read_scores(folder / "scores.csv")
    own_anchor = own_anchor if own_anchor in set(scores["codec"]) else None  # it may be among the missing
    kept = [reported_curves(folder / PUBLISHED)] if (folder / PUBLISHED).is_file() else []
    more = [] if published is None else [gather_published(published)]
    return ReportInputs(
        scores,
        TableSpec(title, anchor or own_anchor, primary, *bd),
        {label: frame.drop(columns="key") for label, frame in load(Store(folder)).items()},
        analyses(folder),
        pd.concat([*kept, *more], ignore_index=True).drop_duplicates() if kept or more else None,
        read_json(Store(folder), PICTURES),
    )


def gather_published(files: Sequence[str | Path]) -> pd.DataFrame:
    """The curves of files of a user, or without any those that come with icmbench. Raises ScoresError."""
    return pd.concat([reported_curves(file) for file in files] or [reported_curves()], ignore_index=True)


def analyses(folder: Path) -> dict[str, pd.DataFrame]:
    """Codecs' own analyses that lie in a run as analyses/<name>.csv."""
    found = {}
    for path in sorted(folder.glob("analyses/*.csv")):
        if path.stem not in COLUMNS:
            raise UserError(f"{path}: no such analysis; the names are {', '.join(COLUMNS)}")
        text = dict.fromkeys(("codec", "point", "image", "part", "stage"), str)
        found[path.stem] = pd.read_csv(path, dtype=text, keep_default_na=False)
    return found


def read_json(store: Store, name: str) -> dict[str, Any]:
    """A JSON object of a run; empty where it is not there or damaged."""
    try:
        found = json.loads(store.read(name))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
