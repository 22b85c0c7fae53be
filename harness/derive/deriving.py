"""Makes all tables of a run from what the store holds, unless they were made from exactly that before.

store -> scores -> replicates -> intervals -> BD table, pictures, report -> derived.json
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from icmbench.harness.config.files import read_bytes
from icmbench.harness.derive.bound import Derived, code_digest, content_digest
from icmbench.harness.derive.gathering import Gatherer
from icmbench.harness.derive.pictures import picture_entries
from icmbench.harness.derive.replicates import replicates_file
from icmbench.harness.derive.resampling import Resampling
from icmbench.harness.derive.scoring import ScoreTable, bit_split, primary_metrics, score
from icmbench.harness.derive.tables import (
    PICTURES,
    PUBLISHED,
    ReportInputs,
    TableSpec,
    gather_published,
    read_analyses,
    write_bd_table_and_report,
)
from icmbench.harness.store.keys import digest
from icmbench.harness.store.pack_export import IMAGES
from icmbench.harness.store.parquet_files import write_parts
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.series import Series
from icmbench.results.bootstrap import with_intervals
from icmbench.results.scores import normalise, read_scores
from icmbench.results.writers import write_csv
from icmbench.tasks.base import DatasetError, Task

KINDS_WITH_CATEGORIES = ("instances", "keypoints", "panoptic", "semantic", "class")
RECORDS = ("environment.json", "experiment.yaml", IMAGES)  # Written by every run before it makes tables.
STREAMS = "streams.parquet"  # In a run folder: size and pixels of its streams, one row per image and codec point.
STREAM_REFERENCES = pa.schema(
    [
        *((name, pa.string()) for name in ("codec", "point", "dataset", "id")),
        ("bytes", pa.int64()),  # Null where the codec estimates its rate.
        ("bits", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("sha256", pa.string()),
    ]
)
BIT_SPLIT = "analyses/bit-split.csv"


@dataclass
class Tables:
    """The tables of a run.

    Attributes:
        scores: the content of scores.csv.
        bdrate: the content of bdrate.csv.
        report: path of the report.
        missing: names of the cells without a score, or why a task has none.
        table_spec: what the tables need beside the scores.
        seconds: time of the stages "scoring" and "report".
    """

    scores: pd.DataFrame
    bdrate: pd.DataFrame
    report: str
    missing: list[str]
    table_spec: TableSpec
    seconds: dict[str, float] = field(default_factory=dict)


def derive(bench: Bench, gatherer: Gatherer, workers: int, image_count: int) -> Tables:
    """Make all tables, or read them if they were made from the same inputs.

    Args:
        bench: the experiment, its run folder and store.
        gatherer: reads the store.
        workers: worker processes for slow resampling.
        image_count: how many images the report shows.
    """
    labels = {label: _labels_digest(task) for label, task in bench.tasks.items()}
    inputs = _inputs_digest(bench, gatherer, labels, image_count)
    derived = Derived(bench.folder)
    if derived.is_whole(inputs, RECORDS):
        derived.update(name for name in RECORDS if name in derived.names)
        return _read_tables(bench, derived)
    started = time.perf_counter()
    experiment = bench.experiment
    resampling = Resampling(gatherer, experiment.bootstrap, labels, workers) if experiment.bootstrap else None
    score_table = score(bench, gatherer, resampling.add if resampling else None)
    scored = time.perf_counter()
    replicates = resampling.finish() if resampling else {}
    scores = with_intervals(score_table.frame, replicates)
    table_spec = _table_spec(bench, scores)
    bdrate, page = _write_tables(gatherer, score_table, scores, table_spec, replicates, image_count)
    names = [*RECORDS, "scores.csv", "bdrate.csv", PUBLISHED, BIT_SPLIT, PICTURES, STREAMS]
    _write_streams(gatherer)
    derived.write(inputs, [*names, *map(replicates_file, replicates), page], score_table.missing, page)
    seconds = {"scoring": scored - started, "report": time.perf_counter() - scored}
    return Tables(normalise(scores), bdrate, bench.folder.full_path(page), score_table.missing, table_spec, seconds)


def _write_streams(gatherer: Gatherer) -> None:
    """Write streams.parquet: size and pixels of every stream of the run by image, for comparisons with other runs."""
    write_parts(gatherer.bench.folder, STREAMS, STREAM_REFERENCES, _stream_references(gatherer))


def _stream_references(gatherer: Gatherer) -> Iterator[pa.Table]:
    """The rows of streams.parquet, series by series."""
    for series in gatherer.bench.series:
        for dataset in gatherer.bench.datasets:
            if isinstance(series, Series) and gatherer.bench.task_labels(dataset):
                frame = gatherer.streams.frame(dataset, series)[["bytes", "bits", "height", "width", "sha256"]].reset_index()
                facts = {"codec": series.label, "point": series.point_name, "dataset": dataset}
                yield pa.Table.from_pandas(frame.assign(**facts), STREAM_REFERENCES, preserve_index=False)


def _table_spec(bench: Bench, scores: pd.DataFrame) -> TableSpec:
    experiment = bench.experiment
    anchor = experiment.anchor if experiment.anchor in set(scores["codec"]) else None  # Its cells may be among the missing ones.
    return TableSpec(experiment.name, anchor, primary_metrics(bench), experiment.method, experiment.envelope)


def _read_tables(bench: Bench, derived: Derived) -> Tables:
    """The tables as they were made."""
    with bench.folder.copy_of(["scores.csv", "bdrate.csv"]) as folder:
        scores = read_scores(folder / "scores.csv")
        bdrate = pd.read_csv(folder / "bdrate.csv", keep_default_na=False, na_values=[""])
    return Tables(scores, bdrate, bench.folder.full_path(derived.report), derived.missing, _table_spec(bench, scores))


def _inputs_digest(bench: Bench, gatherer: Gatherer, labels: Mapping[str, str], image_count: int) -> str:
    """A digest of everything that the tables are made from."""
    rows: dict[str, Any] = {}
    for label in bench.tasks:
        for series in bench.series_of(label):
            failed = sorted(gatherer.failed(label, series)) if bench.tolerant else []
            rows[f"{label} / {series.name}"] = [gatherer.key(label, series), failed]
    experiment = bench.experiment
    published = [hashlib.sha256(read_bytes(experiment.folder / file, "published")).hexdigest()
                 for file in experiment.published if file is not True]  # fmt: skip
    return digest([experiment.model_dump_json(), rows, dict(labels), published, image_count, code_digest()])


def _labels_digest(task: Task) -> str:
    """A digest of what predictions of a task are scored against: labels and categories."""
    if task.reference == "original" or task.annotation is None:
        return ""
    dataset: Any = task.dataset
    categories = []
    for method in ("categories", "things"):
        for kind in KINDS_WITH_CATEGORIES if callable(getattr(dataset, method, None)) else ():
            try:
                categories.append((method, kind, getattr(dataset, method)(kind)))
            except (DatasetError, KeyError, ValueError, AttributeError, TypeError):  # It has no annotations of this kind.
                continue
    return content_digest([list(task.targets(task.ids)), categories])


def _write_tables(
    gatherer: Gatherer,
    score_table: ScoreTable,
    scores: pd.DataFrame,
    table_spec: TableSpec,
    replicates: Mapping[str, pd.DataFrame],
    image_count: int,
) -> tuple[pd.DataFrame, str]:
    """Write scores.csv and everything that is derived from it; return the BD table and the report's page below the run folder."""
    experiment, run_folder = gatherer.bench.experiment, gatherer.bench.folder
    pictures = picture_entries(gatherer, scores, score_table.failed, image_count, run_folder.read_json(PICTURES))
    run_folder.write_json(PICTURES, pictures)
    split = bit_split(gatherer)
    names = [name for name in run_folder.names("analyses") if name.endswith(".csv") and name != BIT_SPLIT]
    with run_folder.copy_of(names) as folder:
        analyses = read_analyses(folder)
    with run_folder.scratch_folder() as folder:
        write_csv(scores, folder / "scores.csv")
        if not len(split):
            run_folder.remove(BIT_SPLIT)  # That of an earlier state of the experiment.
        else:
            (folder / "analyses").mkdir(exist_ok=True)
            write_csv(split, folder / BIT_SPLIT)
        reported = None
        if experiment.published:
            reported = gather_published([None if file is True else experiment.folder / file for file in experiment.published])
            write_csv(reported, folder / PUBLISHED)
        analyses |= read_analyses(folder)
        report_inputs = ReportInputs(normalise(scores), table_spec, replicates, analyses, reported, pictures)
        bdrate, page = write_bd_table_and_report(folder, report_inputs)
    return bdrate, page.relative_to(folder).as_posix()
