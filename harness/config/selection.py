"""A part of an experiment, as `--only` names it: some of its codecs, tasks, datasets and points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from icmbench.harness.config.errors import UserError, unknown_message
from icmbench.harness.config.experiment import Experiment

KINDS = ("codec", "task", "dataset", "point")


@dataclass(frozen=True)
class Selection:
    """Names of what is selected; an empty tuple stands for everything of its kind.

    Attributes:
        codec: labels of codecs.
        task: labels of tasks.
        dataset: names of datasets.
        point: rate points, each as the experiment file writes it (`20`) or as tables name it (`quality=20`).
    """

    codec: tuple[str, ...] = field(default=())
    task: tuple[str, ...] = field(default=())
    dataset: tuple[str, ...] = field(default=())
    point: tuple[str, ...] = field(default=())

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Selection:
        """Read the values of `--only`, each `KIND=NAME`. Several of one kind select all that they name.

        Raises:
            UserError: a value has another form.
        """
        names: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for text in texts:
            kind, equals, name = text.partition("=")
            if not equals or not name:
                raise UserError(f"--only {text}: write codec=LABEL, task=LABEL, dataset=NAME or point=POINT")
            if kind not in names:
                raise UserError(f"--only {text}: {unknown_message('kind', kind, KINDS)}")
            names[kind].append(name)
        return cls(**{kind: tuple(dict.fromkeys(values)) for kind, values in names.items()})

    def __bool__(self) -> bool:
        return any(getattr(self, kind) for kind in KINDS)

    def __str__(self) -> str:
        """What is selected, such as `codec=jpeg, task=detection`."""
        return ", ".join(f"{kind}={name}" for kind in KINDS for name in getattr(self, kind))

    def part_of(self, experiment: Experiment) -> Experiment:
        """The experiment without the codecs, tasks and datasets that are not selected.

        Points are selected when the codecs are built, because some points have their names from the codec.

        Raises:
            UserError: a name is none of the experiment's, or no task is left.
        """
        self._check("codec", [section.label for section in experiment.codecs])
        self._check("task", [section.label for section in experiment.tasks])
        self._check("dataset", list(experiment.datasets))
        tasks = [t for t in experiment.tasks if _has(self.task, t.label) and _has(self.dataset, t.dataset)]
        if not tasks:
            raise UserError(f"--only {self}: the experiment has no such task on such a dataset")
        used = {task.dataset for task in tasks}
        codecs = [section for section in experiment.codecs if _has(self.codec, section.label)]
        return experiment.model_copy(
            update={
                "codecs": codecs,
                "tasks": tasks,
                "datasets": {name: section for name, section in experiment.datasets.items() if name in used},
                "anchor": experiment.anchor if experiment.anchor in [section.label for section in codecs] else None,
                "only_points": self.point,
            }
        )

    def rows_of(self, frame: pd.DataFrame, always: Sequence[str] = ()) -> pd.DataFrame:
        """The selected rows of a table with columns `codec` and `point`, and perhaps `task` and `dataset`.

        Args:
            frame: the table.
            always: codecs of which all points stay, such as the anchor and the originals.
        """
        selected = frame["codec"].map(lambda codec: _has(self.codec, codec)) & frame["point"].map(self.has_point)
        selected |= frame["codec"].isin(always)
        for kind in ("task", "dataset"):
            if kind in frame and getattr(self, kind):
                selected &= frame[kind].isin(getattr(self, kind))
        return frame[selected]

    def has_point(self, label: str) -> bool:
        """Whether a point is selected, by the name that tables give it."""
        return not self.point or label in self.point or str(label).rpartition("=")[2] in self.point

    def check_table(self, frame: pd.DataFrame) -> None:
        """Refuse a selection that names what a table of scores does not hold.

        Raises:
            UserError: a codec, task, dataset or point is not in the table.
        """
        for kind in ("codec", "task", "dataset"):
            self._check(kind, [str(name) for name in frame[kind].unique()])
        labels = [str(label) for label in frame["point"].unique() if label]
        for point in self.point:
            if not any(Selection(point=(point,)).has_point(label) for label in labels):
                raise UserError(f"--only point={point}: {unknown_message('point', point, labels)}")

    def _check(self, kind: str, names: Sequence[str]) -> None:
        for name in getattr(self, kind):
            if name not in names:
                raise UserError(f"--only {kind}={name}: {unknown_message(kind, name, names)}")


def _has(selected: Sequence[str], name: str) -> bool:
    return not selected or name in selected
