"""What a file of scores may hold beyond what its types say: names and numbers that are missing, out of range, or given twice.

A wrong number of this kind (a mistaken unit, a lost decimal point, a line pasted twice) looks right in every table made from it.
Each message names the line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from icmbench.results.columns import (
    ESTIMATED,
    FALSE_WORDS,
    FLAG_COLUMNS,
    KEY_COLUMNS,
    MEASURED,
    TRUE_WORDS,
    UNCOMPRESSED,
    Scores,
)
from icmbench.results.errors import ScoresError, quote

# A file with all of these columns is a run's scores.csv.
RUN_COLUMNS = frozenset({"point", "realisation", "expected", "scored"})
# Bounds in bits per pixel beyond which the unit is mistaken, a decimal point was lost, or rate and quality changed places: a pixel
# of three bytes has 24 bits uncompressed, and curves made elsewhere are of photographs. A run may have images of a few pixels.
MAX_BPP, MAX_RUN_BPP = 24, 1e5
# Rates of one file, in any unit, lie within this factor of their median.
MAX_RATE_FACTOR = 1e6
# Metrics that papers and runs give in percent, and bounds of others, in lower case.
PERCENT = re.compile(
    r"m?ap(50|75|_?(s|m|l|small|medium|large))?|[psr]q(_th|_st)?|m(ean_)?iou|top-?[15]|[am]?acc(uracy)?(@\S+)?|r@\S+"
)
BOUNDS = {"psnr": (0.0, 200.0), "ssim": (-1.0, 200.0), "ms_ssim": (-1.0, 200.0), "lpips": (0.0, 10.0), "dists": (0.0, 10.0)}
TOLERANCE = 1e-6  # Beyond a bound, for rounding.
# A percentage that falls to this share or less while the rate rises is a fraction.
FRACTION_DROP = 1 / 20
# Rates of two codecs whose medians differ by more than this factor are likely to differ in their unit.
UNIT_FACTOR = 300


def check_flags(frame: pd.DataFrame) -> None:
    """Raise ScoresError if a flag of a file is neither true nor false, or the kind of a rate neither measured nor estimated."""
    for column in FLAG_COLUMNS:
        for line, text in frame[column].items() if column in frame else ():
            if text.lower() not in FALSE_WORDS | TRUE_WORDS:
                raise ScoresError(f"line {line}: column {column!r} holds {quote(text)}; write true or false")
    for line, text in frame["rate_kind"].items() if "rate_kind" in frame else ():
        if text.strip().lower() not in ("", MEASURED, ESTIMATED):
            raise ScoresError(f"line {line}: column 'rate_kind' holds {quote(text)}; write {MEASURED} or {ESTIMATED}")


def check_rows(scores: Scores, places: Sequence[str], is_run: bool, has_bpp: bool, has_points: bool) -> None:
    """Raise ScoresError for what a file cannot mean: names or numbers that are missing, out of range, or given twice.

    Args:
        scores: normalised scores of the file.
        places: where in its file each row stands, such as `line 3`.
        is_run: whether a run wrote the file. A run's scores and rates may be undefined, and its PSNR infinite.
        has_bpp: whether rates are in bits per pixel.
        has_points: whether rate points have names, so that two of them may have one rate.
    """
    coded = (scores["codec"] != UNCOMPRESSED).to_numpy()
    bpp, value = scores["bpp"].to_numpy(), scores["value"].to_numpy()
    median = np.median(bpp[coded & (bpp > 0)]) if (coded & (bpp > 0)).any() else 1.0
    factor = np.divide(bpp, median, out=np.ones_like(bpp), where=bpp > 0)
    low, high = _bounds(scores)
    unmeasured = np.zeros_like(coded) if is_run else np.isnan(value)
    checks = {
        "has no codec; write its name": scores["codec"] == "",
        "has no metric; write its name": scores["metric"] == "",
        "has no value; leave the line out if nothing was measured": unmeasured,
        "has no rate; write it, or leave the line out": coded & np.isnan(bpp) & (not is_run),
        "has rate {bpp:g}, and a rate is above 0": coded & ((bpp < 0) | ((bpp == 0) & (not is_run))),
        f"has {{bpp:g}} bpp, and no image needs more than {MAX_RUN_BPP:g}; write bits per pixel": (
            coded & has_bpp & (bpp > MAX_RUN_BPP)
        ),
        f"has {{bpp:g}} bpp, and pixels have {MAX_BPP} bits before compression; write bits per pixel, or name the column rate": (
            coded & has_bpp & (not is_run) & (bpp > MAX_BPP)
        ),
        f"has rate {{bpp:g}}, and the median of the file is {median:.4g}; correct it": (
            coded & ((factor > MAX_RATE_FACTOR) | (factor < 1 / MAX_RATE_FACTOR))
        ),
        "has {metric} {value:g}, which is out of range ({low:g} to {high:g}); correct it": (
            np.isfinite(value) & ((value < low - TOLERANCE) | (value > high + TOLERANCE))
        ),
    }  # fmt: skip
    for message, wrong in checks.items():
        for k in map(int, np.flatnonzero(wrong)):
            facts = {"bpp": bpp[k], "value": value[k], "low": low[k], "high": high[k], "metric": scores["metric"][k]}
            raise ScoresError(f"{places[k]}: codec {quote(scores['codec'][k])} {message.format(**facts)}")
    _refuse_one_rate_twice(scores, places, has_points)
    if not is_run:
        _refuse_fractions_among_percents(scores, places)


def doubts(scores: Scores) -> list[str]:
    """Sentences on what in a file of curves is likely to be wrong, but may be right: nothing that a file could be refused for.

    Args:
        scores: normalised scores.
    """
    sentences = []
    coded = scores[(scores["codec"] != UNCOMPRESSED) & (scores["bpp"] > 0)]
    medians = coded.groupby("codec", sort=False)["bpp"].median()
    if len(medians) and medians.max() > UNIT_FACTOR * medians.min():
        high, low = medians.idxmax(), medians.idxmin()
        sentences.append(
            f"the rates of codec {quote(high)} are about {medians[high]:.3g} and those of {quote(low)} about {medians[low]:.3g}: "
            "are both in bits per pixel?"
        )
    spellings: dict[str, str] = {}
    for name in coded["codec"].unique():
        other = spellings.setdefault(name.lower(), name)
        if other != name:
            sentences.append(f"{quote(other)} and {quote(name)} count as two codecs: are they one, spelt in two ways?")
    for key, rows in coded.groupby(KEY_COLUMNS, sort=False):
        falls = [_falls(curve) for _, curve in rows.groupby(["codec", "realisation"]) if len(curve) > 2]
        if falls and all(falls) and rows["higher_is_better"].all():
            sentences.append(
                f"{key[3]} falls as the rate rises, and more of it counts as better: is less better? --lower-is-better says so"
            )
    for key, rows in _percents_without_unit(scores).groupby(KEY_COLUMNS, sort=False):
        greatest = rows.groupby("codec", sort=False)["value"].max()
        for codec in greatest.index[(greatest > 0) & (greatest <= 1)] if greatest.max() > 1 / FRACTION_DROP else ():
            sentences.append(
                f"{key[3]} of codec {quote(codec)} is at most {greatest[codec]:.3g} and reaches {greatest.max():.3g} elsewhere: "
                "are all in percent? A column unit with % says so"
            )
    return sentences


def _falls(curve: pd.DataFrame) -> bool:
    """Whether a curve falls from each rate to the next."""
    values = curve.sort_values("bpp", kind="stable")["value"].to_numpy()
    return bool((np.diff(values) < 0).all())


def _percents_without_unit(scores: Scores) -> pd.DataFrame:
    """The rows of metrics that papers give in percent, in a file that does not state their unit."""
    return scores[(scores["unit"] == "") & scores["metric"].str.lower().str.fullmatch(PERCENT)]


def _refuse_fractions_among_percents(scores: Scores, places: Sequence[str]) -> None:
    """Raise ScoresError for a curve of percentages that falls to a fraction: 20, 0.24, 29 at rising rates."""
    for key, rows in _percents_without_unit(scores).groupby([*KEY_COLUMNS, "codec", "realisation"], sort=False):
        rows = rows.sort_values("bpp", kind="stable")
        best = rows["value"].cummax()
        for k in rows.index[(rows["value"] > 0) & (rows["value"] <= 1) & (rows["value"] <= FRACTION_DROP * best)]:
            raise ScoresError(
                f"{places[int(k)]}: codec {quote(key[5])} has {key[3]} {rows['value'][k]:g}, and {best[k]:g} at a lower rate; "
                "write all in percent, or say that they are in a column unit with %"
            )


def _bounds(scores: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The lowest and highest value that each row can have, float64 (n,); infinite where the metric is not known."""
    bounds = {}
    for name, unit in scores[["metric", "unit"]].drop_duplicates().itertuples(index=False):
        is_percent = unit == "%" or (not unit and bool(PERCENT.fullmatch(name.lower())))
        bounds[name, unit] = (0.0, 100.0) if is_percent else BOUNDS.get(name.lower(), (-np.inf, np.inf))
    pairs = [bounds[row] for row in scores[["metric", "unit"]].itertuples(index=False, name=None)]
    low, high = np.array(pairs, dtype=float).reshape(-1, 2).T
    return low, high


def _refuse_one_rate_twice(scores: Scores, places: Sequence[str], has_points: bool) -> None:
    """Raise ScoresError if a file without names of points has two rows of one curve and rate."""
    seen: dict[tuple[Any, ...], str] = {}
    rows = scores[[*KEY_COLUMNS, "codec", "realisation", "bpp"]].itertuples(index=False, name=None)
    for place, row in zip(places, rows if not has_points else (), strict=False):
        row = tuple(None if item != item else item for item in row)  # NaN, the rate of uncompressed images, equals nothing.
        if row in seen:
            rate = "" if row[-1] is None else f" at rate {row[-1]:g}"
            raise ScoresError(
                f"{place} gives {quote(row[3])} of codec {quote(row[5])}{rate} again, after {seen[row]}; keep one, or "
                "name their points in a column point"
            )
        seen[row] = place
