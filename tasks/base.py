"""The contracts of datasets, task models and tasks.

    reconstructions -> Task.predict -> predictions (cached) -> Task.statistics -> Task.aggregate -> scores

An image is a `uint8` RGB array of shape (height, width, 3).

Datasets, task models and tasks are plug-ins. Each is found by entry point (`icmbench.datasets`, `icmbench.models`,
`icmbench.tasks`), and the options of its section in the experiment file become the keywords of its constructor. A class may carry
four descriptions for `icmbench list`: the first line of its docstring; `extra`, the optional dependency group that it imports from;
`unpackaged`, modules that no such group can install, each with how one gets it; and `weights`, which weights it needs, where they
come from, and their licence.

Example:
    A whole task: does a model still tell day from night in coded photographs?

    >>> import numpy as np
    >>> import pyarrow as pa
    >>> class Photographs:
    ...     name, ids, limit, preprocessing = "photographs", ["day.png", "night.png"], None, "native"
    ...     def read(self, image_id):
    ...         return np.full((2, 2, 3), 200 if image_id == "day.png" else 30, np.uint8)
    ...     def annotated(self, kind):
    ...         return list(self.ids) if kind == "daytime" else []
    ...     def targets(self, kind, ids):
    ...         return [{"day": image_id == "day.png"} for image_id in ids]
    >>> class BrightnessThreshold:
    ...     task, fingerprint = "daytime", fingerprint(model="brightness-threshold", level=100)
    ...     def __call__(self, images):
    ...         return [image.mean() > 100 for image in images]
    >>> class Daytime(Task):
    ...     name, annotation = "daytime", "daytime"
    ...     metrics = (MetricSpec("accuracy", "%", primary=True, ceiling=100.0),)
    ...     schema = pa.schema([("day", pa.bool_())])
    ...     def predict(self, images, ids, originals=None):
    ...         return [{"day": bool(day)} for day in self.model(images)]
    ...     def statistics(self, predictions, targets):
    ...         return np.array([p["day"] == t["day"] for p, t in zip(predictions, targets, strict=True)])
    ...     def aggregate(self, statistics, weights=None):
    ...         return {"accuracy": 100 * float(np.average(statistics, weights=weights))}

    A codec that darkens its images costs one of two right answers. Weights score a resample, here one that draws `night.png` twice:

    >>> task = Daytime(Photographs(), BrightnessThreshold())
    >>> reconstructions = [task.dataset.read(image_id) // 4 for image_id in task.ids]
    >>> predictions = task.predict(reconstructions, task.ids)
    >>> statistics = task.statistics(predictions, task.targets(task.ids))
    >>> task.aggregate(statistics)
    {'accuracy': 50.0}
    >>> task.aggregate(statistics, weights=np.array([0.0, 2.0]))
    {'accuracy': 100.0}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from icmbench.tasks.fingerprints import file_sha256 as file_sha256  # Part of the contract: tasks import it from here.
from icmbench.tasks.fingerprints import fingerprint as fingerprint

if TYPE_CHECKING:
    import pyarrow as pa

Image: TypeAlias = npt.NDArray[np.uint8]  # (height, width, 3), RGB.
Prediction: TypeAlias = Mapping[str, Any]  # One image's columns of `Task.schema`: 1-D arrays, numbers, text or bytes.
Target: TypeAlias = Mapping[str, Any]  # What one image is scored against: its labels, or pseudo-labels from its original.
Statistics: TypeAlias = Any  # Contribution of each image to the scores, in the order of the predictions.
Context: TypeAlias = Mapping[str, np.ndarray]  # What a task computes once per model: text embeddings, class prompts.
Reference: TypeAlias = Literal["labels", "original"]  # Score against the dataset's labels, or against predictions on the originals.


class DatasetError(ValueError):
    """A dataset is missing, incomplete or malformed. The message is one sentence that names the file or key and the remedy."""


@dataclass(frozen=True)
class MetricSpec:
    """One number that a task reports.

    Attributes:
        name: the key of `Task.aggregate`'s result.
        unit: printed after the value; "%" for shares of 0 to 100.
        higher_is_better: False for distances and error rates.
        primary: whether the metric stands for the task in summaries; if several are marked, the first does.
        ceiling: the best attainable value (100 for AP), or None if there is no finite one (PSNR).
        bootstrap: False if the score of resampled images has no meaning (FID, KID).
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True
    primary: bool = False
    ceiling: float | None = None
    bootstrap: bool = True


