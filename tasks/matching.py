"""Average precision as COCOeval defines it, with its per-image matches kept: boxes, masks and keypoints share all of it.

    detections, labels -> IoU within each (image, category) -> greedy matches at 10 thresholds and each area range
                       -> Matches -> weights of images -> cumulative TP and FP -> precision envelope at 101 recalls -> AP

A match depends on its image alone, so `average_precision(matches, weights)` scores any resampling of the images without
matching again, with the numbers that COCOeval would give for a list that repeats each image `weight` times (where detections
of one image have equal scores, their order among the copies is a matter of taste).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Overlap = Callable[[Ints, Ints], Floats]  # indices of d detections and g labels of one image and category -> (d, g)

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}  # pixels, inclusive


@dataclass(frozen=True)
class Objects:
    """Objects of all images, flat: `image`, `category` int (n,), `area` float64 (n,) in pixels. Category -1 takes no part."""

    image: Ints
    category: Ints
    area: Floats

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Detections(Objects):
    score: npt.NDArray[np.floating]


@dataclass(frozen=True)
class Labels(Objects):
    """crowd: may be matched any number of times. ignored: matches count neither as right nor as wrong (crowds are)."""

    crowd: Bools
    ignored: Bools


@dataclass(frozen=True)
class Matches:
    """What each image contributes to average precision, for A area ranges, T thresholds and K categories.

    Detections stand in order of category, then falling score. Of each (area, threshold, category) the matched ones are listed,
    in this order again; all others inside the area range are false positives.
    """

    areas: tuple[str, ...]
    images: int
    categories: int
    image: Ints  # (n,) of each detection
    category: Ints  # (n,)
    inside: Bools  # (A, n): inside the area range, so wrong where unmatched
    position: Ints  # (m,) the matched detection
    segment: Ints  # (m,) (area * T + threshold) * K + category, ascending
    true: Bools  # (m,): matched to a label that counts, not to an ignored one
    label_image: Ints  # (g,)
    label_category: Ints  # (g,)
    label_counts: Bools  # (A, g): neither ignored nor outside the area range

    @cached_property
    def fixed(self) -> Fixed:
        """Computed once for all weights."""
        return _fixed(self)


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

    Only the `limit` best of an image and category take part. Of equal scores the earlier image and detection come first; of equal
    overlaps the later label. Labels that count go before ignored ones.

    order: the images, from early to late; `image` of detections and labels indexes it, `image` of the matches is its values.
    """
    kept = _best_first(detections, limit)
    edge_d, edge_g, iou = _edges(detections, labels, overlap, kept)
    ranks = np.lexsort((-detections.score[kept], detections.category[kept]))  # stable: equal scores stay in order of image
    ranked = kept[ranks]
    place = np.full(len(detections), -1)
    place[ranked] = np.arange(len(ranked))
    names = np.asarray(order, dtype=np.int64)

    inside, counts, positions, segments, trues = [], [], [], [], []
    passes = iou[:, None] >= THRESHOLDS
    for index, (low, high) in enumerate(areas.values()):
        counted = ~labels.ignored & (labels.area >= low) & (labels.area <= high)
        within = (detections.area[ranked] >= low) & (detections.area[ranked] <= high)
        edge, threshold = _assign(edge_d, edge_g, iou, passes, labels, counted)
        position, true = place[edge_d[edge]], counted[edge_g[edge]]
        useful = true | within[position]
        segment = (index * len(THRESHOLDS) + threshold) * categories + detections.category[edge_d[edge]]
        sort = np.lexsort((position[useful], segment[useful]))
        inside.append(within)
        counts.append(counted)
        positions.append(position[useful][sort])
        segments.append(segment[useful][sort])
        trues.append(true[useful][sort])
    return Matches(
        areas=tuple(areas),
        images=len(order),
        categories=categories,
        image=names[detections.image[ranked]],
        category=detections.category[ranked],
        inside=np.stack(inside),
        position=np.concatenate(positions),
        segment=np.concatenate(segments),
        true=np.concatenate(trues),
        label_image=names[labels.image],
        label_category=labels.category,
        label_counts=np.stack(counts),
    )


