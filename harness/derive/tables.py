"""The files of a run folder that are derived from its scores: the BD table, the report, and the bundle for a paper."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.sections import first_error
from icmbench.harness.config.selection import Selection
from icmbench.harness.derive.bound import Derived
from icmbench.harness.derive.replicates import load_replicates
from icmbench.harness.store.folder import Folder, safe_name
from icmbench.harness.store.formats import parse_object
from icmbench.harness.store.keys import digest
from icmbench.results.analysis_files import COLUMNS, read_analysis
from icmbench.results.bd import Envelope, Method
from icmbench.results.bundle import write_bundle
from icmbench.results.columns import UNCOMPRESSED
from icmbench.results.json_files import parse_json
from icmbench.results.pictures import check_entries
from icmbench.results.plain_files import read_plain_file
from icmbench.results.published import reported_curves
from icmbench.results.report import write_report
from icmbench.results.scores import read_scores
from icmbench.results.tables import bdrate_frame
from icmbench.results.writers import write_csv

PUBLISHED = "published.csv"
PICTURES = "pictures.json"
# Files of a run's tables that no report reads: it writes the first one itself, and the others serve comparisons and packs.
NOT_READ = {"bdrate.csv", "experiment.yaml", "images.parquet", "streams.parquet"}


@dataclass(frozen=True)
class TableSpec:
    """What the tables of a run need to know beside its scores.

    Attributes:
        title: heading of the report.
        anchor: label of the codec that BD-rates compare with; None for no BD table.
        primary: by task label, the name of the metric that stands for the task.
        method: interpolation of BD-rates, as in `icmbench.results.bd`.
        envelope: treatment of curves that are not monotonic, as in `icmbench.results.bd`.
    """

    title: str
    anchor: str | None
    primary: Mapping[str, str]
    method: Method = "pchip"
    envelope: Envelope = "pareto"

    def only_primary(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of each task's primary metric, of a frame with the columns task and metric."""
        return frame[frame["metric"] == frame["task"].map(self.primary)]


class _RecordedExperiment(BaseModel):
    """What a report needs of the experiment in environment.json; the defaults are those of runs before a key was introduced."""

    model_config = ConfigDict(strict=True, frozen=True)
    name: str
    anchor: str | None
    method: Method = "pchip"
    envelope: Envelope = "pareto"


class _RunFacts(BaseModel):
    """What a report needs of environment.json."""

    model_config = ConfigDict(strict=True, frozen=True)
    experiment: _RecordedExperiment
    primary: dict[str, str]


@dataclass(frozen=True)
class ReportInputs:
    """Everything that tables and report are made of.

    Attributes:
        scores: as `icmbench.results.scores.normalise` returns them.
        table_spec: how to make the tables.
        replicates: by task label, as `Resampling.finish` returns them.
        codec_analyses: frames of codecs' own analyses, by a name of `icmbench.results.analyses.COLUMNS`.
        reported: curves of papers, as `icmbench.results.published.reported_curves` returns them; None for none.
        pictures: as `icmbench.harness.derive.pictures.picture_entries` returns them.
    """

    scores: pd.DataFrame
    table_spec: TableSpec
    replicates: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    codec_analyses: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    reported: pd.DataFrame | None = None
    pictures: Mapping[str, Any] = field(default_factory=dict)


def write_bd_table_and_report(folder: Path, inputs: ReportInputs) -> tuple[pd.DataFrame, Path]:
    """Write bdrate.csv and report/ of a run.

    Args:
        folder: the run folder, or a local copy of it.
        inputs: what to write about.

    Returns:
        The BD frame, and the path of the report's page.

    Raises:
        ScoresError: the scores do not hold the anchor.
    """
    spec = inputs.table_spec
    bdrate = bdrate_frame(inputs.scores, spec.anchor, spec.method, spec.envelope, replicates=inputs.replicates)
    write_csv(bdrate, folder / "bdrate.csv")
    meta = {"title": spec.title, "primary": dict(spec.primary)}
    return bdrate, write_report(folder, inputs.scores, bdrate, meta, inputs.reported, inputs.codec_analyses, inputs.pictures)


def rewrite_report(folder: Path, inputs: ReportInputs) -> tuple[pd.DataFrame, Path]:
    """Write bdrate.csv and report/ of a finished run anew, each file whole, and record them in derived.json.

    Args:
        folder: the run folder.
        inputs: as `read_report_inputs` returns them.

    Returns:
        The BD frame, and the path of the report's page.
    """
    run_folder = Folder(folder)
    with run_folder.scratch_folder() as scratch:
        bdrate, page = write_bd_table_and_report(scratch, inputs)
        name = page.relative_to(scratch)
    Derived(run_folder).update(["bdrate.csv", name.as_posix()])
    return bdrate, folder / name


def write_part(folder: Path, inputs: ReportInputs, only: Selection) -> tuple[pd.DataFrame, Path]:
    """Write the BD table and the report of a part of a run below parts/, and leave those of the whole as they are.

    The originals stay in, for they are the ceiling of every curve, and so does the anchor, because the table compares with it.

    Args:
        folder: the run folder.
        inputs: as `read_report_inputs` returns them.
        only: the part.

    Returns:
        The BD frame, and the path of the report's page.

    Raises:
        UserError: the run has no such codec, task, dataset or point.
    """
    only.check_table(inputs.scores)
    always = [UNCOMPRESSED, *([inputs.table_spec.anchor] if inputs.table_spec.anchor else [])]
    scores = only.rows_of(inputs.scores, always)
    tasks = {*scores["task"]}
    replicates = {label: only.rows_of(frame, always) for label, frame in inputs.replicates.items() if label in tasks}
    part = replace(inputs, scores=scores, replicates=replicates, codec_analyses={}, pictures={})
    run_folder = Folder(Folder(folder).below(f"parts/{safe_name(str(only), 60)}-{digest(str(only))[:8]}"))
    with run_folder.scratch_folder() as scratch:
        bdrate, page = write_bd_table_and_report(scratch, part)
        name = page.relative_to(scratch)
    return bdrate, Path(run_folder.full_path(name.as_posix()))


