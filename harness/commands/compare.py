"""`icmbench compare`: what moved between two runs, and what moved it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from icmbench.harness.derive.bound import check_beside
from icmbench.harness.store.folder import Folder
from icmbench.results.compare import compare

# Files of a run folder that are compared, if the run made them.
COMPARED = ("environment.json", "scores.csv", "images.parquet", "streams.parquet")


def print_comparison(runs: Sequence[Path], tolerance: float) -> None:
    """Print how the second of two runs differs from the first.

    Args:
        runs: the two run folders.
        tolerance: difference of two numbers, relative to the larger one, up to which they count as equal.

    Raises:
        FormatError: another version of icmbench wrote one of the folders.
        UserError: a table was changed after it was made.
        ScoresError: a folder has no readable scores.csv.
    """
    for folder in runs:
        Folder(folder).read_json("environment.json")  # Refuses the folder of another version.
        for name in COMPARED:
            check_beside(folder / name)
    first, second = runs
    print(compare(first, second, tolerance), end="")
