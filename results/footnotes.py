"""What a short BD table says beside its numbers: a letter for each kind of remark, and one line for each letter.

The reasons in full, with the points to add, stand in the column `note` of bdrate.csv and in the report.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

FEW_POINTS = "*"  # The mark of a row with fewer than four points on an envelope.
# Kinds of remarks by a pattern that finds them in a note. The first match counts for each undefined number.
UNDEFINED = (
    (re.compile("^the rate of .* is estimated and that of "), "undefined: one rate is estimated, the other is of real bytes"),
    (re.compile("no shared .* interval"), "undefined: the two curves share no range"),
    (re.compile("and [a-z]+ needs [0-9]"), "undefined: too few points of use"),
    (re.compile("."), "undefined for another reason"),
)
REMARKS = (
    (re.compile("^overlap only"), "the curves overlap in less than half of their range"),
    (re.compile("^agreement with"), "agreement with the predictions on the originals, not accuracy"),
    (re.compile("^estimated"), "both rates are estimated, not of real bytes"),
    (re.compile("^limited"), "of a limited run: not reportable"),
)


class Footnotes:
    """Collects the remarks of a table row by row, and gives each kind a letter when it first occurs.

    Example:
        >>> footnotes = Footnotes()
        >>> footnotes.mark(pd.Series({"note": "limited: not reportable", "anchor_points": 4, "test_points": 3}))
        'a*'
        >>> footnotes.lines()
        ['a  of a limited run: not reportable', '*  fewer than four points on an envelope']
    """

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}
        self._few_points = False

    def undefined(self, row: pd.Series, number: str) -> str:
        """The letter for an undefined number.

        Args:
            row: a row of `icmbench.results.tables.bdrate_frame`.
            number: "BD-rate" or "BD-quality".
        """
        for part in _parts(row):
            prefix, colon, why = part.partition("undefined: ")
            if colon and prefix.strip() in ("", number):
                return self._letter(next(text for pattern, text in UNDEFINED if pattern.search(why)))
        return self._letter(UNDEFINED[-1][1])

    def mark(self, row: pd.Series) -> str:
        """The letters of everything else that is to be known about a row."""
        letters = [self._letter(text) for part in _parts(row) for pattern, text in REMARKS if pattern.search(part)]
        # Rates of two kinds are not compared, whatever the number of points.
        compared = row.get("rate_kind") == row.get("anchor_rate_kind")
        has_few = compared and any(0 <= row[column] < 4 for column in ("anchor_points", "test_points"))
        self._few_points |= has_few
        return "".join([*dict.fromkeys(letters), *([FEW_POINTS] if has_few else [])])

    def lines(self) -> list[str]:
        """One line per letter that was given."""
        lines = [f"{letter}  {text}" for text, letter in self._letters.items()]
        return [*lines, *([f"{FEW_POINTS}  fewer than four points on an envelope"] if self._few_points else [])]

    def _letter(self, text: str) -> str:
        return self._letters.setdefault(text, chr(ord("a") + len(self._letters)))


def _parts(row: pd.Series) -> Iterator[str]:
    yield from str(row["note"] or "").split("; ")
