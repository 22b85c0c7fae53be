"""Average precision as COCOeval defines it, with the per-image matches kept. Boxes, masks and keypoints share all of it.

    detections, labels -> overlap within each (image, category) -> greedy matches at 10 thresholds and each area range
                       -> Matches (matches.py) -> weights of images -> precision envelope at 101 recalls (precision_recall.py) -> AP

A match depends on its image alone, so `average_precision(matches, weights)` scores any resample of the images without matching
again. It gives the number that COCOeval gives for a list that repeats each image `weight` times, provided that no two detections
of an image have equal scores: COCOeval orders the copies of equal scores image by image, weights order them detection by detection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import image_weights, takes_batches
from icmbench.tasks.matches import THRESHOLDS, Matches
from icmbench.tasks.overlaps import Bools, Floats, Ints, Overlap
from icmbench.tasks.precision_recall import RECALLS, precision_sums

# Ranges of an object's area in square pixels, both ends included.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


@dataclass(frozen=True)
class Objects:
    """Objects of all images, flat.

    Attributes:
        image: int (n,), index of the object's image.
        category: int (n,); objects of category -1 take no part.
        area: float64 (n,) in square pixels.
    """

    image: Ints
    category: Ints
    area: Floats

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Detections(Objects):
    """Detected objects.

    Attributes:
        score: floating point (n,), higher is more certain.
    """

    score: npt.NDArray[np.floating]


@dataclass(frozen=True)
class Labels(Objects):
    """Labelled objects.

    Attributes:
        crowd: bool (n,), labels that any number of detections may match.
        ignored: bool (n,), labels whose matches count neither as right nor as wrong; crowds are among them.
    """

    crowd: Bools
    ignored: Bools


def match(
    detections: Detections,
    labels: Labels,
    overlap: Overlap,
    order: Sequence[int],
    categories: int,
    areas: Mapping[str, tuple[float, float]] = AREAS,
    limit: int = 100,
) -> Matches:
    """COCOeval's matches: each detection, by falling score, takes the free label that it overlaps most.

    Among equal scores the earlier image and detection go first; among equal overlaps the later label is taken. Labels that count
    are taken before ignored ones.

    Args:
        detections: detections of all images.
        labels: labels of all images.
        overlap: overlap of detections with labels.
        order: the images from first to last. `image` of detections and labels indexes it; `image` of the matches holds its values.
        categories: number of categories.
        areas: area ranges by name, lowest and highest area in square pixels.
        limit: how many detections of an image and category take part, the highest scores first.
    """
    kept = _best_first(detections, limit)
    pairs = _candidate_pairs(detections, labels, overlap, kept)
    ranked = kept[np.lexsort((-detections.score[kept], detections.category[kept]))]  # Stable: ties stay in order of image.
    rank = np.full(len(detections), -1)
    rank[ranked] = np.arange(len(ranked))
    inside = np.stack([_within(detections.area[ranked], area) for area in areas.values()])
    counts = np.stack([~labels.ignored & _within(labels.area, area) for area in areas.values()])
    ranges = []
    for index in range(len(areas)):
        position, curve, true = _matches_in_range(pairs, rank, labels, inside[index], counts[index], categories)
        ranges.append((position, index * len(THRESHOLDS) * categories + curve, true))
    position, curve, true = (np.concatenate(columns) for columns in zip(*ranges, strict=True))
    names = np.asarray(order, dtype=np.int64)
    return Matches(
        areas=tuple(areas),
        images=len(order),
        categories=categories,
        image=names[detections.image[ranked]],
        category=detections.category[ranked],
        inside=inside,
        position=position,
        curve=curve,
        true=true,
        label_image=names[labels.image],
        label_category=labels.category,
        label_counts=counts,
    )


def _within(area: Floats, bounds: tuple[float, float]) -> Bools:
    return (area >= bounds[0]) & (area <= bounds[1])


def _best_first(detections: Detections, limit: int) -> Ints:
    """Indices sorted by image, category and falling score; the `limit` best of each image and category."""
    order = np.lexsort((-detections.score, detections.category, detections.image))
    order = order[detections.category[order] >= 0]
    starts, _ = _group_starts(detections, order)
    sizes = np.diff(np.append(starts, len(order)))
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    return order[place < limit]


def _group_starts(objects: Objects, order: Ints) -> tuple[Ints, Ints]:
    """Where each (image, category) starts in `order`, which is sorted by them, and these pairs as rows."""
    keys = np.stack([objects.image[order], objects.category[order]], axis=1)
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    starts = np.flatnonzero(is_first)
    return starts, keys[starts]


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a detection and a label that overlap enough to match at some threshold; p aligned rows."""

    detection: Ints  # (p,), sorted by image, category and falling score.
    label: Ints  # (p,), the label of each pair.
    overlap: Floats  # (p,), intersection over union, or keypoint similarity.
    category: Ints  # (p,), the category of both.
    passes: Bools  # (p, T), whether the overlap reaches each threshold.