def bundle(folder: Path, inputs: ReportInputs, bdrate: pd.DataFrame) -> Path:
    """Write bundle/: the tables and figures for a paper, with their provenance.

    Args:
        folder: the run folder.
        inputs: what the run left.
        bdrate: the BD frame of these inputs.

    Returns:
        The path of the bundle.

    Raises:
        UserError: a file that the bundle names as an input was changed after the tables were made.
    """
    spec, derived = inputs.table_spec, Derived(Folder(folder))
    names = [name for name in derived.names if name in ("experiment.yaml", "scores.csv") or name.startswith("replicates/")]
    for name in names:
        derived.check(name)
    facts = {
        **Folder(folder).read_json("environment.json"),
        "bd": {"method": spec.method, "envelope": spec.envelope, "anchor": spec.anchor},
        "bootstrap": {label: int(frame["replicate"].max()) for label, frame in inputs.replicates.items()},
        "inputs": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
    }
    write_bundle(folder / "bundle", inputs.scores, bdrate, facts, spec.primary, inputs.reported, inputs.codec_analyses)
    return folder / "bundle"


def read_report_inputs(
    folder: Path,
    anchor: str | None = None,
    published: Sequence[str] | None = None,
    method: Method | None = None,
    envelope: Envelope | None = None,
) -> ReportInputs:
    """Read what a finished run left in its folder.

    Args:
        folder: the run folder.
        anchor: codec label to compare with, instead of the experiment's.
        published: files of curves to draw beside the run's own, as `gather_published` takes them; None for no further curves.
        method: interpolation of BD-rates, instead of the experiment's.
        envelope: treatment of curves that are not monotonic, instead of the experiment's.

    Raises:
        UserError: the folder does not hold a finished run.
        ScoresError: scores.csv or a file of curves is malformed.
    """
    facts = _read_run_facts(folder)
    derived = Derived(Folder(folder))
    for name in {"environment.json", "scores.csv", *derived.names} - NOT_READ - {derived.report}:
        derived.check(name)
    experiment = facts.experiment
    scores = read_scores(folder / "scores.csv")
    # The run may have failed to compute its anchor.
    default_anchor = experiment.anchor if experiment.anchor in set(scores["codec"]) else None
    reported = [reported_curves(folder / PUBLISHED)] if PUBLISHED in derived.names else []
    reported += [] if published is None else [gather_published(published)]
    return ReportInputs(
        scores,
        TableSpec(
            experiment.name, anchor or default_anchor, facts.primary, method or experiment.method, envelope or experiment.envelope
        ),
        {label: frame.drop(columns="key") for label, frame in load_replicates(Folder(folder), derived.names).items()},
        read_analyses(folder),
        pd.concat(reported, ignore_index=True).drop_duplicates() if reported else None,
        read_pictures(folder) if PICTURES in derived.names else {},
    )


def _read_run_facts(folder: Path) -> _RunFacts:
    """What environment.json says about a run.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / "environment.json"
    try:
        data = read_plain_file(path)
        parse_object(path, data)  # Refuses the file of a newer icmbench.
        facts = _RunFacts.model_validate(parse_json(data))
        json.dumps(facts.model_dump(), ensure_ascii=False).encode("utf-8")  # Fails for half of a character.
        return facts
    except ValidationError as error:
        cause = first_error(error, path.name)
    except (OSError, ValueError) as error:
        cause = f"{path.name}: {' '.join(str(error).split())}"
    raise UserError(f"{folder}: not the folder of a finished run ({cause}); give the --out of `icmbench run`")


def read_pictures(folder: Path) -> dict[str, Any]:
    """The pictures that a run stored for its report; if they are damaged, none, and in `left_out` a sentence that says so."""
    path = folder / PICTURES
    if not path.exists():
        return {}
    try:
        data = read_plain_file(path)
        parse_object(path, data)  # Refuses the file of a newer icmbench.
        content = parse_json(data)
        check_entries(content)
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        return {"left_out": [f"{PICTURES} is damaged ({cause}): run the experiment again to make its pictures anew"]}
    return dict(content)


def gather_published(files: Sequence[str | Path | None]) -> pd.DataFrame:
    """Curves that papers report.

    Args:
        files: CSV or JSON files of curves; None stands for the curves that come with icmbench, which are also read if it is empty.

    Returns:
        Curves as `icmbench.results.published.reported_curves` returns them.

    Raises:
        ScoresError: a file is missing or malformed.
    """
    return pd.concat([reported_curves(file) for file in files] or [reported_curves()], ignore_index=True)


def read_analyses(folder: Path) -> dict[str, pd.DataFrame]:
    """Frames of codecs' own analyses, by name, from the files analyses/<name>.csv of a run folder.

    Raises:
        UserError: a file has none of the names in `icmbench.results.analyses.COLUMNS`.
        ScoresError: a file is malformed.
    """
    frames = {}
    for path in sorted(folder.glob("analyses/*.csv")):
        if path.stem not in COLUMNS:
            raise UserError(f"{path}: no such analysis; the names are {', '.join(COLUMNS)}")
        frames[path.stem] = read_analysis(path)
    return frames
