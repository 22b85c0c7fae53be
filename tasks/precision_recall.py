"""Precision summed over the recall levels of many precision-recall curves, for many resamples of the images at once.

    weight of each image -> weight of the right detections so far  --> recall ----> levels that each step gains -----\\
                         -> weight of the judged detections so far --> precision -> its maximum from there on -------> sum

A curve has a step for each detection that matches a label, from the highest score to the lowest. Precision peaks where a detection
is right, so the envelope needs no other steps. The arrays have a row for each step, and a column for each curve and each replicate:
running sums and maxima then are one numpy call for a row of thousands of numbers, and equal for each replicate in any company.
Curves of similar length stand side by side as a block, the shorter ones padded with matches in an image that never counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.overlaps import Floats, Ints

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Numbers = npt.NDArray[Any]  # Whole numbers as int32, others as float64; see `_type_of_counts`.
RECALLS = np.linspace(0, 1, 101)  # Recall levels at which precision is averaged.
# Narrower rows than this many numbers cost more in calls of numpy than they save.
WIDE = 128
# Numbers in the largest array, 256 MiB of float64: more replicates are summed one group after the other.
LARGEST_ARRAY = 2**25
MOST_REPLICATES = 256
LARGEST_TABLE = 2**27  # Entries of a table of the recall levels, 128 MiB.


@dataclass(frozen=True)
class Piece:
    """Consecutive steps of the curves of a block, few enough to stay in a processor's cache.

    Attributes:
        image: int (steps * curves,), image of each match, step by step; the number of images for one that never counts.
        place: int (steps * curves,), row of each match in `Curves.detections`.
        corrections: whole numbers, sparse (steps * curves, images + 1): how many more detections of each image are judged since
            the step before than `Curves.detections` says. Negative where a match with an ignored label is excused, positive where
            a match counts although the detection lies outside the area range.
    """

    image: Ints
    place: Ints
    corrections: csr_matrix


@dataclass(frozen=True)
class Block:
    """Curves of similar length, side by side.

    Attributes:
        curve: int (curves,), number of each curve.
        group: int (curves,), area range and category of each curve, as a row of `Curves.labels`.
        lift: float64 (curves,), how many curves come after each one; see `_envelope`.
        steps: length of the longest curve.
        pieces: the steps from first to last.
    """

    curve: Ints
    group: Ints
    lift: Floats
    steps: int
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Curves:
    """All curves. What is here depends on the matches alone, not on the weights.

    Attributes:
        count: number of curves; those without a right match are in no block.
        labels: sparse (areas * categories, images + 1), number of labels of each image that count.
        detections: sparse (rows, images + 1), number of detections of each image inside the area range, after the row before and
            up to this one. The rows are the matched detections of each area range and category, by falling score.
        ranges: first and last row (exclusive) of each area range and category in `detections`.
        blocks: curves that have a right match.
    """

    count: int
    labels: csr_matrix
    detections: csr_matrix
    ranges: Sequence[tuple[int, int]]
    blocks: Sequence[Block]

    @property
    def replicates_at_once(self) -> int:
        """How many replicates to sum at once, so that the largest array stays within bounds."""
        steps = max((block.steps * len(block.curve) for block in self.blocks), default=1)
        return int(np.clip(LARGEST_ARRAY // max(steps, self.detections.shape[0], 1), 1, MOST_REPLICATES))


def precision_sums(curves: Curves, weights: Floats) -> tuple[Floats, Floats]:
    """Precision of every curve, summed over the recall levels.

    Args:
        curves: the curves.
        weights: float64 (replicates, images), how often each image counts.

    Returns:
        The sums, float64 (replicates, count), and the weight of the labels of each area range and category, float64 (replicates,
        areas * categories). The sum is 0 where that weight is 0.
    """
    replicates, images = weights.shape
    counted = np.zeros((images + 1, replicates), _type_of_counts(curves, weights))
    counted[:-1] = weights.T
    positives = curves.labels @ counted
    levels = _RecallLevels(positives)
    detected = curves.detections @ counted
    for start, end in curves.ranges:
        _running(np.add, detected[start:end])
    sums = np.zeros((curves.count, replicates))
    # Allocated once, since fresh memory for each block costs as much as the arithmetic.
    largest = replicates * max((block.steps * len(block.curve) for block in curves.blocks), default=0)
    precisions, gains = np.empty(largest), np.empty(largest, np.uint8)
    for block in curves.blocks:
        shape = block.steps, len(block.curve) * replicates
        precision, gained = (space[: shape[0] * shape[1]].reshape(shape) for space in (precisions, gains))
        _follow(block, counted, detected, levels, precision, gained)
        _envelope(precision, np.repeat(block.lift, replicates))
        precision *= gained
        sums[block.curve] = _running(np.add, precision)[-1].reshape(-1, replicates)
    return np.ascontiguousarray(sums.T), positives.T.astype(np.float64)


def _type_of_counts(curves: Curves, weights: Floats) -> type[np.generic]:
    """int32 for whole weights, as resampling draws them: the same numbers in half the memory, and an index of a table."""
    largest = np.abs(weights).max(initial=0) * max(curves.detections.sum(), curves.labels.sum())
    return np.int32 if largest < 2**31 and (weights == np.rint(weights)).all() else np.float64


class _RecallLevels:
    """How many of `RECALLS` are reached, by the weight of the right detections: read from a table where weights are whole.

    Args:
        positives: int32 or float64 (areas * categories, replicates), weight of the labels.
    """

    def __init__(self, positives: Numbers) -> None:
        self.positives = positives
        self.table: npt.NDArray[np.uint8] | None = None
        if positives.dtype == np.int32 and positives.sum() < LARGEST_TABLE:
            totals, occurrence = np.unique(positives, return_inverse=True)
            self.table = np.concatenate([_levels_by_right(total) for total in totals.tolist()])
            self.start = (np.cumsum(totals + 1, dtype=np.intp) - (totals + 1))[occurrence].reshape(positives.shape)

    def reached(self, right: Numbers, group: Ints) -> npt.NDArray[np.uint8]:
        """uint8 (steps, curves * replicates), from the weight of the right detections and the groups of the curves."""
        if self.table is not None:
            return self.table.take(right + self.start[group].ravel())
        positives = self.positives[group].ravel()
        return np.searchsorted(RECALLS, right / np.where(positives > 0, positives, 1), side="right").astype(np.uint8)


def _levels_by_right(total: int) -> npt.NDArray[np.uint8]:
    """How many of `RECALLS` are reached by 0, 1, ... `total` right detections of `total` labels, uint8 (total + 1,)."""
    first = np.searchsorted(np.arange(total + 1) / max(total, 1), RECALLS)  # The first number that reaches each level.
    return np.repeat(np.arange(len(RECALLS) + 1, dtype=np.uint8), np.diff(first, prepend=0, append=total + 1))


def _follow(
    block: Block, counted: Numbers, detected: Numbers, levels: _RecallLevels, precision: Floats, gained: npt.NDArray[np.uint8]
) -> None:
    """Follow the curves of a block step by step.

    Args:
        block: the curves.
        counted: int32 or float64 (images + 1, replicates), weight of each image.
        detected: of the same type, (rows, replicates), running weight of the detections in the rows of `Curves.detections`.
        levels: the recall levels.
        precision: float64 (steps, curves * replicates), is filled with the precision after each step.
        gained: uint8 of the same shape, is filled with the number of recall levels that each step is the first to reach.
    """
    width = precision.shape[1]
    right_before, corrected_before = np.zeros((2, width), counted.dtype)
    reached_before = np.zeros(width, np.uint8)
    start = 0
    for piece in block.pieces:
        right = counted.take(piece.image, axis=0).reshape(-1, width)
        right[0] += right_before
        right_before = _running(np.add, right)[-1]
        corrected = (piece.corrections @ counted).reshape(-1, width)
        corrected[0] += corrected_before
        corrected_before = _running(np.add, corrected)[-1]
        judged = detected.take(piece.place, axis=0).reshape(-1, width)
        judged += corrected

        rows = slice(start, start + len(right))
        np.add(judged, np.spacing(1), out=precision[rows])  # COCOeval adds this too: 0 right of 0 judged is a precision of 0.
        np.divide(right, precision[rows], out=precision[rows])
        reached = levels.reached(right, block.group)
        np.subtract(reached[0], reached_before, out=gained[rows][0])
        np.subtract(reached[1:], reached[:-1], out=gained[rows][1:])
        reached_before = reached[-1]
        start = rows.stop


def _envelope(precision: Floats, lift: Floats) -> None:
    """Replace precision by its maximum from each step on.

    Lifting a curve by the number of curves after it rounds its precision to about 12 digits. Earlier versions did this to keep one
    running maximum over all curves apart; it is kept so that scores and stored replicates stay the same to the last bit.
    """
    precision += lift
    _running(np.maximum, precision[::-1])
    precision -= lift


def _running(operation: np.ufunc, rows: Numbers) -> Numbers:
    """`operation.accumulate(rows, axis=0)` in place. Numpy walks down column after column, which is slow if they are many."""
    if rows.shape[1] < WIDE:
        return np.asarray(operation.accumulate(rows, axis=0, out=rows))
    for above, row in itertools.pairwise(rows):
        operation(above, row, out=row)
    return rows
