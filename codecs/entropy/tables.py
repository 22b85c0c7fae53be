"""Integer frequency tables: the only thing encoder and decoder must share besides the symbols' order.

A row holds the cumulative counts of a distribution over consecutive integers, and of one escape symbol after them that stands
for everything outside. The layout is CompressAI's, so that tables stored with its checkpoints are used as they are:

    cdf[i, : length[i]]  0 = c0 < c1 < ... < total     length[i] - 2 integers, then the escape
    offset[i]            the first integer
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PRECISION = 22  # bits; at 16 the tails of the widest Gaussian would already cost 0.3% of the rate
TAIL_MASS = 1e-9  # probability left to the escape symbol
MAX_ROW = 1 << 16  # entries; a longer row is a damaged file


@dataclass(frozen=True, eq=False)
class Tables:
    """Frequency tables, checked. cdf: (rows, entries) int32; length, offset: (rows,) int32. Raises ValueError."""

    cdf: npt.NDArray[np.int32]
    length: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        rows = len(self.cdf)
        if self.cdf.ndim != 2 or self.length.shape != (rows,) or self.offset.shape != (rows,):
            raise ValueError(f"frequency tables disagree: cdf {self.cdf.shape}, {self.length.shape}, {self.offset.shape}")
        if rows and (self.length.min() < 3 or self.length.max() > min(self.cdf.shape[1], MAX_ROW)):
            raise ValueError("a frequency table needs at least one integer and the escape symbol")
        inside = np.arange(1, self.cdf.shape[1]) < self.length[:, None]
        if rows and (self.cdf[:, 0].any() or (np.diff(self.cdf, axis=1)[inside] <= 0).any()):
            raise ValueError("a frequency table does not rise from 0")

    @functools.cached_property
    def escape(self) -> npt.NDArray[np.int32]:
        """(rows,) int32: the symbol that stands for every integer outside the row."""
        return self.length - 2

    @functools.cached_property
    def models(self) -> list[Any]:
        """constriction's model of each row. It sees exact integers in float64, and rounds them the same everywhere."""
        import constriction

        return [
            constriction.stream.model.Categorical(np.diff(row[:n]).astype(np.float64), perfect=False)
            for row, n in zip(self.cdf, self.length)
        ]


def quantise(pmf: npt.ArrayLike, precision: int = PRECISION) -> npt.NDArray[np.int32]:
    """Cumulative counts (n + 1,) of a distribution (n,) of any sum: each count at least 1, the total 2**precision."""
    p = np.asarray(pmf, np.float64)
    p = p / p.sum()
    ideal = p * ((1 << precision) - len(p))
    counts = np.floor(ideal).astype(np.int64)
    missing = (1 << precision) - len(p) - int(counts.sum())
    counts[np.argsort(counts - ideal, kind="stable")[:missing]] += 1
    return np.concatenate([[0], np.cumsum(counts + 1)]).astype(np.int32)


def build(pmfs: Sequence[npt.ArrayLike], tails: npt.ArrayLike, offsets: npt.ArrayLike, precision: int = PRECISION) -> Tables:
    """Tables of distributions over consecutive integers. tails: the mass outside each; offsets: the first integer of each."""
    rows = [quantise(np.append(pmf, max(tail, 0.0)), precision) for pmf, tail in zip(pmfs, np.asarray(tails, np.float64))]
    length = np.array([len(row) for row in rows], np.int32)
    cdf = np.zeros((len(rows), int(length.max(initial=0))), np.int32)
    for target, row in zip(cdf, rows):
        target[: len(row)] = row
    return Tables(cdf, length, np.asarray(offsets, np.int32))


def gaussian(scales: npt.ArrayLike, precision: int = PRECISION, tail_mass: float = TAIL_MASS) -> Tables:
    """Zero-mean Gaussians integrated over unit bins, one row a scale."""
    from scipy.special import ndtr, ndtri

    sigma = np.asarray(scales, np.float64)
    reach = np.ceil(-ndtri(tail_mass / 2) * sigma).astype(int)
    pmfs = []
    for s, r in zip(sigma, reach):
        upper = ndtr((0.5 - np.arange(r + 1)) / s)  # by symmetry, on the side where ndtr keeps its precision
        half = upper - ndtr((-0.5 - np.arange(r + 1)) / s)
        pmfs.append(np.concatenate([half[:0:-1], half]))
    return build(pmfs, 2 * ndtr((-0.5 - reach) / sigma), -reach, precision)
