"""Panoptic segmentation: PQ, SQ and RQ, in percent.

    images -> model -> segments with classes -> per image and class: sum of IoU, TP, FP, FN -> sums -> PQ = SQ x RQ

A model for `panoptic` returns a dict an image: `segments` int32 (height, width) of ids with 0 for void; `segment_ids` and
`classes` (indices into its `categories`) describe the ids, aligned. Its `is_thing` says which categories are things.
A target is `mask`, a PNG file of segment ids (0: unlabelled) or its bytes, with `segments`, `classes` and `crowd` of the ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, DatasetError, Image, MetricSpec, Prediction, Reference, Target, Task
from icmbench.tasks.categories import match_categories
from icmbench.tasks.maps import LabelMap, pack, paint, read_map, relabel

if TYPE_CHECKING:
    import pyarrow as pa

METRICS = tuple(MetricSpec(name, "%", primary=name == "PQ", ceiling=100.0) for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"))


@dataclass(frozen=True)
class PanopticStatistics:
    """What each (image, class) that occurs contributes; five aligned arrays.

    iou: sum of IoU over matched segments. tp, fp, fn: numbers of matched, superfluous and missed segments.
    """

    is_thing: npt.NDArray[np.bool_]  # (classes,)
    images: int
    image: npt.NDArray[np.int64]
    category: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    tp: npt.NDArray[np.float64]
    fp: npt.NDArray[np.float64]
    fn: npt.NDArray[np.float64]


def match_segments(prediction: LabelMap, classes: npt.NDArray[np.integer], target: Target, categories: int) -> npt.NDArray[Any]:
    """IoU sum, TP, FP and FN of one image, float64 (4, categories), as panopticapi counts them (Kirillov et al. 2019, sec. 4).

    prediction: (height, width), 0 for void, else 1 + index into `classes`. Segments match where IoU > 0.5 with unlabelled pixels
    left out of the union. A superfluous segment that lies mostly on unlabelled pixels or on a crowd of its class does not count,
    nor does a labelled segment without a pixel, nor a prediction of class -1, which the labels do not have.
    """
    ids, truth, crowd = target["segments"], target["classes"], target["crowd"]
    shared = _overlap(prediction, len(classes), read_map(target["mask"]), ids)
    area, labelled = shared[:, 1:].sum(axis=0), shared[1:-1].sum(axis=1)
    void, overlap = shared[0, 1:], shared[1:-1, 1:]
    union = labelled[:, None] + (area - void)[None] - overlap
    iou = overlap / np.maximum(union, 1)
    iou[(truth[:, None] != classes[None]) | crowd[:, None] | (iou <= 0.5)] = 0
    found, used = iou.any(axis=1), iou.any(axis=0)
    missed = ~found & ~crowd & (labelled > 0)
    ignored = void.copy()
    for index in np.flatnonzero(crowd & (labelled > 0)):
        same = classes == truth[index]
        ignored[same] = void[same] + overlap[index, same]  # of several crowds of a class the last counts, as in panopticapi
    extra = ~used & (classes >= 0) & (area > 0) & (ignored <= 0.5 * area)
    return np.stack(
        [
            np.bincount(truth, iou.sum(axis=1), categories),
            np.bincount(truth[found], minlength=categories),
            np.bincount(classes[extra], minlength=categories),
            np.bincount(truth[missed], minlength=categories),
        ]
    )


def _overlap(prediction: LabelMap, predicted: int, segments: LabelMap, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Pixels shared by labelled segments (rows: unlabelled, `ids`, ids not listed) and predicted ones (columns: void, 1, ...)."""
    if prediction.shape != segments.shape:
        raise DatasetError(
            f"a panoptic map is {segments.shape}, its image {prediction.shape}; give the annotations of these images"
        )
    rows = relabel(segments, ids, np.arange(1, len(ids) + 1), len(ids) + 1)
    rows[segments == 0] = 0
    counts = np.bincount((rows * (predicted + 1) + prediction).ravel(), minlength=(len(ids) + 2) * (predicted + 1))
    return counts.reshape(len(ids) + 2, predicted + 1)


