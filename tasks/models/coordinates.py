"""The size to which a multimodal model resizes an image, for models that write boxes in pixels of the resized image."""

from __future__ import annotations

import math
from typing import Literal

BoxConvention = Literal["absolute", "absolute_resized", "norm1000", "norm1"]


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size to which Qwen-VL's preprocessing resizes an image, as transformers and vLLM compute it.

    Each side is rounded to the nearest multiple of `factor`, halves to even. If the area is then out of bounds (it is 0 if a side
    is shorter than half of `factor`), the image's sides are instead scaled by one common number and rounded down from a too large
    area, up from a too small one.

    Args:
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        factor: number of pixels that divides both sides of the result.
        min_pixels: smallest area of the result, in pixels.
        max_pixels: largest area of the result, in pixels.

    Returns:
        Height and width in pixels.

    Example:
        >>> smart_resize(480, 640, factor=28, min_pixels=56 * 56, max_pixels=256 * 28 * 28)
        (364, 504)
    """
    rows, columns = (round(side / factor) * factor for side in (height, width))
    if rows * columns > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows, columns = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    elif rows * columns < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return rows, columns
