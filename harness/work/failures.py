"""Images that could not be read, coded or predicted, where the experiment tolerates failures.

They are kept in the run folder, not in the store, so that a failure of this machine costs nobody else a row. Each is found by the
key that its row would have had, so that an image, codec or model that has changed since is tried again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from icmbench.harness.store.collection import Collection
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.keys import row_key

SCHEMA = pa.schema([("reason", pa.string())])


class Failures:
    """The failures of one run folder.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Folder) -> None:
        self._rows = Collection(folder, "failures", "failures", SCHEMA, SCHEMA.names)
        self._rows.refresh()

    def refresh(self) -> None:
        """Learn of the failures that other processes recorded."""
        self._rows.refresh()

    def record(self, reasons: Mapping[bytes, str]) -> None:
        """Record why rows are missing, by their failure keys."""
        new = [key for key, row in zip(reasons, self._rows.find(list(reasons)), strict=True) if row < 0]
        if new:
            self._rows.append([{"key": key, "reason": reasons[key]} for key in new])

    def are_recorded(self, keys: Sequence[bytes]) -> list[bool]:
        """For each failure key, whether a failure is recorded."""
        return [bool(row >= 0) for row in self._rows.find(keys)]

    def __len__(self) -> int:
        return len(self._rows)


def failure_key(fingerprint: str, key: bytes) -> bytes:
    """The key of a failure to compute a stream or prediction.

    Args:
        fingerprint: of the codec or the task.
        key: the key of the row that is missing.
    """
    return row_key("row", fingerprint, key)
