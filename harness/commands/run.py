"""`icmbench run`: computes everything that is missing, then derives all tables."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import Experiment
from icmbench.harness.config.files import read_bytes
from icmbench.harness.config.secrets import redact, redact_values
from icmbench.harness.derive.deriving import derive
from icmbench.harness.derive.environment import environment
from icmbench.harness.derive.gathering import Gatherer
from icmbench.harness.derive.tables import TableSpec
from icmbench.harness.store import leases
from icmbench.harness.store.collection import Collection
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.keys import digest
from icmbench.harness.store.references import LEASES, leave_reference, refuse_while_cleaned, run_address
from icmbench.harness.work import executors
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.images import write_images
from icmbench.harness.work.loop import WorkUnit
from icmbench.harness.work.outcome import Outcome
from icmbench.harness.work.progress import Bar
from icmbench.harness.work.ray_executor import ray_cluster
from icmbench.harness.work.series import Series

RUNNING = "running"  # Leases of the commands that write into a run folder.


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
    folder = Folder(out)
    _check_folder(folder, experiment, source)
    bench = Bench(experiment, folder)
    with _at_work(bench):
        folder.remove_leftovers()
        bench.store.folder.remove_leftovers()
        _write_record(bench, source)
        gatherer = Gatherer(bench)
        units = _missing_units(bench, gatherer, options)
        if sum(lease.live for lease in leases.leases(bench.store.folder, LEASES)) > 1:
            random.shuffle(units)  # Processes that fill one store at once should not all compute the same units first.
        for label in bench.tasks if units else ():
            bench.load_context(label)
        outcome = _compute(bench, units, options)
        computed = time.perf_counter()
        if options.shard:
            if units:
                write_images(bench)
            return RunResult(outcome, {"loop": computed - started})
        if units:
            bench.hash_unknown_sources()
            write_images(bench)
            _tidy(bench)
            gatherer = Gatherer(bench)
        tables = derive(bench, gatherer, options.workers, options.images)
    seconds = {"loop": computed - started, **tables.seconds}
    shown = (tables.scores, tables.bdrate, tables.report, tables.missing, tables.table_spec)
    return RunResult(outcome, seconds, *shown, tolerated=bench.tolerant)


def _check_folder(folder: Folder, experiment: Experiment, source: Path | None) -> None:
    """Refuse a run folder that belongs to another experiment.

    Raises:
        UserError: it does, or what lies there is no run's.
        FormatError: another version of icmbench wrote the folder.
    """
    record = folder.read_json("environment.json")
    if source is not None and folder.exists("experiment.yaml") and not folder.exists("environment.json"):
        raise UserError(f"{folder.full_path('experiment.yaml')} is no run's copy and would be overwritten; choose another --out")
    recorded = record.get("experiment")
    name = recorded.get("name") if isinstance(recorded, dict) else None
    if isinstance(name, str) and name != experiment.name:
        raise UserError(
            f"{folder.root} belongs to the experiment {name!r}, and this one is named {experiment.name!r}: choose another --out, "
            "or give the file that name if it continues that experiment"
        )


@contextmanager
def _at_work(bench: Bench) -> Iterator[None]:
    """Hold a lease in the run folder and one in the store, and leave a reference to the run in the store.

    Raises:
        UserError: another command works in the run folder by another version of the experiment file, or the store is being cleaned.
    """
    folder, store = bench.folder, bench.store.folder
    version = digest(bench.experiment.model_dump_json())
    facts = {"experiment": bench.experiment.name, "digest": version, "run": run_address(folder)}
    fingerprints = [digest(series.fingerprint) for series in bench.series if isinstance(series, Series)]
    for task in bench.tasks.values():
        fingerprints += [digest(task.fingerprint), *([digest(task.context_fingerprint)] if task.has_context else [])]
    with leases.hold(folder, RUNNING, facts), leases.hold(store, LEASES, {**facts, "fingerprints": sorted(fingerprints)}):
        for lease in leases.leases(folder, RUNNING):
            if not lease.live:
                folder.remove(lease.name)
            elif lease.facts.get("digest") != version:
                raise UserError(
                    f"{folder.root}: another command (process {lease.facts['pid']} on {lease.facts.get('host')}) works there by "
                    "another version of the experiment file: wait until it has ended, or choose another --out"
                )
        refuse_while_cleaned(store)
        leave_reference(store, folder, fingerprints)
        yield


def _write_record(bench: Bench, source: Path | None) -> None:
    """Write environment.json and the copy of the experiment file."""
    bench.folder.write_json("environment.json", redact_values(environment(bench)))
    if source is not None:
        text = read_bytes(source, "experiment file").decode()
        bench.folder.write("experiment.yaml", redact(text).encode())  # A comment may hold what the file's values must not.


def _missing_units(bench: Bench, gatherer: Gatherer, options: RunOptions) -> list[WorkUnit]:
    """The units of work of this run in which something is missing: of all, or of its part if several jobs share them."""
    if options.shard is None:
        units = executors.make_units(bench, options.workers)
    else:
        part, count = options.shard
        units = executors.make_units(bench, options.workers * count)[part - 1 :: count]
    if options.keep:
        return units
    missing: defaultdict[tuple[str, str], set[str]] = defaultdict(set)  # Images by dataset and name of the series.
    for label in bench.tasks:
        for series in bench.series_of(label):
            missing[bench.dataset_of(label), series.name].update(gatherer.missing(label, series))
    return [
        unit
        for unit in units
        if any(not missing[unit.block.dataset, bench.series[k].name].isdisjoint(unit.block.ids) for k in unit.series)
    ]


def _tidy(bench: Bench) -> None:
    """Replace the small shards of complete points by large ones, and store the indices."""
    gatherer = Gatherer(bench)
    points: list[tuple[Collection, list[str]]] = []
    for label, task in bench.tasks.items():
        predictions = bench.lookup.predictions_of(task)
        points += [(predictions, predictions.shards_of(gatherer.rows(label, series))) for series in bench.series_of(label)]
    for series in bench.series:
        for dataset in bench.datasets:
            if isinstance(series, Series) and bench.task_labels(dataset):
                streams = bench.lookup.collection(series)
                points.append((streams, streams.shards_of(gatherer.streams(dataset, series).rows)))
    for collection, shards in points:
        collection.compact(shards)
    for collection in {id(collection): collection for collection, _ in points}.values():
        collection.write_index()
    for records in bench.source_records.values():
        records.save()


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
