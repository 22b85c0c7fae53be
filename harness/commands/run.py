"""`icmbench run`: computes everything that is missing, then derives all tables anew."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import Experiment
from icmbench.harness.config.files import check_regular, exists, read_bytes
from icmbench.harness.config.secrets import redact, redact_values
from icmbench.harness.derive.environment import environment
from icmbench.harness.derive.pictures import picture_entries
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
from icmbench.harness.store.store import Store, writing
from icmbench.harness.work import executors
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.cell import Outcome
from icmbench.harness.work.loop import WorkUnit
from icmbench.harness.work.progress import Bar
from icmbench.harness.work.ray_executor import ray_cluster
from icmbench.results.bootstrap import with_intervals
from icmbench.results.scores import normalise
from icmbench.results.writers import write_csv


@dataclass(frozen=True)
class RunOptions:
    """How an experiment is computed. None of these options changes a result.

    Attributes:
        workers: number of processes that share the work.
        executor: "local" for processes on this machine, "ray" for a Ray cluster.
        gpus: GPUs of each worker on a Ray cluster; may be a fraction.
        keep: whether every reconstruction is kept as a lossless picture.
        shard: `(i, n)` computes the i-th of n parts (from 1 on) and writes no tables; a later run without it writes them.
        images: how many images the report shows, the most damaged first.
    """

    workers: int = 1
    executor: Literal["local", "ray"] = "local"
    gpus: float = 0.0
    keep: bool = False
    shard: tuple[int, int] | None = None
    images: int = 12


@dataclass
class RunResult:
    """The result of a run. The run is complete if no cell is missing. With `RunOptions.shard` it has no tables.

    Attributes:
        outcome: failures and counts of calls.
        seconds: time of the stages "loop", "scoring" and "report".
        scores: the content of scores.csv.
        bdrate: the content of bdrate.csv.
        report: path of the report.
        missing: names of the cells without a score, or why a task has none.
        table_spec: what the tables need beside the scores.
        tolerated: whether the experiment allows failures, as those in `outcome`.
    """

    outcome: Outcome
    seconds: dict[str, float]
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    bdrate: pd.DataFrame = field(default_factory=pd.DataFrame)
    report: str | None = None
    missing: list[str] = field(default_factory=list)
    table_spec: TableSpec | None = None
    tolerated: bool = False


def run(experiment: Experiment, out: str | Path, options: RunOptions = RunOptions(), source: Path | None = None) -> RunResult:
    """Run an experiment into a folder. What the folder holds already is kept, and only what is missing is computed.

    Args:
        experiment: the experiment.
        out: the run folder or its URL.
        options: how to compute it.
        source: the experiment file, which is copied into the run folder.

    Returns:
        The result. Failures of single cells are part of it.

    Raises:
        UserError: an option or input is wrong, the folder cannot be written, or a newer icmbench wrote files in it.
    """
    started = time.perf_counter()
    store = Store(out)
    store.read_json("environment.json")  # Refuses the folder of a newer icmbench before anything in it changes.
    store.remove_leftovers()
    if source is not None and store.exists("experiment.yaml") and not store.exists("environment.json"):
        raise UserError(f"{store.full_path('experiment.yaml')} is no run's copy and would be overwritten; choose another --out")
    bench = Bench(experiment, store)
    units = _select_units(bench, options)
    for label in bench.tasks:
        bench.load_context(label)
    store.write_json("environment.json", redact_values(environment(bench)))
    if source is not None:
        text = read_bytes(source, "experiment file").decode()
        store.write("experiment.yaml", redact(text).encode())  # A comment may hold what the file's values must not.
    outcome = _compute(bench, units, options)
    computed = time.perf_counter()
    if options.shard:
        return RunResult(outcome, {"loop": computed - started})
    resampling = Resampling(bench, experiment.bootstrap, options.workers) if experiment.bootstrap else None
    score_table = score(bench, resampling.add if resampling else None)
    scored = time.perf_counter()
    replicates = resampling.finish() if resampling else {}
    scores = with_intervals(score_table.frame, replicates)
    anchor = experiment.anchor if experiment.anchor in set(scores["codec"]) else None  # Its cells may be among the missing ones.
    table_spec = TableSpec(experiment.name, anchor, primary_metrics(bench), experiment.method, experiment.envelope)
    bdrate, report = _write_report(bench, score_table, scores, table_spec, replicates, options.images)
    seconds = {"loop": computed - started, "scoring": scored - computed, "report": time.perf_counter() - scored}
    tolerated = experiment.fail_on_error is not True
    return RunResult(outcome, seconds, scores, bdrate, report, score_table.missing, table_spec, tolerated)


def _select_units(bench: Bench, options: RunOptions) -> list[WorkUnit]:
    """The units of work of this run: all, or its part if several jobs share them."""
    if options.shard is None:
        return executors.make_units(bench, options.workers)
    part, count = options.shard
    return executors.make_units(bench, options.workers * count)[part - 1 :: count]


def _compute(bench: Bench, units: list[WorkUnit], options: RunOptions) -> Outcome:
    total = Outcome()
    with Bar(bench.experiment.name, sum(unit.images for unit in units)) as bar:
        if options.executor == "ray":
            outcomes = ray_cluster(bench, units, options.keep, bar.advance, options.workers, options.gpus)
        elif options.workers == 1 and bench.experiment.timeout is None:
            outcomes = executors.in_process(bench, units, options.keep, bar.advance)
        else:
            outcomes = executors.process_pool(bench, units, options.keep, bar.advance, options.workers)
        for outcome in outcomes:
            total.add(outcome)
    return total


def _write_report(
    bench: Bench,
    score_table: ScoreTable,
    scores: pd.DataFrame,
    table_spec: TableSpec,
    replicates: Mapping[str, pd.DataFrame],
    image_count: int,
) -> tuple[pd.DataFrame, str]:
    """Write scores.csv and everything that is derived from it; return the BD table and the path of the report."""
    experiment, store = bench.experiment, bench.store
    pictures = picture_entries(bench, scores, score_table.failed, image_count, store.read_json(PICTURES))
    store.write_json(PICTURES, pictures)
    split = bit_split(bench)
    with store.local_folder() as folder, writing(folder):
        for name in ("scores.csv", "bdrate.csv", PUBLISHED, "analyses/bit-split.csv"):
            if exists(folder / name):
                check_regular(folder / name, "table")  # Writing into a pipe would never end.
        scores.to_csv(folder / "scores.csv", index=False)
        if len(split):
            (folder / "analyses").mkdir(exist_ok=True)
            write_csv(split, folder / "analyses" / "bit-split.csv")
        reported = None
        if experiment.published:
            reported = gather_published([experiment.folder / file for file in experiment.published if file is not True])
            write_csv(reported, folder / PUBLISHED)
        report_inputs = ReportInputs(normalise(scores), table_spec, replicates, read_analyses(folder), reported, pictures)
        bdrate, page = write_bd_table_and_report(folder, report_inputs)
    return bdrate, store.full_path(page.relative_to(folder).as_posix())
