"""The experiment file: which codecs, over which datasets, scored by which tasks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from icmbench.harness.config.errors import unknown
from icmbench.harness.config.sections import ConfigSection, load_section

UNCOMPRESSED = "uncompressed"  # the ceiling: the task on the originals


class CodecSection(ConfigSection):
    """One codec at several rate points. `set` goes to its constructor; `seeds` repeats it for seed-variance bars.

    pack: a file of streams that another run exported; they are used instead of encoding, and its points where none are named.
    """

    name: str
    label: str = ""
    points: list[Any] | None = Field(None, min_length=1)
    set: dict[str, Any] = Field(default_factory=dict)
    seeds: list[int] | None = None
    pack: Path | None = None

    @model_validator(mode="after")
    def _label(self) -> CodecSection:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        return self


class TaskSection(ConfigSection):
    """One task on one dataset. `model` holds a name and that model's own keys."""

    name: str
    label: str = ""
    dataset: str
    model: dict[str, Any] | None = None
    reference: Literal["labels", "original"] = "labels"
    set: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _label(self) -> TaskSection:
        if self.model is not None and not isinstance(self.model.get("name"), str):
            raise ValueError("model needs a `name`, a text")
        if not self.label:
            object.__setattr__(self, "label", self.name)
        return self


class Experiment(ConfigSection):
    """The whole file.

    shard_size: images of one unit of work and of resume; lower it for codecs of minutes an image.
    fail_on_error: True, or how many images (from 1 on), or which share of them (below 1), may fail; they leave every codec's score.
    bootstrap: replicates of the images behind the 95% intervals; 0 for none.
    method, envelope: of BD-rates, as of results/bd.py.
    published: files of curves that papers report, drawn dashed; `true` stands for those that come with icmbench.
    timeout: seconds that a codec and all tasks may take for one image, in worker processes.
    """

    name: str
    datasets: dict[str, dict[str, Any]] = Field(min_length=1)
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
    folder: Path = Field(Path(), exclude=True)  # of the file: relative paths start here

    @field_validator("fail_on_error")
    @classmethod
    def _policy(cls, value: bool | int | float) -> bool | int | float:
        if value is False or not 0 <= value < math.inf:
            raise ValueError("write true, a count of images, or a share below 1")
        return value

    @field_validator("published", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [] if value is False else value if isinstance(value, list) else [value]

    @field_validator("datasets")
    @classmethod
    def _kinds(cls, datasets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, block in datasets.items():
            if not isinstance(block.get("kind"), str):
                raise ValueError(f"{name} needs a `kind`, a name")
        return datasets

    @model_validator(mode="after")
    def _references(self) -> Experiment:
        for what, labels in (("codecs", [c.label for c in self.codecs]), ("tasks", [t.label for t in self.tasks])):
            twice = next((label for label in labels if labels.count(label) > 1), None)
            if twice:
                raise ValueError(f"two {what} are labelled {twice!r}; give each its own `label`")
        if any(c.label == UNCOMPRESSED for c in self.codecs):
            raise ValueError(f"the codec label {UNCOMPRESSED!r} is taken by the originals")
        for task in self.tasks:
            if task.dataset not in self.datasets:
                raise ValueError(f"task {task.label!r}: {unknown('dataset', task.dataset, self.datasets)}")
        if self.anchor is not None and self.anchor not in (c.label for c in self.codecs):
            raise ValueError(f"anchor: {unknown('codec', self.anchor, [c.label for c in self.codecs])}")
        return self


def load_experiment(path: Path) -> Experiment:
    """Read and validate an experiment file. Raises UserError with one sentence."""
    return load_section(Experiment, path, "experiment file")
