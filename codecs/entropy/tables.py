"""Integer frequency tables, which encoder and decoder must share bit by bit.

A row holds the cumulative counts of a distribution over consecutive integers, and of one escape symbol after them, which stands for
all other integers. The layout is CompressAI's, so that tables stored with its checkpoints are used as they are:

    cdf[i, : length[i]]  0 = c0 < c1 < ... < total     length[i] - 2 integers, then the escape symbol
    offset[i]            the first integer
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PRECISION = 22  # bits of the total count; with 16, the tails of the widest Gaussian would cost 0.3 % of the rate
TAIL_MASS = 1e-9  # probability of the escape symbol
MAX_ROW = 1 << 16  # entries of a row; a longer row comes from a damaged file


@dataclass(frozen=True, eq=False)
class Tables:
    """Checked frequency tables.

    Attributes:
        cdf: (rows, entries) int32 cumulative counts.
        length: (rows,) int32, how many entries of a row are used.
        offset: (rows,) int32, the first integer of a row.

    Raises:
        ValueError: the shapes disagree, a row has a wrong length, or its counts do not rise from 0.
    """

    cdf: npt.NDArray[np.int32]
    length: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        rows = len(self.cdf)
        if self.cdf.ndim != 2 or self.length.shape != (rows,) or self.offset.shape != (rows,):
            raise ValueError(f"frequency tables disagree: cdf {self.cdf.shape}, {self.length.shape}, {self.offset.shape}")
        if rows and (self.length.min() < 3 or self.length.max() > min(self.cdf.shape[1], MAX_ROW)):
            raise ValueError("a frequency table needs at least one integer and the escape symbol")
        used = np.arange(1, self.cdf.shape[1]) < self.length[:, None]
        if rows and (self.cdf[:, 0].any() or (np.diff(self.cdf, axis=1)[used] <= 0).any()):
            raise ValueError("a frequency table does not rise from 0")

    @functools.cached_property
    def escape(self) -> npt.NDArray[np.int32]:
        """(rows,) int32: the escape symbol of each row, counted from the row's offset."""
        return self.length - 2

    @functools.cached_property
    def models(self) -> list[Any]:
        """constriction's model of each row. It is given integers, exact in float64, and rounds them alike on every machine."""
        import constriction

        return [
            constriction.stream.model.Categorical(np.diff(row[:n]).astype(np.float64), perfect=False)
            for row, n in zip(self.cdf, self.length)
        ]


def cumulative_counts(pmf: npt.ArrayLike, precision: int = PRECISION) -> npt.NDArray[np.int32]:
    """A distribution as cumulative counts. Every count is at least 1.

    Args:
        pmf: (n,) probabilities, up to a common factor.
        precision: The counts sum to 2**precision.

    Returns:
        (n + 1,) int32, from 0 to 2**precision.

    Example:
        >>> cumulative_counts([1, 2, 1], precision=4).tolist()
        [0, 4, 12, 16]
    """
    p = np.asarray(pmf, np.float64)
    p = p / p.sum()
    ideal = p * ((1 << precision) - len(p))
    counts = np.floor(ideal).astype(np.int64)
    missing = (1 << precision) - len(p) - int(counts.sum())
    counts[np.argsort(counts - ideal, kind="stable")[:missing]] += 1
    return np.concatenate([[0], np.cumsum(counts + 1)]).astype(np.int32)


def build(pmfs: Sequence[npt.ArrayLike], tails: npt.ArrayLike, offsets: npt.ArrayLike, precision: int = PRECISION) -> Tables:
    """Tables of distributions over consecutive integers, one row per distribution.

    Args:
        pmfs: The probabilities of each distribution.
        tails: (rows,) probability of all other integers.
        offsets: (rows,) first integer of each distribution.
        precision: The counts of a row sum to 2**precision.
    """
    rows = [cumulative_counts(np.append(pmf, max(tail, 0.0)), precision) for pmf, tail in zip(pmfs, np.asarray(tails, np.float64))]
    length = np.array([len(row) for row in rows], np.int32)
    cdf = np.zeros((len(rows), int(length.max(initial=0))), np.int32)
    for target, row in zip(cdf, rows):
        target[: len(row)] = row
    return Tables(cdf, length, np.asarray(offsets, np.int32))


def gaussian(scales: npt.ArrayLike, precision: int = PRECISION, tail_mass: float = TAIL_MASS) -> Tables:
    """Tables of zero-mean Gaussians integrated over unit bins, one row per scale.

    Args:
        scales: (rows,) standard deviations.
        precision: The counts of a row sum to 2**precision.
        tail_mass: A row covers the integers outside of which a Gaussian has at most this probability.
    """
    from scipy.special import ndtr, ndtri

    sigma = np.asarray(scales, np.float64)
    reach = np.ceil(-ndtri(tail_mass / 2) * sigma).astype(int)
    pmfs = []
    for s, r in zip(sigma, reach):
        # Computed on the side where ndtr keeps its precision; the other side is its mirror image.
        upper = ndtr((0.5 - np.arange(r + 1)) / s)
        half = upper - ndtr((-0.5 - np.arange(r + 1)) / s)
        pmfs.append(np.concatenate([half[:0:-1], half]))
    return build(pmfs, 2 * ndtr((-0.5 - reach) / sigma), -reach, precision)
