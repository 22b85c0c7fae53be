"""The size at which a multimodal model sees an image, where its boxes are in pixels of that size."""

from __future__ import annotations

import math
from typing import Literal

BoxConvention = Literal["absolute", "absolute_resized", "norm1000", "norm1"]


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Qwen-VL's input size for an image: (height, width), each a multiple of `factor`, their product within the bounds.

    Sides are rounded to the nearest multiple, halves to even; where the area is out of bounds (a side of less than half a
    multiple makes it 0), both are scaled by one factor and rounded inwards. As transformers and vLLM do it.
    """
    rows, columns = (round(side / factor) * factor for side in (height, width))
    if rows * columns > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows, columns = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    elif rows * columns < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return rows, columns
