"""The error of everything that reads results."""

from __future__ import annotations

from collections.abc import Iterable


class ScoresError(ValueError):
    """A scores frame or a file of results is malformed. Its message is one sentence: the file, line or column, and the remedy."""


def quote(text: object, length: int = 60) -> str:
    """A text in quotation marks for a message, shortened in the middle if it is long, with control characters escaped.

    Example:
        >>> quote("jpeg"), quote("x" * 100, 10)
        ("'jpeg'", "'xxxxx...xxxxx'")
    """
    plain = str(text)
    return repr(plain if len(plain) <= length else f"{plain[: length // 2]}...{plain[-(length // 2) :]}")


def quote_all(texts: Iterable[object], count: int = 12) -> str:
    """Up to `count` texts, each in quotation marks, for a message."""
    listed = [quote(text) for text in texts]
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")
