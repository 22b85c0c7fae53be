"""What stands for plug-ins of a run that cannot be made on this machine, or are others here than where the run was computed.

Scoring looks up streams and predictions by fingerprint. It calls no codec and no model, so that neither their programs nor their
weights need be here. Stand-ins have the recorded fingerprints, and say why they are no more than that when they are called.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from icmbench.codecs.base import Codec, CodecError, RatePoint
from icmbench.harness.config import plugins
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import TaskSection
from icmbench.harness.derive.recorded import RecordedRun
from icmbench.harness.store.pack_export import RecordedSeries
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.builder import Builder
from icmbench.harness.work.series import Series
from icmbench.tasks.base import Dataset, DatasetError, Image, Target, Task
from icmbench.tasks.models.errors import ModelError

NOT_HERE = "is only known by what runs recorded of it"


class RecordedCodec:
    """Stands for a codec that cannot be made here, or has another fingerprint here, at one rate point.

    Args:
        series: what the run recorded of it.
        why: why the codec itself is not used.
    """

    def __init__(self, series: RecordedSeries, why: str) -> None:
        self.name, self.fingerprint, self.deterministic = series.codec, series.fingerprint, series.deterministic
        self.point = RatePoint(series.point, 0.0)
        self._why = why

    def compress(self, image: Image) -> bytes:
        """Raises CodecError."""
        raise CodecError(f"codec {self.name!r} {NOT_HERE}: {self._why}")

    def decompress(self, data: bytes) -> Image:
        """Raises CodecError."""
        raise CodecError(f"codec {self.name!r} {NOT_HERE}: {self._why}")


class MergedSeries(Series):
    """A codec at one point and seed, of which runs recorded the streams.

    Args:
        recorded: what the first run that has it recorded.
        codec: the codec, or what stands for it.
        find_facts: called once with the series; returns digests of what the codec took from files by the image's id when the
            streams were made, by image id, or None for a codec that takes nothing.
    """

    def __init__(
        self, recorded: RecordedSeries, codec: Any, find_facts: Callable[[MergedSeries], Mapping[str, str] | None]
    ) -> None:
        super().__init__(recorded.label, recorded.point, recorded.seed, codec, recorded.given)
        self.deterministic, self.measured_elsewhere = recorded.deterministic, recorded.measured_elsewhere
        self.estimated = recorded.estimated
        self._find_facts = find_facts

    @cached_property
    def _facts_of_image(self) -> Mapping[str, str] | None:
        return self._find_facts(self)

    def facts(self, image_id: str) -> str:
        """What `Series.facts` returned when the streams were made; "unknown", under which there is no stream, if that is lost."""
        return "" if self._facts_of_image is None else self._facts_of_image.get(image_id, "unknown")

    def facts_here(self, image_id: str) -> str:
        """A digest of what the codec takes from files by the image's id on this machine."""
        return super().facts(image_id)


class RecordedModel:
    """Stands for a task model whose fingerprint is another one here, or which cannot be made here. It has the recorded fingerprint.

    Args:
        name: the model.
        fingerprint: what a run recorded as its fingerprint.
        model: the model as it is here, whose options and class names serve in scoring; None if it cannot be made.
        why: why it is not used itself.
    """

    def __init__(self, name: str, fingerprint: str | None, model: Any, why: str) -> None:
        self.fingerprint = fingerprint
        self._name, self._model, self._why = name, model, why

    def __call__(self, images: Sequence[Image]) -> Sequence[Any]:
        """Raises ModelError."""
        raise ModelError(f"model {self._name!r} {NOT_HERE}: {self._why}")

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_") or self._model is None:
            raise AttributeError(f"its {attribute!r} is needed, but the model {self._name!r} {NOT_HERE}: {self._why}")
        return getattr(self._model, attribute)


def adopt_fingerprint(task: Task, parsed: Any, text: str, where: str) -> bool:
    """Give a task the fingerprint under which its predictions are stored.

    Args:
        task: the task as it is made here.
        parsed: the recorded fingerprint, parsed where it is JSON.
        text: the same as text.
        where: the task, for the message.

    Returns:
        Whether the task has the same fingerprint here, so that it could predict here what the runs predicted.

    Raises:
        UserError: the task's code here is of another version, so that it may read its predictions differently.
    """
    try:
        here = task.fingerprint
    except Exception as error:  # It may hash weights that are not here.
        here = f"cannot be told here: {reason(error)}"
    if here == text:
        return True
    recorded = (parsed.get("task"), parsed.get("version")) if isinstance(parsed, dict) else (None, None)
    if recorded != (task.name, task.version):
        made = f"version {recorded[1]} of {recorded[0]!r}" if recorded[0] else "another version"
        raise UserError(f"{where} was predicted by {made}, and here is version {task.version}: use the same icmbench and plug-ins")
    kind: Any = type(task)
    members = {"fingerprint": text, "__module__": kind.__module__, "__doc__": kind.__doc__}
    task.__class__ = types.new_class(kind.__name__, (kind,), exec_body=lambda namespace: namespace.update(members))
    return False