class Dataset(Protocol):
    """Images, the annotations that the user gave for them, and one preprocessing that is applied before coding.

    Attributes:
        name: the dataset's key in the experiment file.
        ids: file names relative to the image folder, sorted, cut to `limit`.
        limit: the number of images to keep, or None for all.
        preprocessing: "native", or steps such as "resize:512x512".
    """

    name: str
    ids: Sequence[str]
    limit: int | None
    preprocessing: str

    def path(self, image_id: str) -> Path:
        """The file behind an image. While its size and mtime stay the same, its pixels are not hashed again."""

    def read(self, image_id: str) -> Image:
        """Decoded, upright, preprocessed pixels.

        Returns:
            uint8 (height, width, 3), RGB.

        Raises:
            DatasetError: the file is missing, damaged, or cannot become 8-bit RGB without a choice.
        """

    def annotated(self, kind: str) -> list[str]:
        """The subset of `ids`, in the same order, that carries annotations of a kind: `instances`, `class`, ..."""

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """The labels of images, one mapping per id. Its keys depend on the kind; the module of the task documents them."""


class LabelledDataset(Dataset, Protocol):
    """A dataset whose annotations use named categories."""

    def categories(self, kind: str) -> list[str]:
        """Category names of the annotations of a kind; the `classes` of a target index this list."""

    def things(self, kind: str) -> npt.NDArray[np.bool_]:
        """Which categories are countable things (True) and which are stuff, bool (categories,). Only panoptic labels need it."""


def labelled(dataset: Dataset, task: str, *methods: Literal["categories", "things"]) -> LabelledDataset:
    """The dataset as one with named categories.

    Args:
        dataset: a dataset with annotations.
        task: the name of the task that asks, for the error message.
        methods: the methods of `LabelledDataset` that the task calls.

    Raises:
        DatasetError: the dataset lacks one of the methods.
    """
    for method in methods:
        if not callable(getattr(dataset, method, None)):
            raise DatasetError(
                f"dataset {dataset.name!r} has no method `{method}`, which task {task!r} calls; "
                "add it as icmbench.tasks.base.LabelledDataset describes it"
            )
    return cast(LabelledDataset, dataset)


class Model(Protocol):
    """A task model. It is called with images; the module of its task says what it returns.

    Attributes:
        task: the name of the task that it serves ("detection", "classification", ...), or several names.
        fingerprint: everything that decides its output (versions, weights, thresholds, dtype), as `fingerprint()` writes it.
    """

    task: ClassVar[str]
    fingerprint: str

    def __call__(self, images: Sequence[Image]) -> Sequence[Any]:
        """The output for each image, in order.

        A model that looks results up by pixels has `pixel_facts(sha256)` too: what it holds for the pixels with this
        `fingerprints.pixel_sha256`, as JSON values. They enter the key of the prediction as `Task.facts` do, so that what is held
        for other pixels decides nothing and stays out of the fingerprint.
        """


# Each declaration of an optional ability of a task, with the method that provides it.
ABILITIES = {"draws": "draw", "has_context": "context", "has_pseudo_labels": "pseudo_targets"}


