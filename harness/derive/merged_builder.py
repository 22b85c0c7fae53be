"""Makes the plug-ins of a merge as they were in the runs, and what stands for those that cannot be made so here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import TaskSection
from icmbench.harness.derive.merging import MergePlan
from icmbench.harness.derive.recorded import RecordedRun, stored_tasks, text_of_fingerprint
from icmbench.harness.derive.stand_ins import MergedSeries, RecordedBuilder, RecordedCodec, RecordedModel, adopt_fingerprint
from icmbench.harness.derive.stream_facts import find_facts
from icmbench.harness.store.inventory import parse_fingerprint
from icmbench.harness.store.pack import Pack
from icmbench.harness.store.pack_export import RecordedSeries
from icmbench.harness.store.store import Store
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.builder import Builder
from icmbench.harness.work.series import AnySeries, Originals
from icmbench.tasks.base import Dataset, Task


class MergedBuilder(Builder):
    """Makes the live objects of a merge.

    Args:
        plan: what is merged.
        store: the store that holds the rows of all runs.

    Attributes:
        left_out: sentences on plug-ins that are stand-ins.
        predicts_here: tasks that are here what they were in the runs.
    """

    def __init__(self, plan: MergePlan, store: Store) -> None:
        super().__init__(plan.experiment)
        self._plan, self._merged_store = plan, store
        self.left_out: list[str] = []
        self.predicts_here: set[str] = set()

    def datasets(self) -> dict[str, Dataset]:
        """The images of the merge by dataset. Raises UserError if a dataset that was here is no longer."""
        built: dict[str, Dataset] = {}
        for name, images in self._plan.images.items():
            here = None if images.source is None else RecordedBuilder(self._plan.runs[images.source]).dataset(name)
            built[name] = images.view(here)
        return built

    def packs(self) -> dict[str, Pack]:
        """None, because nothing is encoded."""
        return {}

    def series(self, packs: Mapping[str, Pack]) -> list[AnySeries]:
        """The originals, and then all points and seeds that a run has, codec by codec."""
        built: list[AnySeries] = [Originals()]
        for recorded, k in self._plan.series:
            built.append(MergedSeries(recorded, self._codec(recorded, self._plan.runs[k]), self._find_facts))
        return built

    def tasks(self, datasets: Mapping[str, Dataset]) -> dict[str, Task]:
        """Tasks by label. Raises UserError if one cannot be made here, or is of another version here."""
        return {section.label: self._task(section, datasets[section.dataset]) for section in self.experiment.tasks}

    def _find_facts(self, series: MergedSeries) -> dict[str, str] | None:
        return find_facts(self._plan, self._merged_store.streams(series.fingerprint, series.about, series.estimated), series)

    @cached_property
    def _stored_tasks(self) -> list[str]:
        stores = {run.store.path: run.store for run in self._plan.runs}
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

    def _task(self, section: TaskSection, dataset: Dataset) -> Task:
        label = section.label
        runs = self._plan.runs_with_task(label)
        parsed = runs[0].tasks[label]
        text = text_of_fingerprint(parsed, self._stored_tasks)
        model = self._model(section, runs, parse_fingerprint(text))
        errors: list[UserError] = []
        for run in runs:
            try:
                task = RecordedBuilder(run).task(label, dataset, model)
            except UserError as error:
                errors.append(error)
                continue
            if adopt_fingerprint(task, parsed, text, f"task {label!r}") and not isinstance(model, RecordedModel):
                self.predicts_here.add(label)
            return task
        raise errors[0]

    def _model(self, section: TaskSection, runs: Sequence[RecordedRun], parsed: Any) -> Any:
        """The model of a task or what stands for it; None if the task has none."""
        if section.model is None:
            return None
        recorded = parsed.get("model") if isinstance(parsed, dict) else None
        model, why = None, ""
        for run in runs:
            try:
                model = RecordedBuilder(run).model(section.label)
                if recorded is None or model.fingerprint == recorded:
                    return model
                why = "it has another fingerprint on this machine"
                break
            except Exception as error:  # As for codecs.
                why = why or reason(error)
        self.left_out.append(f"model {section.model['name']!r} of task {section.label!r}: {why}")
        return RecordedModel(section.model["name"], recorded, model, why)
