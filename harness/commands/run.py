"""`icmbench run`: everything that is missing is computed, then all tables are derived anew."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import Experiment
from icmbench.harness.derive.environment import environment
from icmbench.harness.derive.pictures import entries
from icmbench.harness.derive.resampling import Resampling
from icmbench.harness.derive.scoring import bit_split, primary_metrics, score
from icmbench.harness.derive.tables import (
    PICTURES,
    PUBLISHED,
    ReportInputs,
    TableSpec,
    analyses,
    derive,
    gather_published,
    read_json,
)
from icmbench.harness.store.store import Store, writing
from icmbench.harness.work import executors
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.cell import Outcome
from icmbench.harness.work.loop import WorkUnit
from icmbench.harness.work.progress import Bar
from icmbench.harness.work.ray_executor import ray_cluster
from icmbench.results.bootstrap import with_intervals
from icmbench.results.writers import write_csv


@dataclass(frozen=True)
class RunOptions:
    """How an experiment is computed; it changes no result.

    executor: processes of this machine, or a Ray cluster; gpus: GPUs of each worker there.
    keep: keep every reconstruction as a lossless picture.
    shard: (i, n) computes the i-th of n parts (from 1 on) and leaves the tables to a later run without it.
    images: how many the report shows, the most damaged first.
    """

    workers: int = 1
    executor: Literal["local", "ray"] = "local"
    gpus: float = 0.0
    keep: bool = False
    shard: tuple[int, int] | None = None
    images: int = 12


@dataclass
class RunResult:
    """What a run came to. It is complete when no cell is missing. With `RunOptions.shard` there are no tables."""

    outcome: Outcome
    seconds: dict[str, float]
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    bdrate: pd.DataFrame = field(default_factory=pd.DataFrame)
    report: str | None = None
    missing: list[str] = field(default_factory=list)
    table_spec: TableSpec | None = None
    tolerated: bool = False  # by the experiment's policy, the failures in `outcome`


def run(experiment: Experiment, out: str | Path, how: RunOptions = RunOptions(), source: Path | None = None) -> RunResult:
    """Run an experiment into a folder; what is there is kept and only what is missing is computed.

    `source` is the experiment file, copied beside the results. Raises UserError for bad input; failures of single cells are in
    the result.
    """
    started = time.perf_counter()
    store = Store(out)
    store.sweep()
    if source is not None and store.exists("experiment.yaml") and not store.exists("environment.json"):
        raise UserError(f"{store.full('experiment.yaml')} is no run's copy and would be overwritten; choose another --out")
    bench = Bench(experiment, store)
    parts = how.shard[1] if how.shard else 1
    units = executors.make_units(bench, how.workers * parts)
    if how.shard:
        units = units[how.shard[0] - 1 :: parts]
    for label in bench.tasks:
        bench.prepare(label)
    store.write_json("environment.json", environment(bench))
    if source is not None:
        store.write("experiment.yaml", source.read_bytes())
    outcome = _compute(bench, units, how)
    worked = time.perf_counter()
    if how.shard:
        return RunResult(outcome, {"loop": worked - started})
    resampling = Resampling(bench, experiment.bootstrap, how.workers) if experiment.bootstrap else None
    found = score(bench, resampling.add if resampling else None)
    scored = time.perf_counter()
    replicates = resampling.finish() if resampling else {}
    scores, missing = with_intervals(found.frame, replicates), found.missing
    anchor = experiment.anchor if experiment.anchor in set(scores["codec"]) else None  # it may be among the missing
    table_spec = TableSpec(experiment.name, anchor, primary_metrics(bench), experiment.method, experiment.envelope)
    shown = entries(bench, scores, found.failed, how.images, read_json(store, PICTURES))
    store.write_json(PICTURES, shown)
    parts = bit_split(bench)
    with store.workplace() as folder, writing(folder):
        scores.to_csv(folder / "scores.csv", index=False)
        if len(parts):
            (folder / "analyses").mkdir(exist_ok=True)
            write_csv(parts, folder / "analyses" / "bit-split.csv")
        reported = None
        if experiment.published:
            reported = gather_published([experiment.folder / file for file in experiment.published if file is not True])
            write_csv(reported, folder / PUBLISHED)
        bdrate, page = derive(folder, ReportInputs(scores, table_spec, replicates, analyses(folder), reported, shown))
    report = store.full(page.relative_to(folder).as_posix())
    seconds = {"loop": worked - started, "scoring": scored - worked, "report": time.perf_counter() - scored}
    return RunResult(outcome, seconds, scores, bdrate, report, missing, table_spec, experiment.fail_on_error is not True)


def _compute(bench: Bench, units: list[WorkUnit], how: RunOptions) -> Outcome:
    total = Outcome()
    with Bar(bench.experiment.name, sum(unit.images for unit in units)) as bar:
        if how.executor == "ray":
            outcomes = ray_cluster(bench, units, how.keep, bar.advance, how.workers, how.gpus)
        elif how.workers == 1 and bench.experiment.timeout is None:
            outcomes = executors.in_process(bench, units, how.keep, bar.advance)
        else:
            outcomes = executors.process_pool(bench, units, how.keep, bar.advance, how.workers)
        for outcome in outcomes:
            total.add(outcome)
    return total
