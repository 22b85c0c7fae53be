"""The contracts of datasets, task models and tasks.

    reconstructions -> Task.predict -> predictions (cached) -> Task.statistics -> Task.aggregate -> scores

Each is found by entry point (`icmbench.datasets`, `icmbench.models`, `icmbench.tasks`) and called with the keys of its
block in the experiment file. The first line of a class docstring describes it in `icmbench list`; `extra` names the optional
dependency group it imports from, `weights` says what weights it needs, where they come from and their licence.
An image is a `uint8` RGB array of shape (height, width, 3).
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Image: TypeAlias = npt.NDArray[np.uint8]
Prediction: TypeAlias = Mapping[str, Any]  # one image's: the columns of Task.schema; 1-D arrays, numbers, text or bytes
Target: TypeAlias = Mapping[str, Any]  # one image's labels, or a prediction on the original turned into labels
Statistics: TypeAlias = Any  # what each image contributes, in the order of the predictions; knows its image count
Context: TypeAlias = Mapping[str, np.ndarray]  # what a model needs once: text embeddings, class prompts
Reference: TypeAlias = Literal["labels", "original"]


class DatasetError(ValueError):
    """A dataset is missing, incomplete or malformed. One sentence that names the file or key and the remedy."""


@dataclass(frozen=True)
class MetricSpec:
    """One number that a task reports.

    ceiling: the best attainable value (100 for AP), or None where there is no finite one (PSNR).
    bootstrap: False where a score under resampled images has no meaning (FID, KID).
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True
    primary: bool = False
    ceiling: float | None = None
    bootstrap: bool = True


class Dataset(Protocol):
    """Images with whatever annotations they were given, and one preprocessing that is applied before coding."""

    name: str
    ids: Sequence[str]  # file names relative to the image folder, sorted; already cut to `limit`
    limit: int | None
    preprocessing: str  # e.g. "native", "resize:512x512"

    def path(self, image_id: str) -> Path:
        """The file behind an image; while its size and mtime stay, its pixels need not be hashed again."""

    def read(self, image_id: str) -> Image:
        """Decoded, oriented and preprocessed pixels. Raises DatasetError."""

    def annotated(self, kind: str) -> list[str]:
        """The ids (a subset of `ids`, same order) that carry annotations of a kind: `instances`, `class`, ..."""

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]: ...


class Model(Protocol):
    """A task model. Called on images; what it returns is fixed by its `task`, see the task's module."""

    task: ClassVar[str]  # name of the task it serves: "detection", "classification", ...
    fingerprint: str  # versions, weights, thresholds, dtype, as made by `fingerprint()`

    def __call__(self, images: Sequence[Image]) -> Sequence[Any]: ...


class Task(ABC):
    """A task on one dataset with one model.

    Subclasses set `name`, `version` (bumped by hand when numbers change), `annotation` (the kind of labels it scores against,
    None where it compares with the original image), `metrics`, and implement the four verbs.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    annotation: ClassVar[str | None] = None
    needs_originals: ClassVar[bool] = False  # predict() is given the original images too
    keeps_originals: ClassVar[bool] = False  # predict() keeps features of the originals for the next codec of the same images

    def __init__(self, dataset: Dataset, model: Any = None, reference: Reference = "labels") -> None:
        self.dataset = dataset
        self.model = model
        self.reference = reference
        use_labels = reference == "labels" and self.annotation is not None
        self.ids: list[str] = dataset.annotated(self.annotation) if use_labels and self.annotation else list(dataset.ids)
        self.ready: Context = {}  # the harness sets this to context(), computed once and cached, before predict()

    @property
    @abstractmethod
    def metrics(self) -> Sequence[MetricSpec]: ...

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Arrow types of a prediction's columns, the image id left out."""

    @property
    def fingerprint(self) -> str:
        """Everything that decides a prediction: task, version, model. Labels and reference decide scores only."""
        return fingerprint(task=self.name, version=self.version, model=getattr(self.model, "fingerprint", None))

    def context(self) -> Context:
        """Computed once per model; cached under the task's fingerprint."""
        return {}

    @abstractmethod
    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """Expensive; cached. One prediction an image, in order."""

    def targets(self, ids: Sequence[str]) -> list[Target]:
        """The dataset's labels of these images."""
        return self.dataset.targets(self.annotation, ids) if self.annotation else [{} for _ in ids]

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        """Predictions on the originals turned into labels, for `reference: original`."""
        raise DatasetError(f"task {self.name!r} has no pseudo-labels; use reference: labels")

    def is_empty(self, prediction: Prediction) -> bool:
        """Whether the model found nothing on this image (no box, no parsable answer)."""
        return False

    @abstractmethod
    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Statistics:
        """What each image contributes, computed once; aligned with `predictions`."""

    @abstractmethod
    def aggregate(self, statistics: Statistics, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """Cheap. `weights` (n images) says how often each image counts; None counts each once."""

    def names(self, prediction: Prediction) -> list[str]:
        """What the model sees in an image, one name an object or class: the report says what coding lost of it."""
        return []

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The image with the prediction on it, for the report."""
        return image


def fingerprint(**facts: Any) -> str:
    """Canonical JSON of everything that decides a prediction. Kept readable, so that two runs can be compared fact by fact."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a weight file, remembered for this process while path, size and mtime stay the same."""
    stat = Path(path).stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
