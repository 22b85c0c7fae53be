"""A merge, for scoring: what runs recorded of their images, and plug-ins or what stands for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from icmbench.harness.config.errors import UserError
from icmbench.harness.derive.bound import Derived
from icmbench.harness.derive.merged_builder import MergedBuilder
from icmbench.harness.derive.merging import MergePlan
from icmbench.harness.derive.stand_ins import MergedSeries
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.store import Store
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import Sources
from icmbench.harness.work.source_pixels import SourcePixels


class MergedBench(Bench):
    """What scoring needs of a merge. Nothing can be computed with it.

    Args:
        plan: what is merged.
        folder: the merged run folder.
        store: the store that holds the rows of all runs.
    """

    def __init__(self, plan: MergePlan, folder: Folder, store: Store) -> None:
        super().__init__(plan.experiment, folder, store)
        self.plan = plan

    def __reduce__(self) -> tuple[type[Bench], tuple[Any, ...]]:
        return MergedBench, (self.plan, self.folder, self.store)

    @cached_property
    def builder(self) -> MergedBuilder:
        """Makes the plug-ins, or what stands for them."""
        return MergedBuilder(self.plan, self.store)

    @cached_property
    def source_pixels(self) -> SourcePixels:
        """What the runs recorded of the images."""
        return MergedPixels(self)

    def load_context(self, label: str) -> None:
        """Give a task its context, which the runs have stored.

        Raises:
            UserError: they have not, and the task here is another one than there.
        """
        task = self.tasks[label]
        is_unknown = task.has_context and label not in self.builder.predicts_here
        if is_unknown and not self.store.has_context(task.context_fingerprint):
            raise UserError(
                f"task {label!r}: no run has stored its context for these images and labels, and its model is not here as it was "
                "in the runs: merge on a machine that has the model"
            )
        super().load_context(label)


class MergedPixels(SourcePixels):
    """Source pixels as the runs that are merged recorded them.

    Args:
        bench: the merge.
    """

    def __init__(self, bench: MergedBench) -> None:
        super().__init__(bench.folder, bench.datasets, bench.failures, bench.tolerant)
        self._bench = bench

    def refresh(self) -> None:
        """Nothing is learned: the runs have recorded their images."""

    def recorded(self, dataset: str, ids: Sequence[str]) -> Sources:
        """Hashes as the runs recorded them; an image that a finished run could not read counts as failed."""
        images = self._bench.plan.images[dataset]
        known = {image_id: images.sha256[image_id] for image_id in ids if image_id in images.sha256}
        tried = self._tried[dataset] if self._tolerant and len(known) < len(ids) else frozenset[str]()
        return Sources(known, {i: "cannot be read" for i in ids if i not in known and i in tried})

    @cached_property
    def _tried(self) -> dict[str, frozenset[str]]:
        """Images by dataset that a task of a finished run scores, so that they were read, or failed and were tolerated."""
        tried: dict[str, frozenset[str]] = {name: frozenset() for name in self._bench.datasets}
        for run in self._bench.plan.runs:
            derived = Derived(run.folder)
            if derived.inputs and not derived.missing:
                for label in run.tasks:
                    tried[self._bench.dataset_of(label)] |= frozenset(self._bench.tasks[label].ids)
        return tried


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
    collection = store.streams(series.fingerprint, estimated=series.estimated)
    collection.refresh()
    ids = list(keys)
    rows = collection.find(list(keys.values()))
    held = [image_id for image_id, row in zip(ids, rows, strict=True) if row >= 0]
    pixels = collection.facts(rows[rows >= 0], ["sha256"]).column(0).to_pylist()
    return {image_id: frozenset([sha256]) for image_id, sha256 in zip(held, pixels, strict=True)}
