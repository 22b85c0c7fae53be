"""The stored bootstrap replicates of a run, one file a task: replicates/<task>-<key>.parquet."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder, safe_name
from icmbench.harness.store.formats import FormatError
from icmbench.harness.store.keys import digest
from icmbench.harness.store.parquet_files import read_table
from icmbench.results.bootstrap import INDEX

FOLDER = "replicates"


def replicates_file(label: str) -> str:
    """The file of a task's replicates, below the run folder."""
    return f"{FOLDER}/{safe_name(label)}-{digest(label)[:6]}.parquet"


def load_replicates(folder: Folder, names: Iterable[str] | None = None) -> dict[str, pd.DataFrame]:
    """The stored replicates of a run by task label, with a column `key`; damaged files are treated as absent.

    Args:
        folder: the run folder.
        names: the files that may be read, below the run folder; all by default.

    Raises:
        FormatError: another version of icmbench wrote a file.
    """
    replicates = {}
    for name in sorted(folder.names(FOLDER) if names is None else names):
        if not (name.startswith(f"{FOLDER}/") and name.endswith(".parquet")):
            continue
        try:
            frame = read_table(folder, name).to_pandas()
        except FormatError:
            raise
        except (UserError, FileNotFoundError):
            continue
        if _is_whole(frame):
            replicates[str(frame["task"].iloc[0])] = frame.drop(columns="task")
    return replicates


def _is_whole(frame: pd.DataFrame) -> bool:
    """Whether a stored frame is as `Resampling.finish` writes it: typed columns, and every replicate of each series once."""
    if not {"task", "key", *INDEX, "bpp"} <= {*frame.columns} or not len(frame) or frame.columns.has_duplicates:
        return False
    texts = ["task", "key", *INDEX[:3]]
    numbers = [column for column in frame.columns if column not in (*texts, "replicate")]
    if not all(frame[column].map(type).eq(str).all() for column in texts) or frame["task"].nunique() > 1:
        return False
    if not all(pd.api.types.is_float_dtype(frame[column]) for column in numbers):
        return False
    if not pd.api.types.is_integer_dtype(frame["replicate"]):
        return False
    sizes = frame.groupby(INDEX[:3])["replicate"].agg(["min", "max", "nunique", "size"])
    complete = (sizes["min"] == 0) & (sizes["max"] + 1 == sizes["size"]) & (sizes["nunique"] == sizes["size"])
    return bool(complete.all() and sizes["size"].nunique() == 1)
