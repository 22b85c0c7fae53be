"""`icmbench run`: computes everything that is missing, then derives all tables."""

from __future__ import annotations

import random
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import yaml

from icmbench.harness.commands.computing import DEFAULT_OPTIONS, RunOptions, at_work, compute, units_of
from icmbench.harness.commands.console import print_error
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import Experiment
from icmbench.harness.config.files import read_bytes
from icmbench.harness.config.secrets import redact, redact_values
from icmbench.harness.config.sections import read_mapping
from icmbench.harness.derive.deriving import derive
from icmbench.harness.derive.environment import environment
from icmbench.harness.derive.gathering import Gatherer
from icmbench.harness.derive.measuring import measure
from icmbench.harness.derive.scoring import primary_metrics, score
from icmbench.harness.derive.tables import TableSpec
from icmbench.harness.processes.heartbeats import remove_dead_commands, stage
from icmbench.harness.processes.workload import find_missing, incomplete_units, measure_workload
from icmbench.harness.store import leases
from icmbench.harness.store.collection import Collection
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.parallel import for_each
from icmbench.harness.store.references import LEASES
from icmbench.harness.store.tidying import compact, store_index
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.images import write_images
from icmbench.harness.work.outcome import Outcome
from icmbench.harness.work.read_only import refuse_to_compute
from icmbench.harness.work.series import Series
from icmbench.results.scores import normalise


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


def run(
    experiment: Experiment,
    out: str | Path,
    options: RunOptions = DEFAULT_OPTIONS,
    source: Path | None = None,
    settings: Sequence[str] = (),
) -> RunResult:
    """Run an experiment into a folder. What the folder holds already is kept, and only what is missing is computed.

    Args:
        experiment: the experiment.
        out: the run folder or its URL.
        options: how to compute it.
        source: the experiment file, which is copied into the run folder.
        settings: values of `--set`, by which the experiment differs from its file.

    Returns:
        The result. Failures of single cells are part of it.

    Raises:
        UserError: an option or input is wrong, the folder cannot be written, or a newer icmbench wrote files in it.
    """
    started = time.perf_counter()
    folder = Folder(out)
    _check_folder(folder, experiment, source)
    bench = Bench(options.only.part_of(experiment), folder)
    with at_work(bench, experiment) as can_write:
        folder.remove_leftovers()
        remove_dead_commands(folder)
        if can_write:
            bench.store.folder.remove_leftovers()
        if not options.only or not folder.exists("environment.json"):
            _write_record(bench, source, settings)
        gatherer = Gatherer(bench)
        outcome, has_computed = _compute_missing(bench, gatherer, options, can_write)
        computed = time.perf_counter()
        if options.only:
            return _score_part(bench, outcome, computed - started)
        with stage(folder, experiment.name, "makes the tables"):
            if has_computed or not can_write:
                write_images(bench)
            if options.shard:
                return RunResult(outcome, {"loop": computed - started})
            if has_computed:
                _tidy(bench)
                # Workers of a run that was killed a moment before this one began may have lived on for a while, and written.
                bench.store.folder.remove_leftovers()
            elif not can_write:
                bench.source_pixels.save()
            if has_computed or not can_write:
                gatherer = Gatherer(bench)  # What the first one knows is no longer all that there is.
            tables = derive(bench, gatherer, options.processes, options.images)
    seconds = {"loop": computed - started, **tables.seconds}
    shown = (tables.scores, tables.bdrate, tables.report, tables.missing, tables.table_spec)
    return RunResult(outcome, seconds, *shown, tolerated=bench.tolerant)


def _compute_missing(bench: Bench, gatherer: Gatherer, options: RunOptions, can_write: bool) -> tuple[Outcome, bool]:
    """Compute what the store lacks, and recognise all source pixels after that.

    Args:
        bench: the experiment, or the part of it that is asked for.
        gatherer: knows what is there.
        options: how to compute it.
        can_write: whether the store can be written.

    Returns:
        The outcome, and whether there was anything to compute.

    Raises:
        UserError: something is missing in a store that can only be read.
        DatasetError: an image cannot be read, which would end a run that tolerates no failure in its middle.
    """
    missing = find_missing(bench, gatherer.missing)
    units = units_of(bench, options)
    if not options.keep:
        units = incomplete_units(bench, units, missing)
    if not can_write:
        refuse_to_compute(bench, units, options.keep)
        return Outcome(), False
    if not units:
        return Outcome(), False
    if bench.experiment.fail_on_error is True:
        for dataset in bench.datasets.values():
            getattr(dataset, "check_headers", lambda: None)()
    if sum(lease.live for lease in leases.leases(bench.store.folder, LEASES)) > 1:
        random.shuffle(units)  # Processes that fill one store at once should not all compute the same units first.
    for label in () if options.models else bench.tasks:  # Otherwise who holds the models makes the contexts.
        bench.load_context(label)
    outcome = compute(bench, units, measure_workload(bench, units, missing, measure(bench).seconds), options)
    bench.source_pixels.hash_unknown()
    for sentence in bench.source_pixels.describe_repeated():
        print_error(sentence)
    return outcome, True


def _score_part(bench: Bench, outcome: Outcome, seconds: float) -> RunResult:
    """The scores of a part of an experiment. Nothing is written, because the tables of a run are those of the whole."""
    table = score(bench, Gatherer(bench))
    spec = TableSpec(bench.experiment.name, None, primary_metrics(bench))
    return RunResult(
        outcome, {"loop": seconds}, normalise(table.frame), missing=table.missing, table_spec=spec, tolerated=bench.tolerant
    )


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


def _write_record(bench: Bench, source: Path | None, settings: Sequence[str]) -> None:
    """Write environment.json and the copy of the experiment file, with the values of `--set` in it."""
    bench.folder.write_json("environment.json", redact_values(environment(bench)))
    if source is not None:
        text = read_bytes(source, "experiment file").decode()
        if settings:
            words = " ".join(shlex.quote(word) for setting in settings for word in ("--set", setting))
            content = yaml.safe_dump(read_mapping(source, "experiment file", settings), sort_keys=False, allow_unicode=True)
            text = f"# Made from {source.name} by: {' '.join(words.split())}\n{content}"
        bench.folder.write("experiment.yaml", redact(text).encode())  # A comment may hold what the file's values must not.


def _tidy(bench: Bench) -> None:
    """Replace the small shards of complete points by large ones, and store the indices."""
    gatherer = Gatherer(bench)
    points: dict[Collection, list[list[str]]] = {}  # File names of the shards of each point, by collection.
    for label, task in bench.tasks.items():
        predictions = bench.lookup.predictions_of(task)
        of_label = [predictions.shards_of(gatherer.rows(label, series)) for series in bench.series_of(label)]
        points.setdefault(predictions, []).extend(of_label)
    for series in bench.series:
        for dataset in bench.datasets:
            if isinstance(series, Series) and bench.task_labels(dataset):
                streams = bench.lookup.collection(series)
                points.setdefault(streams, []).append(streams.shards_of(gatherer.streams.found(dataset, series).rows))

    def tidy(collection: Collection) -> None:
        compact(collection, points[collection])
        store_index(collection)

    list(for_each(bench.store.folder.fs, tidy, points))
    bench.source_pixels.save()