def _candidate_pairs(detections: Detections, labels: Labels, overlap: Overlap, kept: Ints) -> _Pairs:
    grouped = np.lexsort((labels.category, labels.image))  # Stable: the labels of a group keep their order.
    label_starts, label_keys = _group_starts(labels, grouped)
    starts, keys = _group_starts(detections, kept)
    ends, label_ends = np.append(starts[1:], len(kept)), np.append(label_starts[1:], len(grouped))
    label_group = {key: k for k, key in enumerate(map(tuple, label_keys.tolist()))}
    ds: list[Ints] = [np.zeros(0, np.int64)]
    gs: list[Ints] = [np.zeros(0, np.int64)]
    overlaps: list[Floats] = [np.zeros(0)]
    for key, start, end in zip(map(tuple, keys.tolist()), starts.tolist(), ends.tolist()):
        if (k := label_group.get(key)) is not None:
            d, g = kept[start:end], grouped[label_starts[k] : label_ends[k]]
            values = overlap(d, g)
            row, column = np.nonzero(values >= THRESHOLDS[0])
            ds.append(d[row])
            gs.append(g[column])
            overlaps.append(values[row, column])
    detection, value = np.concatenate(ds), np.concatenate(overlaps)
    return _Pairs(detection, np.concatenate(gs), value, detections.category[detection], value[:, None] >= THRESHOLDS)


def _matches_in_range(
    pairs: _Pairs, rank: Ints, labels: Labels, inside: Bools, counts: Bools, categories: int
) -> tuple[Ints, Ints, Bools]:
    """Matches of one area range, sorted by curve: position of the detection, curve within the range, whether the label counts."""
    pair, threshold = _greedy_matches(pairs, labels, counts)
    position, true = rank[pairs.detection[pair]], counts[pairs.label[pair]]
    curve = threshold * categories + pairs.category[pair]
    # A detection outside the range that matches an ignored label is neither right nor wrong, so it is dropped.
    useful = true | inside[position]
    position, curve, true = position[useful], curve[useful], true[useful]
    sort = np.lexsort((position, curve))
    return position[sort], curve[sort], true[sort]


def _greedy_matches(pairs: _Pairs, labels: Labels, counts: Bools) -> tuple[Ints, Ints]:
    """Indices of the pairs that match, and at which thresholds.

    Every (image, category) walks through its own pairs: detections in their order, and for each detection the labels from the
    most to the least preferred. The walks are independent, so the n-th steps of all of them are one operation on arrays.
    """
    if not len(pairs.detection):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    turn = np.cumsum(np.append(0, pairs.detection[1:] != pairs.detection[:-1]))  # Pairs of one detection are adjacent.
    walk = np.lexsort((-np.arange(len(turn)), -pairs.overlap, ~counts[pairs.label], turn))
    detection, label = pairs.detection[walk], pairs.label[walk]
    group = np.stack([labels.image[label], labels.category[label]], axis=1)
    starts = np.flatnonzero(np.append(True, (group[1:] != group[:-1]).any(axis=1)))
    lengths = np.diff(np.append(starts, len(walk)))

    detection_free = np.ones((int(detection.max()) + 1, len(THRESHOLDS)), dtype=bool)
    label_free = np.ones((len(labels), len(THRESHOLDS)), dtype=bool)
    matched = np.zeros(pairs.passes.shape, dtype=bool)
    longest_first = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[longest_first], lengths[longest_first]
    for step in range(int(lengths[0])):
        current = starts[: np.searchsorted(-lengths, -step, side="left")] + step
        d, g, pair = detection[current], label[current], walk[current]
        hit = pairs.passes[pair] & detection_free[d] & label_free[g]
        matched[pair] = hit
        detection_free[d] &= ~hit
        label_free[g] &= ~hit | labels.crowd[g, None]
    pair, threshold = np.nonzero(matched)
    return pair, threshold


