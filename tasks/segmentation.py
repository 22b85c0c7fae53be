"""Semantic segmentation: mIoU, aAcc and mAcc, in percent.

    images -> model -> a class for every pixel -> counts of (label, prediction) per image -> sums over images -> mIoU

A model for `semantic_segmentation` returns one integer map (height, width) per image. The values are indices into its attribute
`categories`. A target is `mask`, a PNG file or its bytes, and `classes`, int64, the class of each sample value, -1 if ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import (
    Dataset,
    DatasetError,
    Image,
    MetricSpec,
    Prediction,
    Reference,
    Target,
    Task,
    image_weights,
    labelled,
)
from icmbench.tasks.categories import match_categories
from icmbench.tasks.label_maps import LabelMaps, classes_of_pixels
from icmbench.tasks.maps import LabelMap, encode_map, paint, read_map
from icmbench.tasks.outputs import MapOutput

if TYPE_CHECKING:
    import pyarrow as pa

METRICS = (
    MetricSpec("mIoU", "%", primary=True, ceiling=100.0),
    MetricSpec("aAcc", "%", ceiling=100.0),
    MetricSpec("mAcc", "%", ceiling=100.0),
)


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of every (image, label, prediction) that occurs, in four aligned arrays. Ignored pixels are left out.

    Attributes:
        images: number of images.
        classes: number of classes.
        image: int64 (n,), index of the image.
        label: int64 (n,), labelled class.
        prediction: int64 (n,), predicted class; -1 if the model named a category that the labels do not have.
        count: int64 (n,), number of pixels.
    """

    images: int
    classes: int
    image: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    prediction: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]


def confusion(pairs: Iterable[tuple[LabelMap, LabelMap]], classes: int) -> Confusion:
    """Count the pixels of each label and prediction.

    Args:
        pairs: prediction and label of each image, int64 (height, width), below `classes`. A prediction of -1 names no class of the
            labels; pixels of a negative label are ignored.
        classes: number of classes.
    """
    columns = [np.zeros((4, 0), np.int64)]
    for image, (prediction, label) in enumerate(pairs):
        valid = label >= 0
        # One number per pair of classes, with predictions shifted by one to make room for -1.
        counts = np.bincount(label[valid] * (classes + 1) + prediction[valid] + 1, minlength=classes * (classes + 1))
        keys = np.flatnonzero(counts)
        columns.append(np.stack([np.full(keys.size, image), keys // (classes + 1), keys % (classes + 1) - 1, counts[keys]]))
    return Confusion(len(columns) - 1, classes, *np.concatenate(columns, axis=1))


def segmentation_scores(statistics: Confusion, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
    """mIoU, aAcc and mAcc as mmsegmentation's IoUMetric computes them (`nan_to_num` unset), before its rounding.

    Intersections and areas are summed over images first. A class that neither labels nor predictions have takes no part in mIoU, a
    class without labels takes no part in mAcc.

    Args:
        statistics: pixel counts.
        weights: float64 (images,), how often each image counts; None counts each image once.

    Returns:
        In percent; NaN if no pixel is labelled.

    Example:
        >>> label, prediction = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
        >>> {name: round(value, 1) for name, value in segmentation_scores(confusion([(prediction, label)], classes=2)).items()}
        {'mIoU': 58.3, 'aAcc': 75.0, 'mAcc': 75.0}
    """
    s = statistics
    pixels = s.count * image_weights(weights, s.images)[s.image]
    labelled_area = np.bincount(s.label, pixels, s.classes)
    has_class, right = s.prediction >= 0, s.prediction == s.label
    predicted_area = np.bincount(s.prediction[has_class], pixels[has_class], s.classes)
    intersection = np.bincount(s.label[right], pixels[right], s.classes)
    return {
        "mIoU": 100 * _mean_ratio(intersection, labelled_area + predicted_area - intersection),
        "aAcc": 100 * _mean_ratio(intersection.sum(keepdims=True), labelled_area.sum(keepdims=True)),
        "mAcc": 100 * _mean_ratio(intersection, labelled_area),
    }


def _mean_ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> float:
    """Mean of part / whole over the positive wholes; NaN if no whole is positive."""
    positive = whole > 0
    return float(np.mean(part[positive] / whole[positive])) if positive.any() else float("nan")


class SemanticSegmentation(Task):
    """Semantic segmentation: mIoU, aAcc, mAcc as in mmsegmentation."""

    name = "semantic_segmentation"
    annotation = "semantic"
    draws = True
    has_pseudo_labels = True
    metrics = METRICS

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels") -> None:
        super().__init__(dataset, model, reference)
        if reference == "labels" and self.ids:
            names = labelled(dataset, self.name, "categories").categories("semantic")
            self._category_map = match_categories(model.categories, names)
            if "semantic" not in getattr(dataset, "costly_targets", ()):
                LabelMaps(dataset, "semantic", self.ids).check(len(names))
        else:
            names = model.categories
            self._category_map = np.arange(len(names))
        self._classes = len(names)

    @property
    def schema(self) -> pa.Schema:
        """`labels`, a PNG."""
        import pyarrow as pa

        return pa.schema([("labels", pa.large_binary())])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`labels`: the map of the model's category indices as a greyscale PNG.

        Raises:
            ModelError: the model gave other than one map of its categories for each image, of the image's size.
        """
        output, categories = MapOutput(self.model), len(self.model.categories)
        return [
            {"labels": encode_map(output.label_map("label map", labels, image, image_id, categories))}
            for image, labels, image_id in zip(images, output.one_each(self.model(images), ids), ids, strict=True)
        ]

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        """The maps of the originals, with every category of the model."""
        return [{"mask": prediction["labels"], "classes": np.arange(self._classes)} for prediction in predictions]

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Confusion:
        """Pixel counts of all images.

        Raises:
            DatasetError: a label map has another size than its image, or a sample value without a class or of a class that the
                dataset does not have.
        """
        return confusion(map(self._class_maps, predictions, targets), self._classes)

    def _class_maps(self, prediction: Prediction, target: Target) -> tuple[LabelMap, LabelMap]:
        """Predicted and labelled class of every pixel."""
        predicted, samples = self._category_map[read_map(prediction["labels"])], read_map(target["mask"])
        if predicted.shape != samples.shape:
            raise DatasetError(f"a label map is {samples.shape}, its image {predicted.shape}; give the annotations of these images")
        source = target["mask"] if isinstance(target["mask"], Path) else f"dataset {self.dataset.name!r}"
        return predicted, classes_of_pixels(samples, target, self._classes, str(source))

    def aggregate(self, statistics: Confusion, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """mIoU, aAcc and mAcc in percent."""
        return segmentation_scores(statistics, weights)

    def names(self, prediction: Prediction) -> list[str]:
        """Categories that cover at least a hundredth of the image."""
        present, pixels = np.unique(read_map(prediction["labels"]), return_counts=True)
        categories = self.model.categories
        return [categories[index] for index in present[pixels >= pixels.sum() / 100] if index < len(categories)]

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The image under the colours of the predicted classes."""
        return paint(image, read_map(prediction["labels"]))
