"""The experiment's live objects: datasets, codecs and tasks, each built when first needed and once per process."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import Experiment
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.pack import Pack
from icmbench.harness.store.store import Store
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.blocks import ImageBlock, Sources
from icmbench.harness.work.builder import Builder
from icmbench.harness.work.failures import Failures
from icmbench.harness.work.hardware import machine_digest
from icmbench.harness.work.lookup import Lookup, ScoringTask
from icmbench.harness.work.pixels import PixelCache
from icmbench.harness.work.series import AnySeries, Series
from icmbench.harness.work.source_records import SourceRecords
from icmbench.tasks.base import Dataset, DatasetError, Image, Task

STORE_VARIABLE = "ICMBENCH_STORE"
REFRESH_SECONDS = 30.0


class Bench:
    """Datasets, codecs, tasks and source pixels of one experiment, with its run folder and store.

    It is built in the parent process and again in every worker: only the experiment and the addresses are pickled.

    Args:
        experiment: the validated experiment file.
        folder: the run folder.
        store: the store; by default the one that the experiment or ICMBENCH_STORE names, otherwise `store` in the run folder.

    Attributes:
        seconds_per_image: how long the last chunk of each series took, by its name.
    """

    def __init__(self, experiment: Experiment, folder: Folder, store: Store | None = None) -> None:
        self.experiment = experiment
        self.folder = folder
        self.store = store or Store(_store_address(experiment, folder))
        self._pixels = PixelCache()
        self._sections = {section.label: section for section in experiment.tasks}
        self._loaded_contexts: set[str] = set()
        self.seconds_per_image: dict[str, float] = {}
        self._refreshed: dict[tuple[str, tuple[str, ...]], float] = {}  # When the store was last looked at, on the monotonic clock.

    def __reduce__(self) -> tuple[type[Bench], tuple[Experiment, Folder, Store]]:
        return Bench, (self.experiment, self.folder, self.store)

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """Datasets by name, cut to the experiment's limit. Raises UserError if one cannot be built or is empty."""
        return Builder(self.experiment, self.store).datasets()

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Tasks by label. Raises UserError if one cannot be built, has no images, or cannot score as the experiment asks."""
        return Builder(self.experiment, self.store).tasks(self.datasets)

    @cached_property
    def packs(self) -> dict[str, Pack]:
        """Anchor packs by codec label. Raises UserError if one cannot be read."""
        return Builder(self.experiment, self.store).packs()

    @cached_property
    def series(self) -> list[AnySeries]:
        """The originals, and then all codecs at all points and seeds. Raises UserError if a codec cannot be built."""
        return Builder(self.experiment, self.store).series(self.packs)

    # What the experiment file says about tasks.

    def dataset_of(self, label: str) -> str:
        """Name of the dataset of a task."""
        return self._sections[label].dataset

    def model_of(self, label: str) -> str:
        """Name of the model of a task; empty if it has none."""
        model = self._sections[label].model
        return model["name"] if model else ""

    def task_labels(self, dataset: str) -> list[str]:
        """Labels of the tasks on one dataset."""
        return [label for label, section in self._sections.items() if section.dataset == dataset]

    def scoring_tasks(self, dataset: str, series: AnySeries) -> dict[str, ScoringTask]:
        """By label, the tasks on one dataset that see a series, each with the images that it scores."""
        return {
            label: (self.tasks[label], self._scored[label])
            for label in self.task_labels(dataset)
            if not (series.is_original and self.tasks[label].needs_originals)
        }

    @cached_property
    def _scored(self) -> dict[str, frozenset[str]]:
        return {label: frozenset(task.ids) for label, task in self.tasks.items()}

    def series_of(self, label: str) -> list[AnySeries]:
        """The series that a task sees: all, but for the originals if it compares reconstructions with them."""
        return [series for series in self.series if not (series.is_original and self.tasks[label].needs_originals)]

    def shares_originals(self, dataset: str) -> bool:
        """Whether a task on a dataset keeps features of the originals from one codec to the next."""
        return any(self.tasks[label].keeps_originals for label in self.task_labels(dataset))

    @property
    def tolerant(self) -> bool:
        """Whether the experiment tolerates images that fail."""
        return self.experiment.fail_on_error is not True

    def max_failed_images(self, label: str) -> float:
        """How many of a task's images may fail before the task has no score."""
        allowed = self.experiment.fail_on_error
        if allowed is True:
            return 0
        return allowed if allowed >= 1 else allowed * len(self.tasks[label].ids)

    def load_context(self, label: str) -> None:
        """Give a task its context, once per process: the stored one, or a new one, which is stored first."""
        task = self.tasks[label]
        if label in self._loaded_contexts or not task.has_context:
            return

        def compute() -> Any:
            try:
                return task.context()
            except (Exception, SystemExit) as error:
                if isinstance(error, UserError) or type(error).__module__.startswith("icmbench."):
                    raise
                raise UserError(f"task {label!r}: its context cannot be made: {reason(error)}") from error

        task.ready = self.store.context(task.context_fingerprint, compute)
        self._loaded_contexts.add(label)

    # Blocks of images and their pixels.

    def blocks(self, dataset: str) -> list[ImageBlock]:
        """A dataset cut into blocks of the experiment's `shard_size` images; the last one may be smaller."""
        ids, size = list(self.datasets[dataset].ids), self.experiment.shard_size
        return [ImageBlock(dataset, i // size, tuple(ids[i : i + size])) for i in range(0, len(ids), size)]

    def read(self, dataset: str, image_id: str) -> Image:
        """Source pixels, read-only uint8 (height, width, 3); the latest ones are kept in memory.

        Raises:
            DatasetError: the image cannot be read.
        """
        return self._pixels.read(dataset, image_id, self.datasets[dataset].read)

    def read_recorded(self, dataset: str, image_id: str, sources: Sources) -> Image:
        """Source pixels, as `read` returns them, compared with the hash that was recorded of them.

        Raises:
            DatasetError: the image cannot be read, or has other pixels than those recorded.
        """
        image = self.read(dataset, image_id)
        if self._pixels.sha256(dataset, image_id, self.datasets[dataset].read) != sources.sha256[image_id]:
            path = self.datasets[dataset].path(image_id)
            raise DatasetError(
                f"{path} has other pixels than were recorded of it: if it was changed during this run, run the same command again; "
                f"otherwise delete {self.folder.full_path('sources')} first"
            )
        return image

    def drop_pixels_except(self, block: ImageBlock) -> None:
        """Free the source pixels of all blocks but one."""
        self._pixels.keep_only({(block.dataset, image_id) for image_id in block.ids})

    # What is recorded and stored.

    @cached_property
    def source_records(self) -> dict[str, SourceRecords]:
        """Recorded hashes of the source pixels, by dataset."""
        return {name: SourceRecords(self.folder, dataset) for name, dataset in self.datasets.items()}

    @cached_property
    def failures(self) -> Failures:
        """Failures that the experiment tolerates."""
        return Failures(self.folder)

    @cached_property
    def lookup(self) -> Lookup:
        """Finds streams and predictions in the store."""
        return Lookup(self.store, self.failures, self.tolerant)

    @cached_property
    def machine(self) -> str:
        """A digest of hardware and versions, recorded beside measured seconds."""
        return machine_digest()

    def refresh_sources(self) -> None:
        """Learn of the source pixels that other processes hashed since."""
        for records in self.source_records.values():
            records.refresh()

    def refresh(self, dataset: str, series: Sequence[AnySeries], force: bool = True) -> None:
        """Learn of the streams, claims and predictions that other processes wrote since.

        Args:
            dataset: the dataset of the tasks whose predictions are asked for.
            series: the series whose streams are asked for.
            force: whether to look in any case. Otherwise an object store, where each look costs requests, is
                asked again only after `REFRESH_SECONDS`.
        """
        key, now = (dataset, tuple(each.name for each in series)), time.monotonic()
        is_recent = now - self._refreshed.get(key, -math.inf) < REFRESH_SECONDS
        if not force and is_recent and not isinstance(self.store.folder.fs, LocalFileSystem):
            return
        self._refreshed[key] = now
        for each in series:
            if isinstance(each, Series):
                self.lookup.collection(each).refresh()
                if not each.deterministic:
                    self.store.claims(each.fingerprint).refresh()
        for label in self.task_labels(dataset):
            self.lookup.predictions_of(self.tasks[label]).refresh()
        self.failures.refresh()

    def recorded_sources(self, dataset: str, ids: Sequence[str]) -> Sources:
        """Recorded hashes and shapes of source pixels, and recorded failures to read them.

        No image is read, but for those whose files cannot be recognised between runs because their ctime is not to be trusted.
        """
        records = self.source_records[dataset]
        if untrusted := records.untrusted(ids):
            self._hash_sources(dataset, untrusted, self.tolerant)
        sources = records.recorded(ids)
        if self.tolerant and len(self.failures):
            absent = [image_id for image_id in ids if image_id not in sources.sha256]
            failed = self.failures.are_recorded([records.failure_key(image_id) for image_id in absent])
            sources.errors.update({i: "cannot be read" for i, is_failed in zip(absent, failed, strict=True) if is_failed})
        return sources

    def hash_unknown_sources(self) -> None:
        """Hash the images whose files have changed since their pixels were recorded, if only in their ctime.

        A hard link that is made or removed elsewhere changes it, as when an environment that shares packages with this one is
        deleted. Images that cannot be read are passed over.
        """
        self.refresh_sources()
        for name, dataset in self.datasets.items():
            recorded = self.recorded_sources(name, dataset.ids)
            unknown = [i for i in dataset.ids if i not in recorded.sha256 and i not in recorded.errors]
            self._hash_sources(name, unknown, tolerant=True)

    def sources(self, block: ImageBlock) -> Sources:
        """Hashes and shapes of a block's source pixels: the recorded ones, or new ones, which are recorded.

        Raises:
            DatasetError: an image cannot be read, and the experiment does not tolerate failures.
        """
        return self._hash_sources(block.dataset, block.ids, self.tolerant)

    def _hash_sources(self, dataset: str, ids: Sequence[str], tolerant: bool) -> Sources:
        """Recorded and new hashes of images; those that cannot be read are failures if the experiment tolerates some."""
        records = self.source_records[dataset]

        def read(image_id: str) -> Image:
            return self.read(dataset, image_id)

        def sha256(image_id: str) -> str:
            return self._pixels.sha256(dataset, image_id, self.datasets[dataset].read)

        sources = records.hash(ids, read, sha256, tolerant)
        if self.tolerant:
            self.failures.record({records.failure_key(image_id): text for image_id, text in sources.errors.items()})
        return sources


def _store_address(experiment: Experiment, folder: Folder) -> str:
    """The experiment's `store`, or ICMBENCH_STORE, or a folder of the run folder."""
    if experiment.store:
        return experiment.store if "://" in experiment.store else str(experiment.folder / experiment.store)
    return os.environ.get(STORE_VARIABLE) or folder.below("store")
