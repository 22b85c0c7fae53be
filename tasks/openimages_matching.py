"""Matches of detections with labels by the rules of the Open Images challenge, as MPEG's conditions for machines use them.

    detections, labels -> pairs of one image and class -> four stages -> entries of the precision-recall curves (openimages_ap.py)

    1. masks of single objects   a detection looks at the label that it overlaps most, and takes it if IoU >= 0.5 and it is free
    2. masks of groups           of the rest, all with half of their own area in a group count as one entry, with their best score
    3. boxes of single objects   labels without a mask: who matches one is left out, neither right nor wrong
    4. boxes of groups           likewise

With boxes alone, stages 3 and 4 take the places of 1 and 2. Unlike in COCO, a detection whose best label is taken does not fall
back to another one, and detections of classes that were not verified for their image take no part.

The rules are those of the TensorFlow Object Detection API (`OpenImagesChallengeEvaluator`) as CompressAI-Vision runs it
(InterDigitalInc/CompressAI-Vision, commit 31165da, `compressai_vision/evaluators`): the weight of a group is 1 for masks too.
Masks are compared in float32 and boxes in float64, in that evaluator's order of operations, so that no overlap rounds differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.overlaps import Bools, Floats, Ints

THRESHOLD = 0.5  # Of IoU with single objects, and of the share of a detection inside a group.
LOWEST_SCORE = -10.0  # The evaluator drops detections up to this score,
MOST_DETECTIONS = 10_000  # and all but the best of an image and class.
SMALLEST_UNION = np.float32(1e-7)
Masks = Sequence[Any]  # COCO run lengths, `{"size": [height, width], "counts": bytes}`.


@dataclass(frozen=True)
class Shapes:
    """Objects of all images, flat.

    Attributes:
        image: int (n,), index of the object's image.
        category: int (n,); objects of category -1 take no part.
        corners: float64 (n, 4), x1, y1, x2, y2 in shares of the image's sides.
        masks: n run lengths, or None where a label has no mask; None without masks.
    """

    image: Ints
    category: Ints
    corners: Floats
    masks: Masks | None

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Detected(Shapes):
    """Detected objects.

    Attributes:
        score: floating point (n,), higher is more certain.
    """

    score: npt.NDArray[np.floating]


@dataclass(frozen=True)
class Labelled(Shapes):
    """Labelled objects.

    Attributes:
        group: bool (n,), whether the label stands for a group of objects.
    """

    group: Bools


@dataclass(frozen=True)
class Entries:
    """What each image contributes to average precision over K categories.

    Attributes:
        images: number of images.
        categories: K.
        image: int (n,), image of each entry; by category, then by falling score.
        category: int (n,), category of each entry.
        right: float64 (n,), 1 for a right detection, the weight of a group for a group that was found, 0 for a wrong detection.
        label_image: int (g,), image of each label that counts.
        label_category: int (g,), category of each label that counts.
        label_weight: float64 (g,), how much it counts.
    """

    images: int
    categories: int
    image: Ints
    category: Ints
    right: Floats
    label_image: Ints
    label_category: Ints
    label_weight: Floats


def match_challenge(detected: Detected, labelled: Labelled, verified: Bools, group_weight: float = 1.0) -> Entries:
    """Match the detections of all images.

    Of equal scores the later detection of an image goes first, and the later image; of equal overlaps the earlier label is taken.
    That is the order which the reference has where its sorting is stable.

    Args:
        detected: detections; with masks their corners are those around the masks.
        labelled: labels of the same images; they have masks, or None in their places, if the detections have masks.
        verified: bool (images, categories), the classes that were looked for in each image. The classes of its labels are too.
        group_weight: how much a group counts; with 0 groups are regions in which detections are ignored.
    """
    images, categories = verified.shape
    taking_part = verified.copy()
    taking_part[labelled.image, labelled.category] = True
    stages = _Stages(detected, labelled, _best_first(detected, taking_part), categories)
    if detected.masks is not None:
        stages.match_objects(of_masks=True)
        found, scores = stages.match_groups(of_masks=True)
        stages.match_objects(of_masks=False)
        stages.match_groups(of_masks=False)
    else:
        stages.match_objects(of_masks=False)
        found, scores = stages.match_groups(of_masks=False)
    if group_weight <= 0:
        found, scores = found[:0], scores[:0]
    image, category, right = stages.entries(found, scores, group_weight)
    counted = np.flatnonzero(stages.counts)
    return Entries(
        images=images,
        categories=categories,
        image=image,
        category=category,
        right=right,
        label_image=labelled.image[counted],
        label_category=labelled.category[counted],
        label_weight=np.where(labelled.group[counted], group_weight, 1.0),
    )


def _best_first(detected: Detected, taking_part: Bools) -> Ints:
    """Indices of the detections that take part, by image, category and falling score; of equal scores the later one first."""
    x1, y1, x2, y2 = detected.corners.T
    valid = (x1 < x2) & (y1 < y2) & (detected.score > LOWEST_SCORE) & (detected.category >= 0)
    valid[valid] = taking_part[detected.image[valid], detected.category[valid]]
    index = np.flatnonzero(valid)
    order = index[np.lexsort((-index, -detected.score[index], detected.category[index], detected.image[index]))]
    key = np.stack([detected.image[order], detected.category[order]])
    starts = np.flatnonzero(np.append(True, (key[:, 1:] != key[:, :-1]).any(axis=0))[: len(order)])
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return order[place < MOST_DETECTIONS]


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a detection and a label of one image and category, p aligned rows; those of a detection stand together."""

    row: Ints  # (p,), place of the detection in the order of `_best_first`, ascending.
    label: Ints  # (p,), ascending among the pairs of a detection.
    block: Ints  # (p,), image and category as one number, ascending. Each detection of a block is paired with the same labels.

    def of(self, chosen: Bools) -> _Pairs:
        return _Pairs(self.row[chosen], self.label[chosen], self.block[chosen])

    def best(self, overlap: npt.NDArray[np.floating]) -> tuple[Ints, Ints]:
        """Each detection with the label that it overlaps most, if that overlap reaches the threshold: rows and labels."""
        if not len(self.row):
            return self.row, self.label
        starts = np.flatnonzero(np.append(True, self.row[1:] != self.row[:-1]))
        highest = np.maximum.reduceat(overlap, starts)
        lengths = np.diff(np.append(starts, len(self.row)))
        is_highest = np.flatnonzero(overlap == np.repeat(highest, lengths))
        first = is_highest[np.unique(self.row[is_highest], return_index=True)[1]]
        reached = first[highest >= THRESHOLD]
        return self.row[reached], self.label[reached]


