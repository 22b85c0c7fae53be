"""`icmbench compare`: what moved between two runs, and what moved it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from icmbench.harness.store.folder import Folder
from icmbench.results.compare import compare


def print_comparison(runs: Sequence[Path], tolerance: float) -> None:
    """Print how the second of two runs differs from the first.

    Args:
        runs: the two run folders.
        tolerance: difference of two numbers, relative to the larger one, up to which they count as equal.

    Raises:
        FormatError: a newer icmbench wrote one of the folders.
        ScoresError: a folder has no readable scores.csv.
    """
    for folder in runs:
        Folder(folder).read_json("environment.json")  # Refuses the folder of a newer icmbench.
    first, second = runs
    print(compare(first, second, tolerance), end="")
