"""The experiment's live objects: datasets, codecs and tasks, each built when first needed and once per process."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import Experiment
from icmbench.harness.guests.codec import GuestCodec
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.pack import Pack
from icmbench.harness.store.store import Store
from icmbench.harness.work.activity import Activity
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.blocks import ImageBlock
from icmbench.harness.work.builder import Builder
from icmbench.harness.work.failures import Failures
from icmbench.harness.work.hardware import machine_digest
from icmbench.harness.work.lookup import Lookup, ScoringTask
from icmbench.harness.work.series import AnySeries, Series
from icmbench.harness.work.source_pixels import SourcePixels
from icmbench.tasks.base import Dataset, Task

STORE_VARIABLE = "ICMBENCH_STORE"


class Bench:
    """Datasets, codecs and tasks of one experiment, with its run folder and store.

    It is built in the parent process and again in every worker: only the experiment and the addresses are pickled.

    Args:
        experiment: the validated experiment file.
        folder: the run folder.
        store: the store; by default the one that the experiment or ICMBENCH_STORE names, otherwise `store` in the run folder.

    Attributes:
        seconds_per_image: how long the last chunk of each series took, by its name.
        activity: what this process computes and has computed.
    """

    def __init__(self, experiment: Experiment, folder: Folder, store: Store | None = None) -> None:
        self.experiment = experiment
        self.folder = folder
        self.store = store or Store(_store_address(experiment, folder))
        self.seconds_per_image: dict[str, float] = {}
        self.activity = Activity()
        self._sections = {section.label: section for section in experiment.tasks}
        self._loaded_contexts: set[str] = set()

    def __reduce__(self) -> tuple[type[Bench], tuple[Any, ...]]:
        return Bench, (self.experiment, self.folder, self.store)

    def with_tasks(self, labels: Collection[str]) -> Bench:
        """The same experiment with some of its tasks, for a process that holds their models alone; nothing of it is built yet."""
        tasks = [section for section in self.experiment.tasks if section.label in labels]
        return Bench(self.experiment.model_copy(update={"tasks": tasks}), self.folder, self.store)

    # Plug-ins.

    @cached_property
    def builder(self) -> Builder:
        """Makes the plug-ins."""
        return Builder(self.experiment, self.store)

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """Datasets by name, cut to the experiment's limit. Raises UserError if one cannot be built or is empty."""
        return self.builder.datasets()

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Tasks by label. Raises UserError if one cannot be built, has no images, or cannot score as the experiment asks."""
        return self.builder.tasks(self.datasets)

    @cached_property
    def packs(self) -> dict[str, Pack]:
        """Anchor packs by codec label. Raises UserError if one cannot be read."""
        return self.builder.packs()

    @cached_property
    def series(self) -> list[AnySeries]:
        """The originals, and then all codecs at all points and seeds. Raises UserError if a codec cannot be built."""
        series = self.builder.series(self.packs)
        for codec in (each.codec for each in series if isinstance(each, Series)):
            if isinstance(codec, GuestCodec) and codec.has_facts:
                codec.learn_facts([image_id for dataset in self.datasets.values() for image_id in dataset.ids])
        return series

    # Which task scores what.

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

    def series_of(self, label: str) -> list[AnySeries]:
        """The series that a task sees: all, but for the originals if it compares reconstructions with them."""
        return [series for series in self.series if not (series.is_original and self.tasks[label].needs_originals)]

    def scoring_tasks(self, dataset: str, series: AnySeries) -> dict[str, ScoringTask]:
        """By label, the tasks on one dataset that see a series, each with the images that it scores."""
        return {
            label: (self.tasks[label], self._scored[label])
            for label in self.task_labels(dataset)
            if series in self.series_of(label)
        }

    @cached_property
    def _scored(self) -> dict[str, frozenset[str]]:
        return {label: frozenset(task.ids) for label, task in self.tasks.items()}

    def shares_originals(self, dataset: str) -> bool:
        """Whether a task on a dataset keeps features of the originals from one codec to the next."""
        return any(self.tasks[label].keeps_originals for label in self.task_labels(dataset))

    def blocks(self, dataset: str) -> list[ImageBlock]:
        """A dataset cut into blocks of the experiment's `shard_size` images; the last one may be smaller."""
        ids, size = list(self.datasets[dataset].ids), self.experiment.shard_size
        return [ImageBlock(dataset, i // size, tuple(ids[i : i + size])) for i in range(0, len(ids), size)]

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
        if label not in self._loaded_contexts and task.has_context:
            task.ready = self.store.context(task.context_fingerprint, lambda: _make_context(label, task))
            self._loaded_contexts.add(label)

    # What is recorded and stored.

    @cached_property
    def source_pixels(self) -> SourcePixels:
        """Reads and recognises the images of the datasets."""
        return SourcePixels(self.folder, self.datasets, self.failures, self.tolerant)

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


def _make_context(label: str, task: Task) -> Any:
    try:
        return task.context()
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError) or type(error).__module__.startswith("icmbench."):
            raise
        raise UserError(f"task {label!r}: its context cannot be made: {reason(error)}") from error


def _store_address(experiment: Experiment, folder: Folder) -> str:
    """The experiment's `store`, or ICMBENCH_STORE, or a folder of the run folder. Raises UserError if a file lies there."""
    key, named = ("store", experiment.store) if experiment.store else (STORE_VARIABLE, os.environ.get(STORE_VARIABLE))
    if not named:
        return folder.below("store")
    address = named if "://" in named or key == STORE_VARIABLE else str(experiment.folder / named)
    if "://" not in address and Path(address).is_file():
        raise UserError(f"{key}: {address} is a file; name a folder, which need not exist yet")
    return address
