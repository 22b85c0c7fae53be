"""Numbers with units as text, for people who read a terminal or a log."""

from __future__ import annotations

import math


def format_duration(seconds: float) -> str:
    """A number of seconds as text, such as `2 h 05 min` or `3.2 s`; `unknown` for NaN.

    Example:
        >>> [format_duration(seconds) for seconds in (3.21, 600, 7500, 200_000, float("nan"))]
        ['3.2 s', '10 min', '2 h 05 min', '2 d 7 h', 'unknown']
    """
    if math.isnan(seconds):
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 48 * 60 else f"{minutes // 1440} d {minutes % 1440 // 60} h"


def format_size(size: float) -> str:
    """A number of bytes on a disk as text, such as `12.0 MB` or `0.9 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def format_memory(size: float) -> str:
    """A number of bytes of memory as text, such as `300 MiB` or `1.2 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def format_rate(rate: float) -> str:
    """A number of images a second as text, with two significant digits below 10.

    Example:
        >>> [format_rate(rate) for rate in (0.00412, 4.13, 51.3, 1234.0)]
        ['0.0041', '4.1', '51', '1234']
    """
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