def _pairs(detected: Detected, labelled: Labelled, order: Ints, categories: int) -> _Pairs:
    blocks = detected.image[order].astype(np.int64) * categories + detected.category[order]
    label_blocks = labelled.image.astype(np.int64) * categories + labelled.category
    grouped = np.argsort(label_blocks, kind="stable")  # The labels of a block keep their order.
    first, end = (np.searchsorted(label_blocks[grouped], blocks, side=side) for side in ("left", "right"))
    counts = end - first
    row = np.repeat(np.arange(len(order)), counts)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return _Pairs(row, grouped[first[row] + place], blocks[row])


class _Stages:
    """The stages of matching and what they have decided so far.

    Args:
        detected: detections.
        labelled: labels.
        order: the detections that take part, as of `_best_first`.
        categories: number of categories.

    Attributes:
        counts: bool (labels,), which labels count as found or missed: with masks, those that have one.
        right: bool (rows,), which detections are right.
        ignored: bool (rows,), which detections are left out.
    """

    def __init__(self, detected: Detected, labelled: Labelled, order: Ints, categories: int) -> None:
        self._detected, self._labelled, self._order = detected, labelled, order
        self._pairs = _pairs(detected, labelled, order, categories)
        self._drawn = np.zeros(len(labelled), np.bool_)
        if detected.masks is not None:
            assert labelled.masks is not None
            self._drawn = np.array([mask is not None for mask in labelled.masks], np.bool_).reshape(-1)
        self.counts = self._drawn if detected.masks is not None else ~self._drawn
        self.right, self.ignored = np.zeros((2, len(order)), np.bool_)

    def match_objects(self, of_masks: bool) -> None:
        """Give each label of a single object to the first detection, by falling score, that overlaps no label more."""
        row, label = self._candidates(of_masks, groups=False)
        first = np.unique(label, return_index=True)[1]
        decided = self.right if of_masks or self._detected.masks is None else self.ignored
        decided[row[first]] = True

    def match_groups(self, of_masks: bool) -> tuple[Ints, Floats]:
        """Leave out all detections inside a group.

        Returns:
            The groups that were found with a score above 0, and the best score of the detections in each of them.
        """
        row, label = self._candidates(of_masks, groups=True)
        self.ignored[row] = True
        found, place = np.unique(label, return_inverse=True)
        best = np.zeros(len(found))
        np.maximum.at(best, place, self._scores[row])
        return found[best > 0], best[best > 0]

    def entries(self, groups: Ints, group_scores: Floats, group_weight: float) -> tuple[Ints, Ints, Floats]:
        """Image, category and value of all entries, by category and falling score.

        Each image lists its detections from the best down, and then its groups in the order of the labels; the lists are joined.
        Of equal scores, the last in that list goes first.
        """
        rows = np.flatnonzero(~self.ignored)
        kept = self._order[rows]
        image = np.concatenate([self._detected.image[kept], self._labelled.image[groups]])
        category = np.concatenate([self._detected.category[kept], self._labelled.category[groups]])
        scores = np.concatenate([self._scores[rows], group_scores])
        is_group = np.repeat([0, 1], [len(rows), len(groups)])
        value = np.concatenate([self.right[rows].astype(np.float64), np.full(len(groups), group_weight)])
        ranked = np.lexsort((-np.concatenate([rows, groups]), -is_group, -image, -scores, category))
        return image[ranked], category[ranked], value[ranked]

    @property
    def _scores(self) -> Floats:
        return self._detected.score[self._order].astype(np.float64)

    def _candidates(self, of_masks: bool, groups: bool) -> tuple[Ints, Ints]:
        """Undecided detections, and the label of a kind that each of them overlaps most and enough."""
        label = self._pairs.label
        pairs = self._pairs.of((self._drawn[label] == of_masks) & (self._labelled.group[label] == groups))
        overlap = _mask_overlap if of_masks else _box_overlap
        row, label = pairs.best(overlap(self._detected, self._labelled, self._order, pairs, groups))
        undecided = ~(self.right | self.ignored)[row]
        return row[undecided], label[undecided]


