"""The error for wrong input. Its text is one sentence that names the file or key and the remedy."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """Wrong input, described in one sentence; the command line prints it and exits with 2."""


def unknown_message(noun: str, name: str, choices: Iterable[str]) -> str:
    """Describe a name that is not among the choices.

    Args:
        noun: what the name stands for, such as `key` or `codec`.
        name: the unknown name.
        choices: all names that would be right.

    Returns:
        The message with the most similar choice, or with all choices if none is similar.

    Example:
        >>> unknown_message("key", "pionts", ["points", "seeds"])
        "unknown key 'pionts'; did you mean 'points'?"
    """
    import difflib

    names = sorted(choices)
    similar = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {similar[0]!r}?" if similar else f"known: {', '.join(names) or 'none'}"
    return f"unknown {noun} {name!r}; {hint}"
