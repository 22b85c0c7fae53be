"""Checks that several codecs make on what enters them: the image, the rate point, numeric options, and sizes in streams."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

from icmbench.codecs.base import CodecError

# What PyTorch's advice on loading without protection always names.
_ADVICE = re.compile(
    r"weights[_ ]only|torch\.(load|jit)|safe_globals|pickle_module|file an issue|pytorch\.org|two options|trust", re.IGNORECASE
)


def check_image(image: Any, codec: str) -> None:
    """Check that an image is a uint8 RGB array of shape (height, width, 3) with neither side zero.

    Args:
        image: Whatever was passed to `compress`.
        codec: The codec's name, for the message.

    Raises:
        CodecError: the image is anything else.
    """
    import numpy as np

    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        actual = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise CodecError(f"{codec}: an image is a uint8 array of shape (height, width, 3), not {actual}: convert it to RGB first")


def check_pixel_count(width: int, height: int) -> None:
    """Check that an image has at most PIL.Image.MAX_IMAGE_PIXELS pixels.

    Pillow itself only warns between this limit and twice as many pixels. Here the one limit holds for encoding and decoding.

    Raises:
        ValueError: the image has more pixels.
    """
    from PIL import Image as Pillow

    limit = Pillow.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(
            f"{width}x{height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS ({limit}): give the dataset a preprocessing, or "
            "shrink or cut the image first"
        )


def check_sides(width: int, height: int, limit: int, codec: str, reason: str = "") -> None:
    """Check an image against the longest side that a format can code and decode.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        limit: The most pixels a side may have.
        codec: The codec's name, for the message.
        reason: Whose limit it is, for the message.

    Raises:
        CodecError: a side is longer.
    """
    if max(width, height) > limit:
        raise CodecError(
            f"{codec}: an image of {width}x{height} pixels cannot be encoded: its sides may have at most {limit} pixels"
            f"{f', {reason}' if reason else ''}: give the dataset a preprocessing, or shrink or cut the image first"
        )


def number_parameter(point: Any, codec: str, parameter: str, low: float, high: float) -> int | float:
    """The number of a rate point or option, checked.

    Args:
        point: The number itself or `{parameter: number}`.
        codec: The codec's name, for messages.
        parameter: The number's name.
        low: The smallest number allowed.
        high: The largest number allowed; math.inf if there is none.

    Returns:
        The number; an int if it is whole.

    Raises:
        CodecError: it is no finite number of this range, or the mapping has other keys.

    Example:
        >>> number_parameter({"quality": 20.0}, "jpeg", "quality", 1, 100)
        20
    """
    value = point
    if isinstance(point, Mapping):
        if set(point) != {parameter}:
            raise CodecError(f"{codec}: a point has the one parameter {parameter!r}, not {dict(point)!r}")
        value = point[parameter]
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or math.isinf(number):
        span = f"of at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise CodecError(f"{codec}: {parameter} is a number {span}, not {value!r}")
    return int(number) if number.is_integer() else number


def integer_parameter(point: Any, codec: str, parameter: str, low: int, high: int) -> int:
    """The whole number of a rate point or option, checked as `number_parameter` does.

    Raises:
        CodecError: it is no whole number of this range, or the mapping has other keys.
    """
    value = number_parameter(point, codec, parameter, low, high)
    if not isinstance(value, int):
        raise CodecError(f"{codec}: {parameter} is a whole number, not {value!r}")
    return value


def require(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def refusal_reason(error: Exception) -> str:
    """Why PyTorch or safetensors refused a file, in one line, without PyTorch's advice to load the file unsafely.

    Args:
        error: what `torch.load` or safetensors raised.
    """
    text = str(error).rpartition("WeightsUnpickler error: ")[2]  # PyTorch puts its advice before the reason and after it.
    sentences = re.split(r"(?<=\.)\s+|\s*\n\s*", text.strip())
    reasons = [sentence for sentence in sentences if sentence and not _ADVICE.search(sentence)]
    return " ".join(reasons[0].split()).rstrip(".:") if reasons else "it holds more than tensors, or is damaged"
