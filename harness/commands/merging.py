"""Merges runs into a run folder of its own.

    runs -> union of codecs and tasks -> rows of all stores -> scores, intervals, BD table and report, derived anew

No codec and no model is called. What this machine cannot make of them is taken from what the runs recorded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from icmbench.harness.commands.computing import RUNNING
from icmbench.harness.commands.console import print_error
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.secrets import redact, redact_values
from icmbench.harness.derive.deriving import Tables, derive
from icmbench.harness.derive.environment import environment
from icmbench.harness.derive.gathering import Gatherer
from icmbench.harness.derive.merged_bench import MergedBench, held_pixels
from icmbench.harness.derive.merging import plan_merge
from icmbench.harness.derive.recorded import RecordedRun, read_run
from icmbench.harness.derive.stand_ins import MergedSeries
from icmbench.harness.store.copying import Selection, copy
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.inventory import take_inventory
from icmbench.harness.store.keys import digest
from icmbench.harness.store.leases import hold, leases
from icmbench.harness.store.references import (
    ENVIRONMENT,
    INNER_STORE,
    is_same_place,
)
from icmbench.harness.store.shards import SHARD_NAME
from icmbench.harness.store.store import Store, parse_context
from icmbench.harness.store.usage import read_only_note, use_store
from icmbench.harness.store.verifying import Damaged, read_shard
from icmbench.harness.work.images import write_images
from icmbench.harness.work.read_only import refuse_to_make_contexts

RECORDED = ("command", "python", "packages", "git", "hardware", "store", "packs", "merged")  # Of each run in environment.json.


@dataclass(frozen=True)
class Merged:
    """A merged run.

    Attributes:
        tables: its tables.
        notes: sentences on what differs between the runs.
        left_out: sentences on plug-ins that are not here as they were in the runs.
        damaged: sentences on files of stores that were left out because they are damaged.
    """

    tables: Tables
    notes: Sequence[str]
    left_out: Sequence[str]
    damaged: Sequence[str]


def merge(
    addresses: Sequence[str], out: str, common: bool = False, base: Path | None = None, workers: int = 1, image_count: int = 12
) -> Merged:
    """Merge runs into a folder of their own.

    Args:
        addresses: run folders or their URLs.
        out: the folder of the merged run: a new one, or that of an earlier merge of the same runs or the first of them.
        common: whether datasets of which the runs have different images are cut to the images that all of them have.
        base: where relative paths of the experiments start; see `icmbench.harness.derive.recorded.read_run`.
        workers: worker processes for slow resampling.
        image_count: how many images the report shows.

    Raises:
        UserError: a run cannot be read, the runs do not fit together, or the folder cannot be written.
    """
    runs = [read_run(address, base) for address in addresses]
    folder = Folder(out)
    _refuse_folder(folder, runs)
    plan, shared = plan_merge(runs, common), _shared_store(runs)
    plan = dataclasses.replace(plan, experiment=plan.experiment.model_copy(update={"store": shared}))
    store = Store(shared or folder.below(INNER_STORE))
    bench = MergedBench(plan, folder, store)
    fingerprints = [digest(each.fingerprint) for each in bench.series if isinstance(each, MergedSeries)]
    fingerprints += [digest(task.fingerprint) for task in bench.tasks.values()]
    contexts = [digest(task.context_fingerprint) for task in bench.tasks.values() if task.has_context]
    facts = {"experiment": plan.experiment.name, "digest": digest(plan.experiment.model_dump_json()), "run": folder.root}
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold(folder, RUNNING, facts))
        if not stack.enter_context(use_store(store.folder, folder, facts, [*fingerprints, *contexts])):
            refuse_to_make_contexts(bench)
            print_error(read_only_note(store.folder))
        damaged = _copy_rows(runs, store, fingerprints, contexts)
        for run in runs:
            _copy_records(run, folder)
        gatherer = Gatherer(bench)
        _refuse_mixed_pixels(bench, gatherer)
        _write_record(bench)
        write_images(bench)
        tables = derive(bench, gatherer, workers, image_count)
    return Merged(tables, plan.notes, bench.builder.left_out, damaged)


def _refuse_folder(folder: Folder, runs: Sequence[RecordedRun]) -> None:
    """Raise UserError if a folder is not one to merge into."""
    for k, run in enumerate(runs):
        if is_same_place(run.folder, folder):
            raise UserError(f"{folder.root} is one of the runs that are merged: choose another --out")
        if any(is_same_place(run.folder, other.folder) for other in runs[:k]):
            raise UserError(f"{run.address} is named twice: name each run once")
    record = folder.read_json(ENVIRONMENT)
    if not record and (folder.exists(ENVIRONMENT) or folder.exists("experiment.yaml")):
        raise UserError(f"{folder.root} holds files that are no merge's and would be overwritten: choose another --out")
    earlier = [each.get("run") for each in record.get("merged") or []]
    # What a merge holds stands. Rows of a run that is no longer among the runs must not enter its tables.
    if record and (not earlier or earlier != [run.address for run in runs][: len(earlier)]):
        raise UserError(f"{folder.root} belongs to another run or to a merge of other runs: choose another --out")
    for lease in leases(folder, RUNNING):
        if lease.live:
            who = f"process {lease.facts['pid']} on {lease.facts.get('host')}"
            raise UserError(f"{folder.root}: another command ({who}) is writing there: wait until it has ended")


def _shared_store(runs: Sequence[RecordedRun]) -> str | None:
    """Address of the store that all runs share, outside their folders, so that nothing need be copied; None if there is none."""
    store = runs[0].store
    if not all(is_same_place(store, run.store) for run in runs):
        return None
    return None if any(is_same_place(store, Folder(run.folder.below(INNER_STORE))) for run in runs) else store.root


def _copy_rows(runs: Sequence[RecordedRun], store: Store, fingerprints: Sequence[str], contexts: Sequence[str]) -> list[str]:
    """Copy what the stores of the runs hold of the merge, the first run's first; return sentences on damaged files."""
    damaged = []
    for run in runs:
        if is_same_place(run.store, store.folder):
            continue
        inventory = take_inventory(run.store)
        present = {place for _, place in inventory.collections} & {*fingerprints}
        if present:
            selection = Selection(fingerprints=tuple(sorted(present)))
            damaged += copy(run.store.root, store.folder.root, selection, pictures=True).damaged
        for file in inventory.contexts:
            if file.digest in contexts and not store.folder.exists(file.name):
                data = run.store.read(file.name)
                try:
                    parse_context(data)
                except Exception as error:  # numpy and zipfile raise a dozen types on damaged files.
                    damaged.append(f"{run.store.full_path(file.name)}: {' '.join(str(error).split())}")
                    continue
                store.folder.write(file.name, data, replace=False)
    return damaged


