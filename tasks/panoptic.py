"""Panoptic segmentation: PQ, SQ and RQ, in percent.

    images -> model -> segments with classes -> per image and class: sum of IoU, TP, FP, FN -> sums -> PQ = SQ x RQ

A model for `panoptic` returns one dict per image: `segments` int32 (height, width), segment ids with 0 for void; `segment_ids` and
`classes`, the ids and their indices into the model's attribute `categories`, aligned. Its attribute `is_thing`, bool (categories,),
says which categories are things.
A target is `mask`, a PNG file of segment ids (0: unlabelled) or its bytes, and `segments`, `classes` and `crowd`: the ids, their
classes, and whether they are crowds, aligned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from icmbench.tasks.labels import label_classes, refuse_class
from icmbench.tasks.maps import LabelMap, encode_map, paint, read_map, relabel
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.outputs import MapOutput

if TYPE_CHECKING:
    import pyarrow as pa

METRICS = tuple(MetricSpec(name, "%", primary=name == "PQ", ceiling=100.0) for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"))


@dataclass(frozen=True)
class PanopticStatistics:
    """What each (image, class) that occurs contributes, in six aligned arrays.

    Attributes:
        is_thing: bool (classes,).
        images: number of images.
        image: int64 (n,), index of the image.
        category: int64 (n,), class.
        iou: float64 (n,), sum of IoU over matched segments.
        tp: float64 (n,), number of matched segments.
        fp: float64 (n,), number of superfluous predicted segments.
        fn: float64 (n,), number of missed labelled segments.
    """

    is_thing: npt.NDArray[np.bool_]
    images: int
    image: npt.NDArray[np.int64]
    category: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    tp: npt.NDArray[np.float64]
    fp: npt.NDArray[np.float64]
    fn: npt.NDArray[np.float64]


def match_segments(prediction: LabelMap, classes: npt.NDArray[np.integer], target: Target, categories: int) -> npt.NDArray[Any]:
    """IoU sum, TP, FP and FN of one image, as panopticapi counts them (Kirillov et al. 2019, sec. 4).

    Segments match if their IoU exceeds 0.5, with unlabelled pixels left out of the union. Three kinds of segments do not count: a
    superfluous one that lies mostly on unlabelled pixels or on a crowd of its class; a labelled one without a pixel; and a
    predicted one of class -1, which stands for a category that the labels do not have.

    Args:
        prediction: int64 (height, width), 0 for void, k for the segment whose class is `classes[k - 1]`.
        classes: integer (predicted segments,).
        target: the labels of the image.
        categories: number of classes.

    Returns:
        float64 (4, categories).

    Raises:
        DatasetError: the label map has another size than the image.
    """
    ids, label_classes, crowd = target["segments"], target["classes"], target["crowd"]
    shared = _shared_pixels(prediction, len(classes), read_map(target["mask"]), ids)
    predicted_area, labelled_area = shared[:, 1:].sum(axis=0), shared[1:-1].sum(axis=1)
    unlabelled, overlap = shared[0, 1:], shared[1:-1, 1:]
    union = labelled_area[:, None] + (predicted_area - unlabelled)[None] - overlap
    iou = overlap / np.maximum(union, 1)
    iou[(label_classes[:, None] != classes[None]) | crowd[:, None] | (iou <= 0.5)] = 0
    label_matched, prediction_matched = iou.any(axis=1), iou.any(axis=0)
    missed = ~label_matched & ~crowd & (labelled_area > 0)
    excused = unlabelled.copy()
    for index in np.flatnonzero(crowd & (labelled_area > 0)):
        same_class = classes == label_classes[index]
        # If a class has several crowds, the last one counts, as in panopticapi.
        excused[same_class] = unlabelled[same_class] + overlap[index, same_class]
    superfluous = ~prediction_matched & (classes >= 0) & (predicted_area > 0) & (excused <= 0.5 * predicted_area)
    return np.stack(
        [
            np.bincount(label_classes, iou.sum(axis=1), categories),
            np.bincount(label_classes[label_matched], minlength=categories),
            np.bincount(classes[superfluous], minlength=categories),
            np.bincount(label_classes[missed], minlength=categories),
        ]
    )


def _shared_pixels(prediction: LabelMap, predicted: int, segments: LabelMap, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Pixels shared by labelled segments (rows: unlabelled, `ids`, unlisted ids) and predicted ones (columns: void, 1, 2, ...)."""
    if prediction.shape != segments.shape:
        raise DatasetError(
            f"a panoptic map is {segments.shape}, its image {prediction.shape}; give the annotations of these images"
        )
    rows = relabel(segments, ids, np.arange(1, len(ids) + 1), len(ids) + 1)
    rows[segments == 0] = 0
    counts = np.bincount((rows * (predicted + 1) + prediction).ravel(), minlength=(len(ids) + 2) * (predicted + 1))
    return counts.reshape(len(ids) + 2, predicted + 1)


