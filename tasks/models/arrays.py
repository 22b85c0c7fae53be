"""What a pickled NumPy array or number is made of: the names that a checkpoint may use, and what they stand for."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

_array, _number = (value.__reduce__()[0] for value in (np.empty(0), np.float64(0)))

NUMPY: dict[str, Any] = {
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},  # NumPy 1 and 2
    **{f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")},
    **{f"numpy.{kind.__name__}": kind for kind in (np.ndarray, np.dtype)},
    **{f"numpy.dtypes.{type(np.dtype(code)).__name__}": type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
    "_codecs.encode": str.encode,  # of an array's bytes, which pickles that Python 2 reads too write as text
    "collections.OrderedDict": OrderedDict,
}
