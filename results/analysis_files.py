"""The files analyses/<name>.csv of a run folder: frames of codecs' own analyses, checked where they are read.

The frames and their required columns; frames may have more, as those of `icmbench.codecs.diffusion.analyses` do. `point` is the
codec's label of its rate point:

    bit-split    codec, point, part, bits                 mean bits of an image by part of the stream (from `rate_breakdown`)
    bit-map      codec, point, image, row, column, bits   bits spent on each latent position, row and column from 0
    energy       codec, point, channel, energy            mean energy (variance) of each latent channel, channels from 1
    complexity   codec, stage, part, parameters, gmac     networks of each stage (encode, decode), 10**9 multiply-accumulates

A bit map may have the column `stride`, the pixels along a side of a latent position.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from icmbench.results.csv_files import plain_numbers, read_csv_text
from icmbench.results.errors import ScoresError, quote, quote_all

COLUMNS = {
    "bit-split": ["codec", "point", "part", "bits"],
    "bit-map": ["codec", "point", "image", "row", "column", "bits"],
    "energy": ["codec", "point", "channel", "energy"],
    "complexity": ["codec", "stage", "part", "parameters", "gmac"],
}
TEXT_COLUMNS = frozenset({"codec", "point", "image", "part", "stage"})
# Columns of results; all others say of what.
MEASURED = frozenset({"bits", "bpp", "total_bpp", "share", "energy", "parameters", "calls", "gmac"})
# Columns of whole numbers, with the least and the largest. A position of a latent is at most one of a picture's pixels.
WHOLE = {"row": (0, 65_535), "column": (0, 65_535), "stride": (1, 65_535), "channel": (0, 10**6)}
# The most cells of a bit map: rows times columns up to the last position, as a figure would lay them out.
MAX_CELLS = 50_000_000


def read_analysis(path: str | Path) -> pd.DataFrame:
    """Read analyses/<name>.csv.

    Args:
        path: the file; its name says which analysis it holds.

    Returns:
        Text and number columns of `COLUMNS` and `stride`, typed; further columns as text.

    Raises:
        ScoresError: the file is no CSV, lacks a column, or a cell holds no number or one out of range.
    """
    name = Path(path).stem
    try:
        frame, separator = read_csv_text(path, "codec", exact=COLUMNS[name])
        missing = [column for column in COLUMNS[name] if column not in frame]
        if missing:
            raise ScoresError(
                f"no column {quote(missing[0])}; {name} has {', '.join(COLUMNS[name])}, not {quote_all(frame.columns)}"
            )
        numbers = [column for column in (*COLUMNS[name], "stride") if column in frame and column not in TEXT_COLUMNS]
        frame = plain_numbers(frame, numbers, separator)
        for column in numbers:
            frame[column] = _checked_numbers(frame, column)
        identity = [column for column in frame if column not in MEASURED]
        for line in frame.index[frame.duplicated(identity)]:
            raise ScoresError(f"line {line} gives {', '.join(quote(frame.loc[line, c]) for c in identity)} again; keep one line")
        if name == "bit-map" and len(frame) and (frame["row"].max() + 1) * (frame["column"].max() + 1) > MAX_CELLS:
            raise ScoresError(f"its rows and columns span more than {MAX_CELLS:,} positions; correct them")
    except ScoresError as error:
        raise ScoresError(f"{path}: {error}") from None
    return frame.reset_index(drop=True)


def _checked_numbers(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of text as numbers: int64 if it holds whole numbers by its meaning, else float64."""
    numbers = pd.to_numeric(frame[column].replace("", None)).astype("float64")
    low, high = WHOLE.get(column, (0, 1e18))
    for line, number in numbers.items():
        if not low <= number <= high or (column in WHOLE and number != int(number)):
            kind = f"a whole number from {low} to {high}" if column in WHOLE else "a number from 0 on"
            raise ScoresError(f"line {line}: column {column!r} holds {quote(frame.loc[line, column])}; write {kind}")
    return numbers.astype("int64") if column in WHOLE else numbers