def panoptic_statistics(images: Iterable[npt.NDArray[Any]], is_thing: npt.NDArray[np.bool_]) -> PanopticStatistics:
    """Collect the counts of all images; only classes that occur are kept.

    Args:
        images: the result of `match_segments` for each image, float64 (4, categories).
        is_thing: bool (categories,).
    """
    columns = [np.zeros((6, 0))]
    for image, counts in enumerate(images):
        present = np.flatnonzero(counts[1:].any(axis=0))
        columns.append(np.stack([np.full(present.size, image), present, *counts[:, present]]))
    image, category, iou, tp, fp, fn = np.concatenate(columns, axis=1)
    return PanopticStatistics(is_thing, len(columns) - 1, image.astype(np.int64), category.astype(np.int64), iou, tp, fp, fn)


def panoptic_scores(statistics: PanopticStatistics, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
    """Panoptic quality, averaged over the classes that occur.

    Args:
        statistics: counts of all images.
        weights: float64 (images,), how often each image counts; None counts each image once.

    Returns:
        In percent: PQ, SQ and RQ over all classes, PQ_th over things, PQ_st over stuff; NaN if no such class occurs.
    """
    s = statistics
    counted = image_weights(weights, s.images)[s.image]
    iou, tp, fp, fn = (np.bincount(s.category, column * counted, s.is_thing.size) for column in (s.iou, s.tp, s.fp, s.fn))
    segments = tp + 0.5 * fp + 0.5 * fn
    occurs = segments > 0
    quality = iou / np.where(occurs, segments, 1)

    def mean(values: npt.NDArray[np.float64], classes: npt.NDArray[np.bool_]) -> float:
        return 100 * float(values[classes].mean()) if classes.any() else float("nan")

    return {
        "PQ": mean(quality, occurs),
        "SQ": mean(iou / np.where(tp > 0, tp, 1), occurs),
        "RQ": mean(tp / np.where(occurs, segments, 1), occurs),
        "PQ_th": mean(quality, occurs & s.is_thing),
        "PQ_st": mean(quality, occurs & ~s.is_thing),
    }


class PanopticSegmentation(Task):
    """Panoptic segmentation: PQ, SQ, RQ as in panopticapi, PQ of things and of stuff."""

    name = "panoptic"
    annotation = "panoptic"
    draws = True
    has_pseudo_labels = True
    metrics = METRICS

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels") -> None:
        super().__init__(dataset, model, reference)
        if reference == "labels" and self.ids:
            labels = labelled(dataset, self.name, "categories", "things")
            self._category_map = match_categories(model.categories, labels.categories("panoptic"))
            self._is_thing = np.asarray(labels.things("panoptic"), dtype=np.bool_)
        else:
            self._category_map = np.arange(len(model.categories))
            self._is_thing = np.asarray(model.is_thing, dtype=np.bool_)
            if self._is_thing.shape != self._category_map.shape:
                raise ModelError(
                    f"model {type(model).__name__} has {len(model.categories)} categories but says of {self._is_thing.size} "
                    "whether they are things; mend its `is_thing`"
                )

        # Where labels are read with the pixels of their maps, they are checked as they are scored, and by the dataset's own reader.
        if reference == "labels" and self.annotation not in getattr(dataset, "costly_targets", ()):
            self.targets(self.ids)

    def targets(self, ids: Sequence[str]) -> list[Target]:
        """The dataset's labels of these images.

        Raises:
            DatasetError: a segment has a class that is no category of the dataset, or the labels are not aligned.
        """
        targets = super().targets(ids)
        for image_id, target in zip(ids, targets, strict=True):
            classes = label_classes(self.dataset, image_id, target, "classes")
            lengths = {key: len(target[key]) for key in ("segments", "classes", "crowd")}
            if len(set(lengths.values())) > 1:
                raise DatasetError(f"dataset {self.dataset.name!r}: the labels of image {image_id!r} are not aligned: {lengths}")
            strange = classes[(classes < 0) | (classes >= self._is_thing.size)]
            if strange.size:
                owner = f"dataset {self.dataset.name!r}"
                raise refuse_class(self.dataset, image_id, strange[0], self._is_thing.size, owner)
        return targets

    @property
    def schema(self) -> pa.Schema:
        """`segments`, a PNG, and `classes` of the segments."""
        import pyarrow as pa

        return pa.schema([("segments", pa.large_binary()), ("classes", pa.list_(pa.int32()))])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """Segments as a label map and their classes.

        Returns:
            Per image `segments`, a greyscale PNG with 0 for void and k for the segment of category `classes[k - 1]`, and `classes`,
            indices into the model's categories.

        Raises:
            ModelError: the model gave other than one map of the image's size for each image, with a category for each segment.
        """
        output, categories = MapOutput(self.model), len(self.model.categories)
        return [
            _renumber_segments(output.segments(segments, image, image_id, categories))
            for image, segments, image_id in zip(images, output.one_each(self.model(images), ids), ids, strict=True)
        ]

    def is_empty(self, prediction: Prediction) -> bool:
        """Whether the whole image is void."""
        return len(prediction["classes"]) == 0

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        """The segments of the originals, none of them a crowd."""
        return [
            {
                "mask": prediction["segments"],
                "segments": np.arange(1, len(prediction["classes"]) + 1),
                "classes": np.asarray(prediction["classes"], dtype=np.int64),
                "crowd": np.zeros(len(prediction["classes"]), dtype=np.bool_),
            }
            for prediction in predictions
        ]

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> PanopticStatistics:
        """IoU sums and counts of all images."""
        return panoptic_statistics(map(self._match, predictions, targets), self._is_thing)

    def _match(self, prediction: Prediction, target: Target) -> npt.NDArray[Any]:
        classes = self._category_map[np.asarray(prediction["classes"], dtype=np.int64)]
        return match_segments(read_map(prediction["segments"]), classes, target, self._is_thing.size)

    def aggregate(self, statistics: PanopticStatistics, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """PQ, SQ, RQ, PQ_th and PQ_st in percent."""
        return panoptic_scores(statistics, weights)

    def names(self, prediction: Prediction) -> list[str]:
        """The category of every segment."""
        return [self.model.categories[index] for index in prediction["classes"]]

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The image under one colour per segment."""
        return paint(image, read_map(prediction["segments"]) - 1)


def _renumber_segments(output: dict[str, Any]) -> Prediction:
    """The model's segments that have a pixel, numbered from 1 in the order of their ids."""
    present, segments = np.unique(output["segments"], return_inverse=True)
    classes = dict(zip(output["segment_ids"].tolist(), output["classes"].tolist(), strict=True))
    numbers = segments.reshape(output["segments"].shape) + (0 if 0 in present else 1)
    return {"segments": encode_map(numbers), "classes": [classes[index] for index in present.tolist() if index != 0]}
