"""Instance masks as COCO run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def encode_masks(masks: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Encode masks as COCO run lengths with pycocotools.

    Args:
        masks: bool (n, height, width).

    Returns:
        One mapping `{"size": [height, width], "counts": bytes}` per mask.
    """
    if not len(masks):
        return []
    from pycocotools.mask import encode

    columns = np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)
    return list(encode(columns))
