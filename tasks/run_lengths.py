"""COCO's compressed run lengths, read without pycocotools, which does not return on some that do not add up."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_DIGITS = 7  # Digits of 5 bits; 7 hold every difference of 32-bit counts.


def decode_counts(counts: bytes) -> npt.NDArray[np.int64] | None:
    """The run lengths that compressed counts stand for.

    A count is written in digits of 5 bits, the lowest first, each as a character from 48; 32 marks that another digit follows, 16
    in the last digit that the number is negative. From the fourth on, each is the difference to the one before the last.

    Args:
        counts: COCO's text of a mask.

    Returns:
        int64 (runs,); None if the text breaks these rules.

    Example:
        >>> decode_counts(b"0224")
        array([0, 2, 2, 6])
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not digits.size:
        return np.zeros(0, np.int64)
    last = np.flatnonzero(digits & 32 == 0)
    if digits.min() < 0 or digits.max() > 63 or not last.size or last[-1] != digits.size - 1:
        return None
    starts = np.append(0, last[:-1] + 1)
    lengths = last - starts + 1
    if lengths.max() > MAX_DIGITS:
        return None
    place = np.arange(digits.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * place), starts)
    numbers -= np.where(digits[last] & 16, 1 << (5 * lengths), 0)
    for parity in (1, 2):  # The first number stands for itself; the odd and the even ones are two chains of differences.
        numbers[parity::2] = np.cumsum(numbers[parity::2])
    return numbers