class RecordedDataset:
    """The images of runs under the ids that they recorded; labels and pixels come from the dataset on this machine.

    Args:
        name: the dataset's key in the experiment.
        ids: the images.
        limit: their number if they are not the whole dataset.
        preprocessing: what the runs recorded of their preprocessing.
        dataset: the dataset, which may hold more images; None if it cannot be made here.
        why: why it cannot.
    """

    def __init__(
        self, name: str, ids: Sequence[str], limit: int | None, preprocessing: str, dataset: Dataset | None, why: str
    ) -> None:
        self.name, self.limit, self.preprocessing = name, limit, preprocessing
        self.ids: Sequence[str] = list(ids)
        self._dataset, self._why = dataset, why

    @property
    def _here(self) -> Dataset:
        if self._dataset is None:
            raise DatasetError(f"dataset {self.name!r} {NOT_HERE} ({self._why}): name the folder of its paths by --folder")
        return self._dataset

    def path(self, image_id: str) -> Path:
        """Path of an image on this machine. Raises DatasetError if the dataset is not here."""
        return self._here.path(image_id)

    def read(self, image_id: str) -> Image:
        """Source pixels of an image, uint8 (height, width, 3). Raises DatasetError if the dataset is not here."""
        return self._here.read(image_id)

    def annotated(self, kind: str) -> list[str]:
        """Those of the images that have annotations of a kind. Raises DatasetError if the dataset is not here."""
        annotated = frozenset(self._here.annotated(kind))
        return [image_id for image_id in self.ids if image_id in annotated]

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """What the dataset here has as targets of images. Raises DatasetError if the dataset is not here."""
        return self._here.targets(kind, ids)

    def __getattr__(self, attribute: str) -> Any:
        """Whatever else the dataset has, such as names of categories."""
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        if self._dataset is None:
            raise AttributeError(f"{attribute}: dataset {self.name!r} {NOT_HERE} ({self._why})")
        return getattr(self._dataset, attribute)


class RecordedBuilder(Builder):
    """Makes plug-ins of a run as its experiment describes them, one at a time, without the checks of a whole experiment.

    Args:
        run: the run.
    """

    def __init__(self, run: RecordedRun) -> None:
        super().__init__(run.experiment)

    def dataset(self, name: str) -> Dataset:
        """A dataset of the run. Raises UserError if it cannot be made here."""
        section = {name: self.experiment.datasets[name]}
        return Builder(self.experiment.model_copy(update={"datasets": section})).datasets()[name]

    def codec(self, series: RecordedSeries) -> Codec:
        """The codec of a series. Raises UserError if it cannot be made here."""
        index = next(k for k, section in enumerate(self.experiment.codecs) if section.label == series.label)
        return self._build_codec(self.experiment.codecs[index], f"codecs.{index}", series.given, series.seed, pack=None)

    def model(self, label: str) -> Any:
        """The model of a task that has one. Raises UserError if it cannot be made here."""
        index, section = self._task_section(label)
        assert section.model is not None
        return self._build_model(section.model, f"tasks.{index}.model")

    def task(self, label: str, dataset: Dataset, model: Any) -> Task:
        """A task.

        Args:
            label: its label.
            dataset: its images.
            model: its model or what stands for it; None if it has none.

        Raises:
            UserError: it cannot be made here, or has no images.
        """
        index, section = self._task_section(label)
        supplied = {"dataset": dataset, "reference": section.reference} | ({} if model is None else {"model": model})
        task: Task = self._build(
            plugins.load("tasks", section.name, f"tasks.{index}"), section.name, section.set, f"tasks.{index}", supplied
        )
        if not task.ids:
            lacking = f"was given no {task.annotation!r} annotations to score against"
            raise UserError(f"tasks.{index}: dataset {section.dataset!r} {lacking}")
        return task

    def _task_section(self, label: str) -> tuple[int, TaskSection]:
        return next((k, section) for k, section in enumerate(self.experiment.tasks) if section.label == label)