def _copy_records(run: RecordedRun, folder: Folder) -> None:
    """Copy a run's records of failures and of source files.

    Raises:
        UserError: one is damaged.
    """
    for kind in ("failures", "sources"):
        for place in run.folder.names(kind):
            for name in run.folder.names(place):
                if SHARD_NAME.fullmatch(name.rpartition("/")[2]):
                    try:
                        data, _ = read_shard(run.folder, name)
                    except Damaged as error:
                        raise UserError(f"{run.folder.full_path(name)} is damaged ({error}): delete it and run it again") from error
                    folder.write(name, data, replace=False)


def _refuse_mixed_pixels(bench: MergedBench, gatherer: Gatherer) -> None:
    """Refuse runs that decoded a stream to different pixels, unless all tasks have predictions on those of the first run.

    Raises:
        UserError: there are such images.
    """
    stores = {run.address: Store(run.store.root) for run in bench.plan.runs}
    for series in bench.series:
        if not isinstance(series, MergedSeries):
            continue
        holders = [run for run in bench.plan.runs if run.has(series.label, series.point, series.seed)]
        if len({run.store.path for run in holders}) < 2:
            continue
        for dataset in (name for name in bench.datasets if bench.task_labels(name)):
            keys = gatherer.streams.look_up(dataset, series).keys
            first: dict[str, tuple[frozenset[str], RecordedRun]] = {}  # The first run that has pixels of an image, and these.
            others: dict[str, RecordedRun] = {}  # The first later run that has other ones.
            for run in holders:
                for image_id, pixels in held_pixels(stores[run.address], series, keys).items():
                    if pixels - first.setdefault(image_id, (pixels, run))[0]:
                        others.setdefault(image_id, run)
            if others:
                _check_mixed_pixels(gatherer, dataset, series, first, others)


def _check_mixed_pixels(
    gatherer: Gatherer,
    dataset: str,
    series: MergedSeries,
    first: Mapping[str, tuple[frozenset[str], RecordedRun]],
    others: Mapping[str, RecordedRun],
) -> None:
    bench, streams = gatherer.bench, gatherer.streams
    pixels_of = dict(zip(streams.found(dataset, series).ids, streams.pixels(dataset, series), strict=True))
    labels = bench.task_labels(dataset)
    missing = {label: frozenset(gatherer.missing(label, series)) for label in labels}
    mixed = [
        image_id
        for image_id, run in others.items()
        if pixels_of[image_id] not in first[image_id][0]
        or any(image_id in missing[label] for label in labels if label in run.tasks)
    ]
    if mixed:
        one, other = first[mixed[0]][1], others[mixed[0]]
        names = ", ".join(repr(label) for label in labels if label in one.tasks or label in other.tasks)
        raise UserError(
            f"codec {series.name!r}: {len(mixed)} images, {mixed[0]!r} first, have other reconstructions in {other.address} than "
            f"in {one.address}, and the tasks {names} did not all see the same ones: compute these tasks in one run, or in runs "
            "that share one `store`"
        )


def _write_record(bench: MergedBench) -> None:
    """Write environment.json and the merged experiment."""
    plan = bench.plan
    packs = {label: sha256 for run in reversed(plan.runs) for label, sha256 in (run.environment.get("packs") or {}).items()}
    parts = [{"run": run.address, **{key: run.environment.get(key) for key in RECORDED}} for run in plan.runs]
    record = {**environment(bench), "packs": packs, "merged": parts, "notes": [*plan.notes, *bench.builder.left_out]}
    bench.folder.write_json(ENVIRONMENT, redact_values(record))
    text = yaml.safe_dump(json.loads(plan.experiment.model_dump_json()), sort_keys=False, allow_unicode=True)
    heading = f"# Merged by icmbench of {' '.join(', '.join(run.address for run in plan.runs).split())}\n"
    bench.folder.write("experiment.yaml", redact(heading + text).encode())
