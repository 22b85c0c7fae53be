"""Scores of named regions: mIoU, AP and PQ of labelled segments whose classes a model chose.

    (similarity of each segment to each class, labels) -> NamedSegments -> semantic maps  -> pixel counts -> mIoU
                                                                        -> detections     -> matches      -> AP
                                                                        -> segments       -> IoU, TP, FP  -> PQ

The regions are the labels' own, so only their classes can be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Prediction, Target
from icmbench.tasks.maps import LabelMap, read_map, relabel
from icmbench.tasks.matches import Matches
from icmbench.tasks.matching import Detections, Labels, ap_scores, match
from icmbench.tasks.overlaps import Ints
from icmbench.tasks.panoptic import PanopticStatistics, match_segments, panoptic_scores, panoptic_statistics
from icmbench.tasks.segmentation import Confusion, confusion, segmentation_scores

DETECTIONS = 100  # Pairs of a segment and a class that count per image, the best first, before stuff classes are left out.


@dataclass(frozen=True)
class OpenSetStatistics:
    """What each image contributes to the three scores.

    Attributes:
        semantic: pixel counts for mIoU.
        instances: matches for AP.
        panoptic: IoU sums and counts for PQ.
    """

    semantic: Confusion
    instances: Matches
    panoptic: PanopticStatistics


@dataclass(frozen=True)
class NamedSegments:
    """The segments of one image that were named, that is, all but crowds.

    Attributes:
        index: int64 (n,), positions among the target's segments.
        scores: float64 (n, classes), each row sums to 1; NaN in rows whose similarities are not numbers.
    """

    index: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """int64 (n,), the class of the highest score; -1, which is no class, where the scores are NaN."""
        return np.where(np.isnan(self.scores).any(axis=1), -1, self.scores.argmax(axis=1))


def openset_statistics(
    predictions: Sequence[Prediction], targets: Sequence[Target], is_thing: npt.NDArray[np.bool_]
) -> OpenSetStatistics:
    """Score named regions as semantic, instance and panoptic segmentation.

    Args:
        predictions: per image `similarity`, (segments without crowds, classes) flat.
        targets: panoptic labels, and `semantic`: the semantic labels, or None to derive them from the panoptic ones.
        is_thing: bool (classes,).
    """
    named = [_named(prediction, target, len(is_thing)) for prediction, target in zip(predictions, targets, strict=True)]
    pairs, counts, areas = [], [], []
    for image_named, target in zip(named, targets, strict=True):
        segments = read_map(target["mask"])
        areas.append(np.array([(segments == index).sum() for index in target["segments"]], dtype=np.float64))
        pairs.append(_class_maps(image_named, target, segments))
        counts.append(_panoptic_counts(image_named, target, segments, is_thing))
    return OpenSetStatistics(
        confusion(pairs, len(is_thing)),
        _instance_matches(named, targets, areas, is_thing),
        panoptic_statistics(counts, is_thing),
    )


def openset_scores(statistics: OpenSetStatistics, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
    """mIoU, AP and PQ in percent.

    Args:
        statistics: the result of `openset_statistics`.
        weights: float64 (images,), how often each image counts; None counts each image once.
    """
    return {
        "mIoU": segmentation_scores(statistics.semantic, weights)["mIoU"],
        "AP": ap_scores(statistics.instances, weights)["AP"],
        "PQ": panoptic_scores(statistics.panoptic, weights)["PQ"],
    }


def _named(prediction: Prediction, target: Target, classes: int) -> NamedSegments:
    """Scores are the softmax of the similarities."""
    similarity = np.asarray(prediction["similarity"], dtype=np.float64).reshape(-1, classes)
    exponentials = np.exp(np.where(np.isfinite(similarity), similarity, np.nan))
    return NamedSegments(np.flatnonzero(~target["crowd"]), exponentials / exponentials.sum(axis=1, keepdims=True))


def _class_maps(named: NamedSegments, target: Target, segments: LabelMap) -> tuple[LabelMap, LabelMap]:
    """Predicted and labelled class of every pixel.

    Pixels outside all regions are predicted as the first class. Osprey's evaluation does the same, because all scores are 0 there.
    It matters only if the dataset has semantic label maps: labels derived from the panoptic ones ignore these pixels.
    """
    predicted = relabel(segments, target["segments"][named.index], named.classes, default=0)
    if target["semantic"] is not None:
        return predicted, target["semantic"]["classes"][read_map(target["semantic"]["mask"])]
    return predicted, relabel(segments, target["segments"], np.where(target["crowd"], -1, target["classes"]), default=-1)


def _panoptic_counts(named: NamedSegments, target: Target, segments: LabelMap, is_thing: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """IoU sum, TP, FP and FN of one image. Things stay apart; all stuff of one class becomes one segment."""
    classes = named.classes
    keys = np.where(is_thing[classes] | (classes < 0), np.arange(len(classes)), -1 - classes)
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    merged = relabel(segments, target["segments"][named.index], number + 1, default=0)
    return match_segments(merged, classes[first], target, len(is_thing))


def _instance_matches(
    named: Sequence[NamedSegments],
    targets: Sequence[Target],
    areas: Sequence[npt.NDArray[np.float64]],
    is_thing: npt.NDArray[np.bool_],
) -> Matches:
    """Every segment is a detection of every thing class. A segment overlaps itself fully and no other at all."""
    order = sorted(range(len(targets)), key=lambda k: targets[k].get("image_id", k))
    detections, segment = _detections([named[k] for k in order], [areas[k] for k in order], is_thing)
    things = [np.flatnonzero(is_thing[targets[k]["classes"]] & ~targets[k]["crowd"]) for k in order]
    label_segment = np.concatenate([*things, np.zeros(0, np.int64)])
    no = np.zeros(len(label_segment), dtype=np.bool_)
    labels = Labels(
        image=np.repeat(np.arange(len(order)), [len(indices) for indices in things]),
        category=np.concatenate(
            [np.zeros(0, np.int64), *(targets[k]["classes"][indices] for k, indices in zip(order, things, strict=True))]
        ),
        area=np.concatenate([np.zeros(0), *(areas[k][indices] for k, indices in zip(order, things, strict=True))]),
        crowd=no,
        ignored=no,
    )

    def overlap(d: Ints, g: Ints) -> npt.NDArray[np.float64]:
        return (segment[d][:, None] == label_segment[g][None]).astype(np.float64)

    return match(detections, labels, overlap, order, len(is_thing))


def _detections(
    named: Sequence[NamedSegments], areas: Sequence[npt.NDArray[np.float64]], is_thing: npt.NDArray[np.bool_]
) -> tuple[Detections, npt.NDArray[np.float64]]:
    """The best pairs of a segment and a thing class of each image, and the segment of each, as its position in the target."""
    columns: list[npt.NDArray[np.float64]] = [np.zeros((5, 0))]
    for image, (segments, image_areas) in enumerate(zip(named, areas, strict=True)):
        pairs = np.argsort(-segments.scores, axis=None, kind="stable")[:DETECTIONS]
        row, category = np.unravel_index(pairs, segments.scores.shape)
        kept = is_thing[category] & ~np.isnan(segments.scores.ravel()[pairs])
        index = segments.index[row[kept]]
        scores = segments.scores.ravel()[pairs][kept]
        columns.append(np.stack([np.full(kept.sum(), image), index, category[kept], image_areas[index], scores]))
    image_of, segment, category_of, area, score = np.concatenate(columns, axis=1)
    return Detections(image_of.astype(np.int64), category_of.astype(np.int64), area, score), segment
