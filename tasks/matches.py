"""What images contribute to average precision, and its arrangement as precision-recall curves.

matches (matching.py) -> steps of each curve -> blocks of curves of similar length -> sums (precision_recall.py)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.overlaps import Bools, Floats, Ints
from icmbench.tasks.precision_recall import Block, Curves, Piece

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # Overlap from which a detection matches a label.
# A block has about this many matches, or as many as its fewest curves have.
BLOCK_SIZE = 8192
FEWEST_CURVES = 8
# The shortest curve of a block is at least this share of its longest, so that little of it is padding.
SHORTEST_SHARE = 0.8
PIECE_SIZE = 1024  # Matches of a piece, so that it stays in a processor's cache with some hundred replicates.


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
    def curves(self) -> Curves:
        """The matches as precision-recall curves: the part of the summation that is the same for all weights."""
        area, label = np.nonzero(self.label_counts)
        labels = _counts(
            area * self.categories + self.label_category[label],
            self.label_image[label],
            np.ones(len(label), np.int32),
            (len(self.areas) * self.categories, self.images + 1),
        )
        steps = _steps(self)
        detections, ranges, place = _detections_between(self, steps)
        corrections = _corrections(self, steps)
        return Curves(
            count=len(self.areas) * len(THRESHOLDS) * self.categories,
            labels=labels,
            detections=detections,
            ranges=ranges,
            blocks=[_block(self, steps, place, corrections, chosen) for chosen in _similar(steps.size)],
        )


def _counts(row: Ints, column: Ints, value: Ints, shape: tuple[int, int]) -> csr_matrix:
    """A sparse matrix of numbers; those of one cell are added up."""
    from scipy.sparse import csr_matrix

    return csr_matrix((value, (row, column)), shape=shape)


@dataclass(frozen=True)
class _Steps:
    """The matches that are steps of a curve: those with a label that counts, of the c curves that have one.

    The first match of such a curve is a step in any case, since COCOeval grants the recall level 0 there.
    """

    match: Ints  # (s,), which match each step is; ascending, and so are the curves.
    start: Ints  # (c,), first step of each curve.
    size: Ints  # (c,), number of steps of each curve.
    curve: Ints  # (c,), number of each curve.
    lift: Floats  # (c,), how many curves with a match come after each one.


def _steps(m: Matches) -> _Steps:
    is_first = np.ones(len(m.curve), dtype=bool)
    is_first[1:] = m.curve[1:] != m.curve[:-1]
    first = np.flatnonzero(is_first)
    rank = np.cumsum(is_first) - 1
    has_step = np.zeros(len(first), dtype=bool)
    has_step[rank[m.true]] = True
    match = np.flatnonzero((m.true | is_first) & has_step[rank])
    curve, start, size = np.unique(m.curve[match], return_index=True, return_counts=True)
    return _Steps(match, start, size, curve, np.arange(len(first))[::-1][has_step].astype(np.float64))


def _area(m: Matches, curve: Ints) -> Ints:
    return np.asarray(curve // (len(THRESHOLDS) * m.categories))


def _detections_between(m: Matches, steps: _Steps) -> tuple[csr_matrix, list[tuple[int, int]], Ints]:
    """`detections` and `ranges` of `Curves`, and the row of each step in `detections`."""
    n = len(m.image)
    rows, place = np.unique(_area(m, m.curve[steps.match]) * n + m.position[steps.match], return_inverse=True)
    row_range = rows // n * m.categories + m.category[rows % n] if n else rows
    area, detection = np.nonzero(m.inside)
    row = np.searchsorted(rows, area * n + detection)
    detection_range = area * m.categories + m.category[detection]
    # After the last step of its area range and category, a detection changes no precision that the envelope needs.
    needed = np.append(row_range, -1)[row] == detection_range
    row, image = row[needed], m.image[detection[needed]]
    first = np.flatnonzero(np.diff(row_range, prepend=-1))
    ranges = [*zip(first.tolist(), [*first[1:].tolist(), len(rows)])]
    return _counts(row, image, np.ones(len(row), np.int32), (len(rows), m.images + 1)), ranges, place


@dataclass(frozen=True)
class _Corrections:
    """Matches of which `Curves.detections` says too much (they are excused) or too little (they count from outside the range)."""

    step: Ints  # (n,), the step at or after the match, ascending: the first whose running count it changes.
    image: Ints  # (n,), image of the match.
    value: Ints  # (n,), -1 or 1, int32.


def _corrections(m: Matches, steps: _Steps) -> _Corrections:
    inside = m.inside[_area(m, m.curve), m.position]
    match = np.flatnonzero(m.true != inside)
    step = np.searchsorted(steps.match, match)
    # After the last step of its curve, a match changes no precision that the envelope needs.
    needed = np.append(m.curve[steps.match], -1)[step] == m.curve[match]
    match, step = match[needed], step[needed]
    return _Corrections(step, m.image[m.position[match]], np.where(m.true[match], 1, -1).astype(np.int32))


def _block(m: Matches, steps: _Steps, place: Ints, corrections: _Corrections, chosen: Ints) -> Block:
    """The curves of the indices `chosen`, the longest first, side by side."""
    start, size, curve = steps.start[chosen], steps.size[chosen], steps.curve[chosen]
    length, width = int(size[0]), len(chosen)
    number = np.arange(length)[:, None]
    # Padding repeats the last step of a shorter curve, in an image that never counts, as does a first step that is not right.
    step = start + np.minimum(number, size - 1)
    match = steps.match[step]
    counts = (number < size) & m.true[match]
    image = np.where(counts, m.image[m.position[match]], m.images)

    first, end = np.searchsorted(corrections.step, [start, start + size])
    part = np.concatenate([np.arange(*bounds) for bounds in zip(first, end, strict=True)])
    column = np.repeat(np.arange(width), end - first)
    row = (corrections.step[part] - start[column]) * width + column
    corrected = _counts(row, corrections.image[part], corrections.value[part], (length * width, m.images + 1))
    return Block(
        curve=curve,
        group=_area(m, curve) * m.categories + curve % m.categories,
        lift=steps.lift[chosen],
        steps=length,
        pieces=_pieces(image, place[step], corrected),
    )


def _similar(sizes: Ints) -> list[npt.NDArray[np.intp]]:
    """Indices of the curves of each block, the longest curves first."""
    order = np.argsort(-sizes, kind="stable")
    falling = sizes[order]
    blocks, start = [], 0
    while start < len(order):
        longest = falling[start]
        similar = int(np.searchsorted(-falling, -SHORTEST_SHARE * longest, side="right"))
        end = min(similar, start + max(FEWEST_CURVES, BLOCK_SIZE // int(longest)))
        blocks.append(order[start:end])
        start = end
    return blocks


def _pieces(image: Ints, place: Ints, corrections: Any) -> list[Piece]:
    length, width = image.shape
    steps = max(1, PIECE_SIZE // width)
    return [
        Piece(
            image[start : start + steps].ravel(),
            place[start : start + steps].ravel(),
            corrections[start * width : (start + steps) * width],
        )
        for start in range(0, length, steps)
    ]