def _box_overlap(detected: Detected, labelled: Labelled, order: Ints, pairs: _Pairs, inside: bool) -> Floats:
    """IoU of the boxes of each pair, float64 (p,); or the share of the detection that lies inside the label."""
    first, second = detected.corners[order[pairs.row]], labelled.corners[pairs.label]
    sides = np.maximum(0.0, np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2]))
    shared = sides[:, 1] * sides[:, 0]
    area, label_area = ((box[:, 3] - box[:, 1]) * (box[:, 2] - box[:, 0]) for box in (first, second))
    return shared / (area if inside else area + label_area - shared)


def _mask_overlap(detected: Detected, labelled: Labelled, order: Ints, pairs: _Pairs, inside: bool) -> npt.NDArray[np.float32]:
    """IoU of the masks of each pair, float32 (p,); or the share of the detection that lies inside the label."""
    from pycocotools.mask import area, iou

    assert detected.masks is not None and labelled.masks is not None
    shares, areas, label_areas = (np.zeros(len(pairs.row)) for _ in range(3))
    starts = np.flatnonzero(np.append(True, pairs.block[1:] != pairs.block[:-1])[: len(pairs.row)])
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(pairs.row)]):
        rows, labels = np.unique(pairs.row[start:end]), np.unique(pairs.label[start:end])
        masks = [detected.masks[k] for k in order[rows].tolist()]
        label_masks = [labelled.masks[k] for k in labels.tolist()]
        # For crowds, pycocotools divides the common pixels by those of the detection, which gives their number back.
        shares[start:end] = np.ravel(iou(masks, label_masks, np.ones(len(labels), np.uint8)))
        areas[start:end] = np.repeat([float(area(mask)) for mask in masks], len(labels))
        label_areas[start:end] = np.tile([float(area(mask)) for mask in label_masks], len(rows))
    shared = np.rint(shares * areas).astype(np.float32)
    area_32, label_area_32 = areas.astype(np.float32), label_areas.astype(np.float32)
    if inside:
        return np.asarray(shared / (area_32 + SMALLEST_UNION), np.float32)
    return np.asarray(shared / np.maximum(area_32 + label_area_32 - shared, SMALLEST_UNION), np.float32)
