"""Embeddings of images and texts as rows of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def normalise_rows(rows: npt.NDArray[Any], dtype: type[np.floating]) -> npt.NDArray[Any]:
    """Rows scaled to unit length; rows of zeros stay zero, and rows that are not finite become NaN.

    Args:
        rows: numbers (n, d).
        dtype: the type that is computed in and returned.

    Returns:
        `dtype` (n, d).

    Example:
        >>> normalise_rows(np.array([[3.0, 4.0], [0.0, 0.0]]), np.float64)
        array([[0.6, 0.8],
               [0. , 0. ]])
    """
    rows = np.asarray(rows, dtype=dtype)
    with np.errstate(invalid="ignore"):
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(dtype).tiny)
