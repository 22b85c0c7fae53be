"""The live objects of a merge, for scoring: plug-ins where they can be made here, and stand-ins where they cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from icmbench.harness.config.errors import UserError
from icmbench.harness.derive.bound import Derived
from icmbench.harness.derive.merging import MergePlan
from icmbench.harness.derive.recorded import RecordedRun, stored_tasks, text_of_fingerprint
from icmbench.harness.derive.stand_ins import (
    MergedSeries,
    RecordedBuilder,
    RecordedCodec,
    RecordedModel,
    adopt_fingerprint,
)
from icmbench.harness.store.collection import SHARD_NAME, Collection
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.inventory import parse_fingerprint
from icmbench.harness.store.keys import digest
from icmbench.harness.store.pack import Pack
from icmbench.harness.store.pack_export import RecordedSeries
from icmbench.harness.store.store import Store
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import Sources
from icmbench.harness.work.series import AnySeries, Originals
from icmbench.tasks.base import Dataset, Task

STREAMS = "streams.parquet"


class MergedBench(Bench):
    """What scoring needs of a merge. Nothing can be computed with it.

    Args:
        plan: what is merged.
        folder: the merged run folder.
        store: the store that holds the rows of all runs.

    Attributes:
        left_out: sentences on plug-ins that are stand-ins.
    """

    def __init__(self, plan: MergePlan, folder: Folder, store: Store) -> None:
        super().__init__(plan.experiment, folder, store)
        self.plan = plan
        self.left_out: list[str] = []
        self._predicts_here: set[str] = set()  # Tasks that are here what they were in the runs.

    def __reduce__(self) -> tuple[type[Bench], tuple[Any, ...]]:
        return MergedBench, (self.plan, self.folder, self.store)

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """The images of the merge by dataset. Raises UserError if a dataset that was here is no longer."""
        built: dict[str, Dataset] = {}
        for name, images in self.plan.images.items():
            here = None if images.source is None else RecordedBuilder(self.plan.runs[images.source]).dataset(name)
            built[name] = images.view(here)
        return built

    @cached_property
    def packs(self) -> dict[str, Pack]:
        """None, because nothing is encoded."""
        return {}

    @cached_property
    def series(self) -> list[AnySeries]:
        """The originals, and then all points and seeds that a run has, codec by codec."""
        codecs = [(recorded, self._codec(recorded, self.plan.runs[k])) for recorded, k in self.plan.series]
        return [Originals(), *(MergedSeries(recorded, codec, self._find_facts) for recorded, codec in codecs)]

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Tasks by label. Raises UserError if one cannot be made here, or is of another version here."""
        return {section.label: self._task(section.label) for section in self.experiment.tasks}

    def load_context(self, label: str) -> None:
        """Give a task its context, which the runs have stored.

        Raises:
            UserError: they have not, and the task here is another one than there.
        """
        task = self.tasks[label]
        if task.has_context and label not in self._predicts_here:
            name = f"contexts/{digest(task.context_fingerprint)}.npz"
            if not self.store.folder.exists(name):
                raise UserError(
                    f"task {label!r}: no run has stored its context for these images and labels, and its model is not here as it "
                    "was in the runs: merge on a machine that has the model"
                )
        super().load_context(label)

    def refresh_sources(self) -> None:
        """Nothing is learned of source pixels: the runs that are merged have recorded them."""

    def recorded_sources(self, dataset: str, ids: Sequence[str]) -> Sources:
        """Hashes of source pixels as the runs recorded them; an image that a finished run could not read counts as failed."""
        images = self.plan.images[dataset]
        known = {image_id: images.sha256[image_id] for image_id in ids if image_id in images.sha256}
        tried = self._tried[dataset] if self.tolerant and len(known) < len(ids) else frozenset[str]()
        return Sources(known, {i: "cannot be read" for i in ids if i not in known and i in tried})

    @cached_property
    def _tried(self) -> dict[str, frozenset[str]]:
        """Images by dataset that a task of a finished run scores, so that they were read, or failed and were tolerated."""
        tried: dict[str, frozenset[str]] = {name: frozenset() for name in self.datasets}
        for run in self.plan.runs:
            derived = Derived(run.folder)
            if derived.inputs and not derived.missing:
                for label in run.tasks:
                    tried[self.dataset_of(label)] |= frozenset(self.tasks[label].ids)
        return tried

    # Plug-ins.

    @cached_property
    def _stored_tasks(self) -> list[str]:
        stores = {run.store.path: run.store for run in self.plan.runs}
        return [text for store in stores.values() for text in stored_tasks(store)]

    def _codec(self, recorded: RecordedSeries, run: RecordedRun) -> Any:
        try:
            codec = RecordedBuilder(run).codec(recorded)
            if codec.fingerprint == recorded.fingerprint:
                return codec
            why = "it has another fingerprint on this machine"
        except Exception as error:  # A fingerprint may be computed when it is read, from files that are not here.
            why = reason(error)
        self.left_out.append(f"codec {recorded.label!r} at {recorded.point}: {why}")
        return RecordedCodec(recorded, why)

    def _task(self, label: str) -> Task:
        runs = self.plan.runs_with_task(label)
        parsed = runs[0].tasks[label]
        text = text_of_fingerprint(parsed, self._stored_tasks)
        model = self._model(label, runs, parse_fingerprint(text))
        errors: list[UserError] = []
        for run in runs:
            try:
                task = RecordedBuilder(run).task(label, self.datasets[self.dataset_of(label)], model)
            except UserError as error:
                errors.append(error)
                continue
            if adopt_fingerprint(task, parsed, text, f"task {label!r}") and not isinstance(model, RecordedModel):
                self._predicts_here.add(label)
            return task
        raise errors[0]

    def _model(self, label: str, runs: Sequence[RecordedRun], parsed: Any) -> Any:
        """The model of a task or what stands for it; None if the task has none."""
        if not self.model_of(label):
            return None
        recorded = parsed.get("model") if isinstance(parsed, dict) else None
        model, why = None, ""
        for run in runs:
            try:
                model = RecordedBuilder(run).model(label)
                if recorded is None or model.fingerprint == recorded:
                    return model
                why = "it has another fingerprint on this machine"
                break
            except Exception as error:  # As for codecs.
                why = why or reason(error)
        self.left_out.append(f"model {self.model_of(label)!r} of task {label!r}: {why}")
        return RecordedModel(self.model_of(label), recorded, model, why)

    # What codecs took from files.

    def _find_facts(self, series: MergedSeries) -> dict[str, str] | None:
        """For each image the digest under which its stream is stored, as far as that can be told; None if there are no facts.

        The first run that reported a stream of the image tells which of those with its source pixels it is; otherwise the codec
        itself does, if it is here.
        """
        collection = self.lookup.collection(series)
        if not _have_facts(collection):
            return None
        collection.refresh()
        table = collection.read(collection.all_rows(), ["source", "facts", "sha256", "bytes"])
        stored: dict[str, list[tuple[str, str, int]]] = {}
        for source, *row in zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True):
            stored.setdefault(source, []).append((row[0], row[1], row[2]))
        found: dict[str, str] = {}
        for name, images in self.plan.images.items():
            for run in self.plan.runs:
                for image_id, reported in _reported_streams(run, name, series):
                    source = images.sha256.get(image_id)
                    if source is not None and run.hashes(name).get(image_id) == source:
                        matching = [facts for facts, *stream in stored.get(source, []) if tuple(stream) == reported]
                        found |= {image_id: matching[0]} if matching and image_id not in found else {}
            if not isinstance(series.codec, RecordedCodec):
                unknown = [image_id for image_id in images.ids if image_id not in found]
                found |= {image_id: series.facts_here(image_id) for image_id in unknown}
        return found