def average_precision(matches: Matches, weights: Floats | None = None) -> npt.NDArray[np.float64]:
    """AP of every precision-recall curve.

    Args:
        matches: the result of `match`.
        weights: float64 (images,), how often each image counts; None counts each image once. Or float64 (replicates, images), which
            takes a fifth of the time that the replicates take one by one, and gives the same numbers to the last bit.

    Returns:
        float64 (areas, thresholds, categories) in 0..1; NaN if a category has no label that counts. With weights of replicates,
        float64 (replicates, areas, thresholds, categories).

    Example:
        Two images with one labelled box each. The first detection is exact, the second covers 72 % of its label.

        >>> from icmbench.tasks.overlaps import box_overlap
        >>> image, category, no = np.array([0, 1]), np.array([0, 0]), np.array([False, False])
        >>> labels = Labels(image, category, area=np.array([100.0, 100.0]), crowd=no, ignored=no)
        >>> detections = Detections(image, category, area=np.array([100.0, 72.0]), score=np.array([0.9, 0.8]))
        >>> boxes = np.array([[0, 0, 10, 10.0], [0, 0, 10, 10.0]])
        >>> overlap = box_overlap(np.array([[0, 0, 10, 10.0], [0, 0, 10, 7.2]]), boxes, labels.crowd)
        >>> matches = match(detections, labels, overlap, order=[0, 1], categories=1)

        At IoU 0.5 both are right. At IoU 0.75 the second is wrong, so precision is 1 up to recall 0.5, which is 51 of 101 levels:

        >>> average_precision(matches)[0, [0, 5], 0].round(4)
        array([1.   , 0.505])
        >>> average_precision(matches, weights=np.array([1.0, 0.0]))[0, [0, 5], 0].round(4)
        array([1., 1.])
    """
    counted = np.atleast_2d(image_weights(weights, matches.images))
    step = matches.curves.replicates_at_once
    parts = [_average_precision(matches, counted[start : start + step]) for start in range(0, max(len(counted), 1), step)]
    values = np.concatenate(parts)
    return values[0] if weights is None or np.ndim(weights) == 1 else values


def _average_precision(matches: Matches, weights: Floats) -> Floats:
    """AP of every curve under the weights of each replicate, float64 (replicates, areas, thresholds, categories)."""
    sums, positives = precision_sums(matches.curves, weights)
    areas, categories = len(matches.areas), matches.categories
    sums = sums.reshape(-1, areas, len(THRESHOLDS), categories)
    return np.where(positives.reshape(-1, areas, 1, categories) > 0, sums / len(RECALLS), np.nan)


@takes_batches
def ap_scores(matches: Matches, weights: Floats | None = None) -> dict[str, Any]:
    """AP as COCO reports it.

    Args:
        matches: the result of `match`; the first area range is "all".
        weights: float64 (images,), how often each image counts; None counts each image once. Or float64 (replicates, images).

    Returns:
        In percent: `AP` over all thresholds, `AP50` and `AP75`, and `APs`, `APm`, `APl` for the other area ranges. NaN if no label
        counts. A float each; with weights of replicates, float64 (replicates,) each.
    """
    values = 100 * average_precision(matches, weights)
    if values.ndim == 3:
        return _scores(matches, values)
    scores = [_scores(matches, of_one) for of_one in values]
    return {name: np.array([of_one[name] for of_one in scores]) for name in scores[0]}


def _scores(matches: Matches, values: Floats) -> dict[str, float]:
    scores = {"AP": _mean_of_defined(values[0]), "AP50": _mean_of_defined(values[0, 0]), "AP75": _mean_of_defined(values[0, 5])}
    return scores | {f"AP{name[0]}": _mean_of_defined(values[index]) for index, name in enumerate(matches.areas) if index}


def _mean_of_defined(values: npt.NDArray[np.float64]) -> float:
    """Mean without the NaN values; NaN if there are no others."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