def _groups(objects: Objects, order: Ints) -> tuple[Ints, Ints]:
    """Where each (image, category) starts in `order`, which is sorted by them; and these keys as rows."""
    keys = np.stack([objects.image[order], objects.category[order]], axis=1)
    new = np.ones(len(keys), dtype=bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    return starts, keys[starts]


def _best_first(detections: Detections, limit: int) -> Ints:
    """Indices by image, category, falling score; the `limit` best of each image and category."""
    order = np.lexsort((-detections.score, detections.category, detections.image))
    order = order[detections.category[order] >= 0]
    starts, _ = _groups(detections, order)
    sizes = np.diff(np.append(starts, len(order)))
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    return order[rank < limit]


def _edges(detections: Detections, labels: Labels, overlap: Overlap, kept: Ints) -> tuple[Ints, Ints, Floats]:
    """Pairs of a detection and a label that could match, by image, category and falling score of the detection."""
    grouped = np.lexsort((labels.category, labels.image))  # stable: labels of a group stay in their order
    label_starts, label_keys = _groups(labels, grouped)
    starts, keys = _groups(detections, kept)
    ends, label_ends = np.append(starts[1:], len(kept)), np.append(label_starts[1:], len(grouped))
    there = {key: k for k, key in enumerate(map(tuple, label_keys.tolist()))}
    ds: list[Ints] = [np.zeros(0, np.int64)]
    gs: list[Ints] = [np.zeros(0, np.int64)]
    ious: list[Floats] = [np.zeros(0)]
    for key, start, end in zip(map(tuple, keys.tolist()), starts.tolist(), ends.tolist()):
        if (k := there.get(key)) is not None:
            d, g = kept[start:end], grouped[label_starts[k] : label_ends[k]]
            shared = overlap(d, g)
            row, column = np.nonzero(shared >= THRESHOLDS[0])
            ds.append(d[row])
            gs.append(g[column])
            ious.append(shared[row, column])
    return np.concatenate(ds), np.concatenate(gs), np.concatenate(ious)


def _assign(edge_d: Ints, edge_g: Ints, iou: Floats, passes: Bools, labels: Labels, counted: Bools) -> tuple[Ints, Ints]:
    """Edges and thresholds of all matches.

    Every (image, category) walks through its own edges: detections in their order, the labels of each from the most wanted to
    the least. The walks do not touch each other, so the n-th steps of all of them are one operation on arrays.
    """
    if not len(edge_d):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    turn = np.cumsum(np.append(0, edge_d[1:] != edge_d[:-1]))  # edges of one detection are adjacent
    walk = np.lexsort((-np.arange(len(iou)), -iou, ~counted[edge_g], turn))
    first = edge_g[walk]
    pair = np.stack([labels.image[first], labels.category[first]], axis=1)
    starts = np.flatnonzero(np.append(True, (pair[1:] != pair[:-1]).any(axis=1)))
    lengths = np.diff(np.append(starts, len(walk)))

    detection, target = edge_d[walk], edge_g[walk]
    free_d = np.ones((int(edge_d.max()) + 1, len(THRESHOLDS)), dtype=bool)
    free_g = np.ones((len(labels), len(THRESHOLDS)), dtype=bool)
    taken = np.zeros(passes.shape, dtype=bool)
    longest_first = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[longest_first], lengths[longest_first]
    for step in range(int(lengths[0])):
        at = starts[: np.searchsorted(-lengths, -step, side="left")] + step
        d, g, edge = detection[at], target[at], walk[at]
        hit = passes[edge] & free_d[d] & free_g[g]
        taken[edge] = hit
        free_d[d] &= ~hit
        free_g[g] &= ~hit | labels.crowd[g, None]
    edge, threshold = np.nonzero(taken)
    return edge, threshold


def average_precision(matches: Matches, weights: Floats | None = None) -> npt.NDArray[np.float64]:
    """AP as float64 (areas, thresholds, categories) in 0..1; NaN where a category has no label that counts.

    weights: float64 (images,), how often each image counts; None counts each once.
    """
    m = matches
    counted = np.ones(m.images) if weights is None else np.asarray(weights, dtype=np.float64)
    shape = (len(m.areas), len(THRESHOLDS), m.categories)
    own = counted[m.label_image]
    positives = np.stack([np.bincount(m.label_category, own * counts, m.categories) for counts in m.label_counts])
    if not len(m.position):
        return np.where(positives[:, None] > 0, np.zeros(shape), np.nan)

    # Precision peaks where a detection is right, so the envelope needs the matched detections only.
    f = m.fixed
    share = counted[m.image]
    seen = np.zeros((len(m.areas), len(share) + 1))
    np.cumsum(share * m.inside, axis=1, out=seen[:, 1:])
    passed = seen.ravel()
    mine = share[m.position]
    right = _running(mine * m.true, f)
    wrong = passed[f.up_to] - np.repeat(passed[f.opening], f.sizes) - _running(mine * f.inside, f)
    precision = right / (right + wrong + np.spacing(1))
    lifted = (precision + f.lift)[::-1]  # so that no segment reaches over the one before it
    precision = np.maximum.accumulate(lifted, out=lifted)[::-1] - f.lift

    # Each matched detection answers for the recall levels that it is the first to reach.
    total = np.repeat(positives.ravel()[f.label], f.sizes)
    levels = np.searchsorted(RECALLS, np.divide(right, total, out=np.zeros_like(right), where=total > 0), side="right")
    before = np.append(0, levels[:-1])
    before[f.starts] = 0
    sums = np.bincount(m.segment, precision * (levels - before), int(np.prod(shape))).reshape(shape)
    return np.where(positives[:, None] > 0, sums / len(RECALLS), np.nan)


@dataclass(frozen=True)
class Fixed:
    """What no weights change of how matches are added up. Of each segment that has matches, in order:

    starts, sizes: its place among them; label: where its labels stand in a flat (areas, categories); opening: where its
    category starts in the flat running count (areas, detections + 1). Of each match: up_to, its own place in that count;
    inside: whether the detection is within the area range; lift: how many segments come after, float64.
    """

    starts: Ints
    sizes: Ints
    label: Ints
    opening: Ints
    up_to: Ints
    inside: Bools
    lift: Floats


def _fixed(m: Matches) -> Fixed:
    starts = np.flatnonzero(np.append(True, m.segment[1:] != m.segment[:-1]))
    sizes = np.diff(np.append(starts, len(m.segment)))
    area, category = m.segment[starts] // (len(THRESHOLDS) * m.categories), m.segment[starts] % m.categories
    row = area * (len(m.image) + 1)
    of = np.repeat(area, sizes)
    return Fixed(
        starts=starts,
        sizes=sizes,
        label=area * m.categories + category,
        opening=row + np.searchsorted(m.category, category),
        up_to=np.repeat(row, sizes) + m.position + 1,
        inside=m.inside[of, m.position],
        lift=np.repeat(np.arange(len(starts))[::-1].astype(np.float64), sizes),
    )


def _running(values: Floats, fixed: Fixed) -> Floats:
    """Cumulative sums that start anew in each segment."""
    sums = np.cumsum(values)
    return sums - np.repeat(sums[fixed.starts] - values[fixed.starts], fixed.sizes)


def ap_scores(matches: Matches, weights: Floats | None = None) -> dict[str, float]:
    """AP, AP50, AP75 and AP of each area range but the first (APs, APm, APl), in percent; NaN where no label counts."""
    values = 100 * average_precision(matches, weights)
    scores = {"AP": _mean(values[0]), "AP50": _mean(values[0, 0]), "AP75": _mean(values[0, 5])}
    return scores | {f"AP{name[0]}": _mean(values[index]) for index, name in enumerate(matches.areas) if index}


def _mean(values: npt.NDArray[Any]) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")


def box_overlap(detections: Floats, labels: Floats, crowd: Bools) -> Overlap:
    """IoU of boxes (n, 4) as x, y, width, height; of a crowd, the share of the detection inside it. By pycocotools."""
    from pycocotools.mask import iou

    flags = crowd.astype(np.uint8)
    return lambda d, g: iou(detections[d], labels[g], flags[g])


def mask_overlap(detections: list[Any], labels: list[Any], crowd: Bools) -> Overlap:
    """The same of masks as COCO run lengths `{"size": [height, width], "counts": bytes}`."""
    from pycocotools.mask import iou

    flags = crowd.astype(np.uint8)
    return lambda d, g: iou([detections[i] for i in d], [labels[i] for i in g], flags[g])


COCO_SIGMAS = (  # of the 17 person keypoints
    np.array([0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89]) / 10
)


def keypoint_overlap(detections: Floats, labels: Floats, boxes: Floats, areas: Floats, sigmas: Floats = COCO_SIGMAS) -> Overlap:
    """Object keypoint similarity of COCO: detections (n, k, 2+) and labels (m, k, 3) as x, y, visibility.

    boxes (m, 4) and areas (m,) of the labels: a label without visible keypoints is as far as the detection's keypoints lie outside
    its box doubled to every side.
    """
    scale = (2 * sigmas) ** 2

    def overlap(d: Ints, g: Ints) -> Floats:
        points, wanted, box = detections[d][:, None, :, :2], labels[g][None], boxes[g][None, :, None]
        visible: Bools = wanted[..., 2] > 0
        low, high = box[..., :2] - box[..., 2:], box[..., :2] + 2 * box[..., 2:]
        outside = np.maximum(0, low - points) + np.maximum(0, points - high)
        some: Bools = np.any(visible, axis=-1, keepdims=True)
        distance = np.where(some[..., None], points - wanted[..., :2], outside)
        error = (distance**2).sum(axis=-1) / scale / (areas[g][None, :, None] + np.spacing(1)) / 2
        used = visible | ~some
        return (np.exp(-error) * used).sum(axis=-1) / used.sum(axis=-1)

    return overlap
