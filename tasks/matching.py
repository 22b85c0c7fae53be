"""Average precision as COCOeval defines it, with the per-image matches kept. Boxes, masks and keypoints share all of it.

    detections, labels -> overlap within each (image, category) -> greedy matches at 10 thresholds and each area range
                       -> Matches -> weights of images -> cumulative TP and FP -> precision envelope at 101 recalls -> AP

A match depends on its image alone, so `average_precision(matches, weights)` scores any resample of the images without matching
again. It gives the number that COCOeval gives for a list that repeats each image `weight` times, provided that no two detections
of an image have equal scores: COCOeval orders the copies of equal scores image by image, weights order them detection by detection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import image_weights
from icmbench.tasks.overlaps import Bools, Floats, Ints, Overlap

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # Overlap from which a detection matches a label.
RECALLS = np.linspace(0, 1, 101)  # Recall levels at which precision is averaged.
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


@dataclass(frozen=True)
class Matches:
    """What each image contributes to average precision, for A area ranges, T thresholds and K categories.

    Each (area range, threshold, category) has a precision-recall curve of its own. Detections are sorted by category, then by
    falling score. Each curve lists its matched detections in this order; all other detections of its category inside the area
    range are false positives.

    Attributes:
        areas: names of the A area ranges.
        images: number of images.
        categories: K.
        image: int (n,), image of each detection.
        category: int (n,), category of each detection.
        inside: bool (A, n), whether a detection is inside the area range and so counts as wrong if unmatched.
        position: int (m,), index of the matched detection.
        curve: int (m,), curve of the match, (area range * T + threshold) * K + category, ascending.
        true: bool (m,), whether the matched label counts, that is, is not ignored.
        label_image: int (g,), image of each label.
        label_category: int (g,), category of each label.
        label_counts: bool (A, g), whether a label is inside the area range and not ignored.
    """

    areas: tuple[str, ...]
    images: int
    categories: int
    image: Ints
    category: Ints
    inside: Bools
    position: Ints
    curve: Ints
    true: Bools
    label_image: Ints
    label_category: Ints
    label_counts: Bools

    @cached_property
    def curve_index(self) -> CurveIndex:
        """The part of the summation that is the same for all weights."""
        return _curve_index(self)


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
        weights: float64 (images,), how often each image counts; None counts each image once.

    Returns:
        float64 (areas, thresholds, categories) in 0..1; NaN if a category has no label that counts.

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
    counted = image_weights(weights, matches.images)
    label_weights = counted[matches.label_image]
    positives = np.zeros((len(matches.areas), matches.categories))
    for row, counts in zip(positives, matches.label_counts, strict=True):
        row[:] = np.bincount(matches.label_category, label_weights * counts, matches.categories)
    sums = np.zeros((len(matches.areas), len(THRESHOLDS), matches.categories))
    if len(matches.position):
        sums[:] = _precision_sums(matches, counted, positives).reshape(sums.shape)
    return np.where(positives[:, None] > 0, sums / len(RECALLS), np.nan)


def _precision_sums(m: Matches, counted: Floats, positives: Floats) -> Floats:
    """Sum of precision over the recall levels of each curve, float64 (curves,).

    Precision peaks where a detection is right, so the envelope needs the matched detections only.
    """
    index = m.curve_index
    weight = counted[m.image]
    counts = np.zeros((len(m.areas), len(weight) + 1))
    np.cumsum(weight * m.inside, axis=1, out=counts[:, 1:])
    running = counts.ravel()  # Weight of the detections inside the area range so far.
    match_weight = weight[m.position]
    right = _cumsum_per_curve(match_weight * m.true, index)
    detected = running[index.position] - np.repeat(running[index.category_start], index.sizes)
    wrong = detected - _cumsum_per_curve(match_weight * index.inside, index)
    precision = right / (right + wrong + np.spacing(1))
    lifted = (precision + index.lift)[::-1]  # Keeps the running maximum of one curve from reaching into the one before it.
    precision = np.maximum.accumulate(lifted, out=lifted)[::-1] - index.lift

    # Each matched detection accounts for the recall levels that it is the first to reach.
    total = np.repeat(positives.ravel()[index.label], index.sizes)
    reached = np.searchsorted(RECALLS, np.divide(right, total, out=np.zeros_like(right), where=total > 0), side="right")
    reached_before = np.append(0, reached[:-1])
    reached_before[index.starts] = 0
    curves = len(m.areas) * len(THRESHOLDS) * m.categories
    return np.bincount(m.curve, precision * (reached - reached_before), curves).astype(np.float64, copy=False)


@dataclass(frozen=True)
class CurveIndex:
    """Where the matches of each precision-recall curve stand. It depends on the matches alone, not on the weights.

    Attributes:
        starts: int (c,), first match of each curve that has matches.
        sizes: int (c,), number of matches of the curve.
        label: int (c,), index of the curve's labels in a flat (areas, categories) array.
        category_start: int (c,), where the curve's category starts in a flat (areas, detections + 1) running count.
        position: int (m,), where each match stands in that running count.
        inside: bool (m,), whether the matched detection is inside the area range.
        lift: float64 (m,), how many curves come after the match's own.
    """

    starts: Ints
    sizes: Ints
    label: Ints
    category_start: Ints
    position: Ints
    inside: Bools
    lift: Floats


def _curve_index(m: Matches) -> CurveIndex:
    starts = np.flatnonzero(np.append(True, m.curve[1:] != m.curve[:-1]))
    sizes = np.diff(np.append(starts, len(m.curve)))
    area, category = m.curve[starts] // (len(THRESHOLDS) * m.categories), m.curve[starts] % m.categories
    area_start = area * (len(m.image) + 1)
    return CurveIndex(
        starts=starts,
        sizes=sizes,
        label=area * m.categories + category,
        category_start=area_start + np.searchsorted(m.category, category),
        position=np.repeat(area_start, sizes) + m.position + 1,
        inside=m.inside[np.repeat(area, sizes), m.position],
        lift=np.repeat(np.arange(len(starts))[::-1].astype(np.float64), sizes),
    )


def _cumsum_per_curve(values: Floats, index: CurveIndex) -> Floats:
    """Cumulative sums that start at 0 in each curve."""
    sums = np.cumsum(values)
    return sums - np.repeat(sums[index.starts] - values[index.starts], index.sizes)


def ap_scores(matches: Matches, weights: Floats | None = None) -> dict[str, float]:
    """AP as COCO reports it.

    Args:
        matches: the result of `match`; the first area range is "all".
        weights: float64 (images,), how often each image counts; None counts each image once.

    Returns:
        In percent: `AP` over all thresholds, `AP50` and `AP75`, and `APs`, `APm`, `APl` for the other area ranges. NaN if no label
        counts.
    """
    values = 100 * average_precision(matches, weights)
    scores = {"AP": _mean_of_defined(values[0]), "AP50": _mean_of_defined(values[0, 0]), "AP75": _mean_of_defined(values[0, 5])}
    return scores | {f"AP{name[0]}": _mean_of_defined(values[index]) for index, name in enumerate(matches.areas) if index}


def _mean_of_defined(values: npt.NDArray[np.float64]) -> float:
    """Mean without the NaN values; NaN if there are no others."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
