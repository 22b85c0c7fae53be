"""Semantic segmentation: mIoU, aAcc and mAcc, in percent.

    images -> model -> a class for every pixel -> counts of (label, prediction) an image -> sums over images -> mIoU

A model for `semantic_segmentation` returns one (height, width) integer map an image, whose values index its `categories`.
A target is `mask`, a PNG file or its bytes, and `classes`, the class of each sample value, int64, -1 where it is ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, DatasetError, Image, MetricSpec, Prediction, Reference, Target, Task
from icmbench.tasks.categories import match_categories
from icmbench.tasks.maps import LabelMap, pack, paint, read_map

if TYPE_CHECKING:
    import pyarrow as pa

METRICS = (
    MetricSpec("mIoU", "%", primary=True, ceiling=100.0),
    MetricSpec("aAcc", "%", ceiling=100.0),
    MetricSpec("mAcc", "%", ceiling=100.0),
)


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of every (image, label, prediction) that occurs; four aligned int64 arrays.

    Ignored pixels are left out. `prediction` is -1 where the model named a category that the labels do not have.
    """

    images: int
    classes: int
    image: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    prediction: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]


def confusion(pairs: Iterable[tuple[LabelMap, LabelMap]], classes: int) -> Confusion:
    """Counts of (prediction, label) maps, both int64 (height, width) below `classes`. A negative label is ignored."""
    columns = [np.zeros((4, 0), np.int64)]
    for image, (prediction, label) in enumerate(pairs):
        valid = label >= 0
        # One number a pair, with the predictions shifted by one to make room for -1.
        counts = np.bincount(label[valid] * (classes + 1) + prediction[valid] + 1, minlength=classes * (classes + 1))
        keys = np.flatnonzero(counts)
        columns.append(np.stack([np.full(keys.size, image), keys // (classes + 1), keys % (classes + 1) - 1, counts[keys]]))
    return Confusion(len(columns) - 1, classes, *np.concatenate(columns, axis=1))


def segmentation_scores(statistics: Confusion, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
    """mIoU, aAcc and mAcc as mmsegmentation's IoUMetric computes them (nan_to_num unset), before its rounding.

    Intersections and areas are summed over images first. A class in neither labels nor predictions takes no part in mIoU, one
    without labels none in mAcc.
    """
    s = statistics
    pixels = s.count * (np.ones(s.images) if weights is None else np.asarray(weights, dtype=np.float64))[s.image]
    labelled = np.bincount(s.label, pixels, s.classes)
    known, right = s.prediction >= 0, s.prediction == s.label
    predicted = np.bincount(s.prediction[known], pixels[known], s.classes)
    intersection = np.bincount(s.label[right], pixels[right], s.classes)
    return {
        "mIoU": 100 * _mean_ratio(intersection, labelled + predicted - intersection),
        "aAcc": 100 * _mean_ratio(intersection.sum(keepdims=True), labelled.sum(keepdims=True)),
        "mAcc": 100 * _mean_ratio(intersection, labelled),
    }


def _mean_ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> float:
    """Mean of part / whole where there is a whole; NaN where there is none at all."""
    there = whole > 0
    return float(np.mean(part[there] / whole[there])) if there.any() else float("nan")


class SemanticSegmentation(Task):
    """Semantic segmentation: mIoU, aAcc, mAcc as in mmsegmentation."""

    name = "semantic_segmentation"
    annotation = "semantic"
    metrics = METRICS

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels") -> None:
        super().__init__(dataset, model, reference)
        labelled = reference == "labels" and bool(self.ids)
        names = dataset.categories("semantic") if labelled else model.categories  # type: ignore[attr-defined]
        self._classes = len(names)
        self._meaning = match_categories(model.categories, names) if labelled else np.arange(self._classes)

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([("labels", pa.large_binary())])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`labels`: the map of the model's category indices as a greyscale PNG."""
        predictions: list[Prediction] = []
        for image, labels, image_id in zip(images, self.model(images), ids, strict=True):
            if labels.shape != image.shape[:2]:
                raise ValueError(f"{image_id}: the model's label map is {labels.shape}, the image {image.shape[:2]}")
            predictions.append({"labels": pack(labels)})
        return predictions

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        return [{"mask": prediction["labels"], "classes": np.arange(self._classes)} for prediction in predictions]

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Confusion:
        return confusion(map(self._pair, predictions, targets), self._classes)

    def _pair(self, prediction: Prediction, target: Target) -> tuple[LabelMap, LabelMap]:
        mine, samples = self._meaning[read_map(prediction["labels"])], read_map(target["mask"])
        if mine.shape != samples.shape:
            raise DatasetError(f"a label map is {samples.shape}, its image {mine.shape}; give the annotations of these images")
        if samples.size and samples.max() >= len(target["classes"]):
            raise DatasetError(f"a label map holds {samples.max()}, which stands for no class; give maps of these categories")
        return mine, target["classes"][samples]

    def aggregate(self, statistics: Confusion, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        return segmentation_scores(statistics, weights)

    def names(self, prediction: Prediction) -> list[str]:
        """Categories that cover at least a hundredth of the image."""
        found, pixels = np.unique(read_map(prediction["labels"]), return_counts=True)
        known = self.model.categories
        return [known[index] for index in found[pixels >= pixels.sum() / 100] if index < len(known)]

    def draw(self, image: Image, prediction: Prediction) -> Image:
        return paint(image, read_map(prediction["labels"]))
