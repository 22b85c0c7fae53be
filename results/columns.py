"""The columns of a scores frame, and the words and names in them that have a meaning."""

from __future__ import annotations

import re
from typing import TypeAlias

import pandas as pd

# A frame that `read_scores` or `normalise` returned, or whole rows of one. The alias is for readers: pandas comes without types, so
# mypy could not tell a type of its own from any other frame.
Scores: TypeAlias = pd.DataFrame

SCORE_COLUMNS = [
    "codec", "point", "dataset", "task", "model", "metric", "value", "low", "high", "unit", "higher_is_better", "reference",
    "realisation", "bpp", "payload_bpp", "mean_image_bpp", "rate_kind", "expected", "scored", "empty", "failed", "limited",
    "encode_seconds", "decode_seconds", "task_seconds", "undefined", "images", "machine",
]  # fmt: skip
TEXT_COLUMNS = [
    "codec", "point", "dataset", "task", "model", "metric", "unit", "reference", "realisation", "rate_kind", "images", "machine",
]  # fmt: skip
FLAG_COLUMNS = ["higher_is_better", "limited"]
NUMBER_COLUMNS = [column for column in SCORE_COLUMNS if column not in (*TEXT_COLUMNS, *FLAG_COLUMNS)]
# Points stand on one pair of axes only if they agree in all of these.
KEY_COLUMNS = ["dataset", "task", "model", "metric", "reference"]
UNCOMPRESSED = "uncompressed"
# How a rate was had, in the column `rate_kind`: as the length of real streams, or estimated by a codec that writes none.
MEASURED, ESTIMATED = "measured", "estimated"
# Follows the name of a codec that estimates its rate, in every table for people and every figure.
ESTIMATED_MARK = " (estimated rate)"
# Metrics, in lower case, of which less is better in a frame without the column `higher_is_better`.
LOWER_IS_BETTER = frozenset(
    {
        "lpips",
        "dists",
        "fid",
        "kid",
        "parse_failures",
        "several_boxes",
        "mse",
        "rmse",
        "mae",
        "error",
        "error_rate",
        "niqe",
        "brisque",
    }
)
# Metrics of the task `layers`: feature difference by stage and block.
LAYER = re.compile(r"layer(\d+)\.(\d+)")
# Spellings, in lower case, of a flag that is not set, and of one that is.
FALSE_WORDS = frozenset({"", "0", "0.0", "false", "no", "nan", "none", "<na>"})
TRUE_WORDS = frozenset({"1", "1.0", "true", "yes"})
