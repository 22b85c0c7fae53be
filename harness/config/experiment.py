"""The experiment file: which codecs, over which datasets, scored by which tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from icmbench.harness.config.devices import is_device
from icmbench.harness.config.environments import EnvironmentSection
from icmbench.harness.config.errors import unknown_message
from icmbench.harness.config.sections import ConfigSection, load_section

UNCOMPRESSED = "uncompressed"  # Codec label of the tasks' scores on the originals: the ceiling of every curve.


class CodecSection(ConfigSection):
    """One codec at several rate points.

    Attributes:
        name: the codec's entry point.
        label: how tables name it; its name by default.
        points: rate points, in the form that the codec takes. By default those of the pack, or else the codec's own.
        set: further arguments of the codec's constructor.
        seeds: the codec is run once with each of these seeds, so that its seed variance can be drawn.
        environment: a key of `environments`: the interpreter that the codec runs in. By default it is that of icmbench.
        pack: a file of streams that `icmbench pack export` wrote. Its streams are used instead of encoding.
        adopt: digests of stored fingerprints, as `icmbench store ls` prints them, whose streams are used although another build of
            the codec made them.
    """

    name: str
    label: str = ""
    environment: str | None = None
    points: list[Any] | None = Field(None, min_length=1)
    set: dict[str, Any] = Field(default_factory=dict)
    seeds: list[int] | None = None
    pack: Path | None = None
    adopt: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _default_label(self) -> CodecSection:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        return self


class TaskSection(ConfigSection):
    """One task on one dataset.

    Attributes:
        name: the task's entry point.
        label: how tables name it; its name by default.
        dataset: a key of `datasets`.
        model: the `name` of a task model, its `environment` if it runs in an interpreter of its own, and options of that model.
        reference: the task is scored against the dataset's labels, or against its own predictions on the originals.
        set: further arguments of the task's constructor.
    """

    name: str
    label: str = ""
    dataset: str
    model: dict[str, Any] | None = None
    reference: Literal["labels", "original"] = "labels"
    set: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _default_label(self) -> TaskSection:
        if self.model is not None and not isinstance(self.model.get("name"), str):
            raise ValueError("model needs a `name`, a text")
        if self.model is not None and not isinstance(self.model.get("environment", ""), str):
            raise ValueError("model.environment: a key of `environments`, a text")
        if not self.label:
            object.__setattr__(self, "label", self.name)
        return self


class Experiment(ConfigSection):
    """The whole experiment file.

    Attributes:
        name: title of the report.
        datasets: by name, the `kind` of each dataset (its entry point) and its options.
        environments: by name, Python interpreters with libraries of their own; codecs and models run in them that name one.
        codecs: the codecs to compare.
        tasks: the tasks that score them.
        anchor: label of the codec that BD-rates refer to.
        shard_size: images in one unit of work, which is written as a whole: a run that is stopped loses what it had computed of its
            current unit. Lower it for codecs that take minutes per image.
        batch_size: most images that a codec or task model gets in one call.
        limit: use only the first images of each dataset.
        fail_on_error: True, or how many images may fail: a count (from 1 on) or a share (below 1). Failed images are left out of
            every codec's scores.
        timeout: seconds that one codec and all tasks may take per image. With a timeout, all work is done in worker processes, and
            a worker that exceeds it is stopped and replaced.
        bootstrap: replicates of the images for the 95% intervals; 0 for no intervals.
        method: interpolation of BD-rates, as in `icmbench.results.bd`.
        envelope: treatment of curves that are not monotonic in BD-rates, as in `icmbench.results.bd`.
        published: files of curves that papers report, drawn dashed; `true` stands for those that come with icmbench.
        store: path or URL of a store that many runs share, instead of the one in the run folder. The environment variable
            ICMBENCH_STORE names one for all experiments that have no such key.
        device: where the networks of those codecs, tasks and models run that take an option `device` and are given none: auto,
            cpu, cuda, cuda:N or mps. By default each one's own default, which for most is the CPU.
        folder: the folder of the experiment file. Relative paths start here.
        only_points: the rate points that `--only` selects, as the file or the codec names them; empty for all.
    """

    name: str
    datasets: dict[str, dict[str, Any]] = Field(min_length=1)
    environments: dict[str, EnvironmentSection] = Field(default_factory=dict)
    codecs: list[CodecSection] = Field(min_length=1)
    tasks: list[TaskSection] = Field(min_length=1)
    anchor: str | None = None
    shard_size: int = Field(32, ge=1)
    batch_size: int = Field(8, ge=1)
    limit: int | None = Field(None, ge=1)
    fail_on_error: bool | int | float = True
    timeout: float | None = Field(None, gt=0)
    bootstrap: int = Field(200, ge=0, le=100_000)
    method: Literal["pchip", "cubic", "akima"] = "pchip"
    envelope: Literal["error", "pareto", "isotonic"] = "pareto"
    published: list[Literal[True] | Path] = Field(default_factory=list)
    store: str | None = None
    device: str | None = None
    folder: Path = Field(Path(), exclude=True)
    only_points: tuple[str, ...] = Field((), exclude=True)

    @field_validator("only_points")
    @classmethod
    def _refuse_in_file(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        raise ValueError("points are selected on the command line, by `--only point=POINT`")

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str | None) -> str | None:
        if value is not None and not is_device(value):
            raise ValueError(f"{value!r} is no device; write auto, cpu, cuda, cuda:N or mps")
        return value

    @field_validator("fail_on_error")
    @classmethod
    def _check_failure_policy(cls, value: bool | int | float) -> bool | int | float:
        if value is False or not 0 <= value < math.inf:
            raise ValueError("write true, a count of images, or a share below 1")
        return value

    @field_validator("published", mode="before")
    @classmethod
    def _to_list(cls, value: Any) -> Any:
        return [] if value is False else value if isinstance(value, list) else [value]

    @field_validator("datasets")
    @classmethod
    def _check_kinds(cls, datasets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, section in datasets.items():
            if not isinstance(section.get("kind"), str):
                raise ValueError(f"{name} needs a `kind`, a name")
        return datasets

    @model_validator(mode="after")
    def _check_references(self) -> Experiment:
        codec_labels = [section.label for section in self.codecs]
        for noun, labels in (("codecs", codec_labels), ("tasks", [section.label for section in self.tasks])):
            duplicate = next((label for label in labels if labels.count(label) > 1), None)
            if duplicate:
                raise ValueError(f"two {noun} are labelled {duplicate!r}; give each its own `label`")
        if UNCOMPRESSED in codec_labels:
            raise ValueError(f"the codec label {UNCOMPRESSED!r} is taken by the originals")
        for index, codec in enumerate(self.codecs):
            self._check_environment(f"codecs.{index}.environment", codec.environment)
        for index, task in enumerate(self.tasks):
            self._check_environment(f"tasks.{index}.model.environment", (task.model or {}).get("environment"))
            if task.dataset not in self.datasets:
                raise ValueError(f"task {task.label!r}: {unknown_message('dataset', task.dataset, self.datasets)}")
        if self.anchor is not None and self.anchor not in codec_labels:
            raise ValueError(f"anchor: {unknown_message('codec', self.anchor, codec_labels)}")
        return self

    def _check_environment(self, key: str, name: str | None) -> None:
        if name is not None and name not in self.environments:
            raise ValueError(f"{key}: {unknown_message('environment', name, self.environments)}")


def load_experiment(path: Path, settings: Sequence[str] = ()) -> Experiment:
    """Read and validate an experiment file.

    Args:
        path: the file.
        settings: values of `--set`, which stand above those of the file; see `icmbench.harness.config.settings.override`.

    Raises:
        UserError: the file cannot be read, or a key or value in it is wrong.
    """
    return load_section(Experiment, path, "experiment file", settings)