class TaskDeclarations:
    """What a class of tasks declares of itself. The harness reads these declarations alone, and calls no method to find out.

    Attributes:
        name: the task's name in the experiment file and in fingerprints.
        version: raised by hand when predictions change, so that stored ones are computed again.
        annotation: the kind of labels it scores against; None if it compares with the original image.
        needs_originals: True if `predict` compares each image with its original and must be given `originals`. The harness then
            stores predictions under the hash of the original too, and does not predict on the originals themselves.
        keeps_originals: True if `predict` keeps features of the originals in memory. The harness then shows the same images as
            decoded by every codec, one codec after the other, before it goes on to the next images.
        draws: True if the task overrides `draw`.
        has_context: True if the task overrides `context`.
        has_pseudo_labels: True if the task overrides `pseudo_targets`, so that `reference: original` may be asked of it.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    annotation: ClassVar[str | None] = None
    needs_originals: ClassVar[bool] = False
    keeps_originals: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    has_context: ClassVar[bool] = False
    has_pseudo_labels: ClassVar[bool] = False


class Task(TaskDeclarations, ABC):
    """A task on one dataset with one model.

    A subclass sets `name` and `metrics`, describes its predictions in `schema`, and implements `predict`, `statistics` and
    `aggregate`. Three abilities are optional. A subclass that overrides `draw`, `context` or `pseudo_targets` declares it; a class
    whose declaration and methods disagree is refused when it is defined.

    Args:
        dataset: the images and their annotations.
        model: the task model; None for tasks that need no model.
        reference: "labels" scores against the dataset's labels, "original" against `pseudo_targets`.

    Attributes:
        fingerprint: everything that decides the predictions of all images. What decides one image's comes from `facts`.
        context_fingerprint: everything that decides `context()`.
        metrics: the numbers that `aggregate` returns, at least one of them; the primary one stands for the task.
        ids: the images that the task scores: those with labels, or with `reference: original` all of them.
        reference: see Args.
        ready: the result of `context`. The harness computes or loads it and sets it before the first call of `predict`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a class that overrides `draw`, `context` or `pseudo_targets` undeclared, or declares what it does not override.

        Raises:
            TypeError: the declaration and the methods disagree.
        """
        super().__init_subclass__(**options)
        for declaration, method in ABILITIES.items():
            _compare_declaration(cls, declaration, method)

    def __init__(self, dataset: Dataset, model: Any = None, reference: Reference = "labels") -> None:
        self.dataset = dataset
        self.model = model
        self.reference = reference
        use_labels = reference == "labels" and self.annotation is not None
        self.ids: list[str] = dataset.annotated(self.annotation) if use_labels and self.annotation else list(dataset.ids)
        self.ready: Context = {}

    @property
    @abstractmethod
    def metrics(self) -> Sequence[MetricSpec]:
        """The numbers that `aggregate` returns."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Arrow types of a prediction's columns, without the image id."""

    @property
    def fingerprint(self) -> str:
        """Everything that decides the predictions of all images: task, version, model. Labels and reference decide scores only."""
        return fingerprint(task=self.name, version=self.version, model=getattr(self.model, "fingerprint", None))

    def facts(self, image_id: str) -> Any:
        """What decides this image's prediction beside the pixels that `predict` is given and the fingerprint.

        A task whose predictions depend on image ids must override it: for a question about each image, the words of the question.
        The harness takes a stored prediction for this image's only if pixels, fingerprint and facts are equal. Another image's
        labels must not change them, nor may a digest of the whole dataset's labels stand in the fingerprint: a user who adds one
        image would pay for all others again. It is called for every image of every run, so it looks up what is known and reads no
        file that it has read before.

        Returns:
            JSON values; None if nothing else decides.

        Raises:
            DatasetError: as `targets`, of the dataset's labels.
        """
        return None

    def pixel_facts(self, sha256: str) -> Any:
        """What decides the prediction on these pixels beside themselves: what the model's `pixel_facts` says, if it has one.

        Args:
            sha256: `fingerprints.pixel_sha256` of what `predict` is given.

        Returns:
            JSON values; None if nothing else decides.
        """
        held = getattr(self.model, "pixel_facts", None)
        return None if held is None else held(sha256)

    @property
    def context_fingerprint(self) -> str:
        """Everything that decides `context()`, which the harness stores under it; by default the task's fingerprint.

        A task whose context depends on the whole dataset, such as on all its captions, overrides it, so that the fingerprint of its
        predictions need not hold the captions. `ready` is always the context of the captions that are there now, in scoring too.
        """
        return self.fingerprint

    def context(self) -> Context:
        """What `predict` or `statistics` needs once per model, such as text embeddings; stored under `context_fingerprint`.

        Returns:
            Arrays by name; `ready` holds them afterwards.
        """
        return {}

    @abstractmethod
    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """Run the model. This is the expensive step; its results are stored.

        Args:
            images: reconstructions, uint8 (height, width, 3) each.
            ids: their image ids.
            originals: the images before coding, aligned with `images`; given if and only if `needs_originals`.

        Returns:
            One prediction per image, in order.
        """

    def targets(self, ids: Sequence[str]) -> list[Target]:
        """The dataset's labels of these images, one per id; empty mappings for a task without annotations."""
        return self.dataset.targets(self.annotation, ids) if self.annotation else [{} for _ in ids]

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        """Labels made of predictions on the originals, for `reference: original`; one per prediction.

        Raises:
            DatasetError: the task has no pseudo-labels.
        """
        raise DatasetError(f"task {self.name!r} has no pseudo-labels; use reference: labels")

    def is_empty(self, prediction: Prediction) -> bool:
        """Whether the prediction holds nothing to score (no box, no parsable answer). Such images are counted in scores.csv."""
        return False

    @abstractmethod
    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Statistics:
        """What each image contributes to the scores, computed once for all resamples.

        Args:
            predictions: one per image.
            targets: labels or pseudo-labels, aligned with `predictions`.

        Returns:
            Whatever `aggregate` takes; it keeps the number of images and their order.
        """

    @abstractmethod
    def aggregate(self, statistics: Statistics, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """The scores. This is the cheap step: a bootstrap calls it once per resample, or once for many; see `takes_batches`.

        Args:
            statistics: the result of `statistics`.
            weights: float64 (images,), how often each image counts; None counts each image once.

        Returns:
            One value per metric, by name; NaN if a metric is not defined for these images.
        """

    def names(self, prediction: Prediction) -> list[str]:
        """What the model sees in an image, one name per object or class. The report lists which names coding removes or adds."""
        return []

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The image with the prediction drawn on it, uint8 (height, width, 3), for the report."""
        return image


def _compare_declaration(cls: type[Task], declaration: str, method: str) -> None:
    """Raise TypeError unless a class of tasks declares an ability if and only if it has the method that provides it."""
    # A mixin that is no task cannot declare, so its methods count as the class's own.
    defines = any(method in vars(base) for base in cls.__mro__ if base is cls or not issubclass(base, Task))
    if defines and not getattr(cls, declaration):
        raise TypeError(f"task class {cls.__name__!r} defines `{method}` but does not declare `{declaration} = True`; add it")
    if getattr(cls, declaration) and getattr(cls, method) is getattr(Task, method):
        raise TypeError(f"task class {cls.__name__!r} declares `{declaration} = True` but has no `{method}`; define it")


Aggregate = TypeVar("Aggregate", bound=Callable[..., Mapping[str, Any]])


def takes_batches(aggregate: Aggregate) -> Aggregate:
    """Declare that an `aggregate` also takes the weights of many replicates at once, float64 (replicates, images).

    It then returns float64 (replicates,) for each metric, equal to what it returns for each replicate alone. The bootstrap
    (`icmbench.results.bootstrap`) looks for the attribute `takes_batches` of a function or method.
    """
    aggregate.takes_batches = True  # type: ignore[attr-defined]
    return aggregate


def image_weights(weights: npt.ArrayLike | None, images: int) -> npt.NDArray[np.float64]:
    """The `weights` of `Task.aggregate` as float64 (images,), with None as ones."""
    return np.ones(images) if weights is None else np.asarray(weights, dtype=np.float64)