def _have_facts(collection: Collection) -> bool:
    """Whether the facts of any stored stream are more than empty; only the footers of shards are read."""
    folder = collection.folder
    for name in folder.names(collection.place):
        if not SHARD_NAME.fullmatch(name.rpartition("/")[2]):
            continue
        try:
            with folder.fs.open(folder.full_path(name), "rb") as file:
                footer = pq.read_metadata(file)
            column = footer.schema.to_arrow_schema().get_field_index("facts")
            groups = [footer.row_group(k).column(column).statistics for k in range(footer.num_row_groups)]
        except FileNotFoundError:  # Another process has replaced it by a larger shard.
            continue
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{folder.full_path(name)} cannot be read ({' '.join(str(error).split())}): delete it") from error
        if any(group is None or group.max != "" for group in groups):
            return True
    return False


def _reported_streams(run: RecordedRun, dataset: str, series: MergedSeries) -> Iterator[tuple[str, tuple[str, int]]]:
    """Image, hash of its pixels and bytes of every stream of a series that the tables of a run are made from."""
    try:
        Derived(run.folder).check(STREAMS)
        table = run.folder.read_table(STREAMS, ["codec", "point", "dataset", "id", "sha256", "bytes"])
    except (UserError, FileNotFoundError):  # It has no finished tables.
        return
    for column, value in (("codec", series.label), ("point", series.point_name), ("dataset", dataset)):
        table = table.filter(pc.equal(table.column(column), value))
    columns = (table.column(name).to_pylist() for name in ("id", "sha256", "bytes"))
    for image_id, sha256, size in zip(*columns, strict=True):
        yield image_id, (sha256, size)


def held_pixels(store: Store, series: MergedSeries, keys: Mapping[str, bytes]) -> dict[str, frozenset[str]]:
    """Reconstructions of a series that a store has, by image id: the stored ones, or where decoding differs, all claimed ones.

    Args:
        store: the store of one run.
        series: the series.
        keys: keys of the streams by image id.
    """
    if not series.deterministic:
        claims = store.claims(series.fingerprint)
        claims.refresh()
        claimed = {image_id: frozenset(claims.generations(key).values()) - {""} for image_id, key in keys.items()}
        return {image_id: pixels for image_id, pixels in claimed.items() if pixels}
    collection = store.streams(series.fingerprint)
    collection.refresh()
    ids = list(keys)
    rows = collection.find(list(keys.values()))
    held = [image_id for image_id, row in zip(ids, rows, strict=True) if row >= 0]
    pixels = collection.facts(rows[rows >= 0], ["sha256"]).column(0).to_pylist()
    return {image_id: frozenset([sha256]) for image_id, sha256 in zip(held, pixels, strict=True)}
