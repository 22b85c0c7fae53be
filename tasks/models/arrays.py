"""The globals that a pickled NumPy array or number refers to, so that readers of checkpoints can allow these and no others."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

# NumPy keeps both functions in a private module, whose name differs between versions 1 and 2.
_reconstruct, _scalar = (value.__reduce__()[0] for value in (np.empty(0), np.float64(0)))

NUMPY_GLOBALS: dict[str, Any] = {
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{cls.__name__}": cls for cls in (np.ndarray, np.dtype)},
    **{f"numpy.dtypes.{type(np.dtype(code)).__name__}": type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
    "_codecs.encode": str.encode,  # Pickle protocols 0 to 2 store an array's bytes as text, which is encoded on reading.
    "collections.OrderedDict": OrderedDict,
}