def panoptic_statistics(images: Iterable[npt.NDArray[Any]], is_thing: npt.NDArray[np.bool_]) -> PanopticStatistics:
    """From the (4, categories) counts of each image; only what occurs is kept."""
    columns = [np.zeros((6, 0))]
    for image, counts in enumerate(images):
        there = np.flatnonzero(counts[1:].any(axis=0))
        columns.append(np.stack([np.full(there.size, image), there, *counts[:, there]]))
    image, category, iou, tp, fp, fn = np.concatenate(columns, axis=1)
    return PanopticStatistics(is_thing, len(columns) - 1, image.astype(np.int64), category.astype(np.int64), iou, tp, fp, fn)


def panoptic_scores(statistics: PanopticStatistics, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
    """PQ, SQ, RQ over all classes that occur, PQ over things and over stuff; NaN where no such class occurs."""
    s = statistics
    counted = (np.ones(s.images) if weights is None else np.asarray(weights, dtype=np.float64))[s.image]
    iou, tp, fp, fn = (np.bincount(s.category, column * counted, s.is_thing.size) for column in (s.iou, s.tp, s.fp, s.fn))
    segments = tp + 0.5 * fp + 0.5 * fn
    there = segments > 0
    quality = iou / np.where(there, segments, 1)

    def mean(values: npt.NDArray[np.float64], chosen: npt.NDArray[np.bool_]) -> float:
        return 100 * float(values[chosen].mean()) if chosen.any() else float("nan")

    return {
        "PQ": mean(quality, there),
        "SQ": mean(iou / np.where(tp > 0, tp, 1), there),
        "RQ": mean(tp / np.where(there, segments, 1), there),
        "PQ_th": mean(quality, there & s.is_thing),
        "PQ_st": mean(quality, there & ~s.is_thing),
    }


class PanopticSegmentation(Task):
    """Panoptic segmentation: PQ, SQ, RQ as in panopticapi, PQ of things and of stuff."""

    name = "panoptic"
    annotation = "panoptic"
    metrics = METRICS

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels") -> None:
        super().__init__(dataset, model, reference)
        if reference == "labels" and self.ids:
            names = dataset.categories("panoptic")  # type: ignore[attr-defined]
            self._meaning = match_categories(model.categories, names)
            self._is_thing = np.asarray(dataset.things("panoptic"), dtype=np.bool_)  # type: ignore[attr-defined]
        else:
            self._meaning = np.arange(len(model.categories))
            self._is_thing = np.asarray(model.is_thing, dtype=np.bool_)

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([("segments", pa.large_binary()), ("classes", pa.list_(pa.int32()))])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`segments`: a greyscale PNG, 0 for void, else 1 + index into `classes`, the model's category indices."""
        predictions: list[Prediction] = []
        for image, output, image_id in zip(images, self.model(images), ids, strict=True):
            if output["segments"].shape != image.shape[:2]:
                raise ValueError(f"{image_id}: the model's panoptic map is {output['segments'].shape}, the image {image.shape[:2]}")
            predictions.append(_numbered(output, image_id))
        return predictions

    def is_empty(self, prediction: Prediction) -> bool:
        return len(prediction["classes"]) == 0

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
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
        return panoptic_statistics(map(self._match, predictions, targets), self._is_thing)

    def _match(self, prediction: Prediction, target: Target) -> npt.NDArray[Any]:
        classes = self._meaning[np.asarray(prediction["classes"], dtype=np.int64)]
        return match_segments(read_map(prediction["segments"]), classes, target, self._is_thing.size)

    def aggregate(self, statistics: PanopticStatistics, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        return panoptic_scores(statistics, weights)

    def names(self, prediction: Prediction) -> list[str]:
        """The category of every segment."""
        return [self.model.categories[index] for index in prediction["classes"]]

    def draw(self, image: Image, prediction: Prediction) -> Image:
        return paint(image, read_map(prediction["segments"]) - 1)


def _numbered(output: dict[str, Any], image_id: str) -> Prediction:
    """The model's segments that have a pixel, numbered from 1 in the order of their ids."""
    present, segments = np.unique(output["segments"], return_inverse=True)
    classes = dict(zip(np.asarray(output["segment_ids"]).tolist(), np.asarray(output["classes"]).tolist(), strict=True))
    unknown = [index for index in present.tolist() if index != 0 and index not in classes]
    if unknown:
        raise ValueError(f"{image_id}: the model's panoptic map holds segment {unknown[0]}, which its segment_ids do not list")
    numbers = segments.reshape(output["segments"].shape) + (0 if 0 in present else 1)
    return {"segments": pack(numbers), "classes": [classes[index] for index in present.tolist() if index != 0]}
