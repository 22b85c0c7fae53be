"""What goes wrong through input rather than through a defect, said in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One sentence that names the file or key and the remedy; the command line prints it and exits with 2."""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown key 'pionts'; did you mean 'points'?`, or the known ones where none is near."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(choices) or 'none'}"
    return f"unknown {what} {name!r}; {hint}"
