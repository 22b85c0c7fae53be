"""Row numbers by key in sorted numpy arrays: millions of keys take 20 bytes each, and are looked up in one vectorised search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icmbench.harness.store.keys import joined_keys

MERGE_ROWS = 20_000  # Rows that may wait in a dictionary before they are sorted in among the others.


class KeyIndex:
    """Finds the numbers of rows that have a key. Rows are numbered in the order in which they were added.

    Args:
        written: returns when rows were written, in seconds, by their numbers. It is asked about rows that share a key.
    """

    def __init__(self, written: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]) -> None:
        self._written = written
        self._count = 0
        self._high = np.zeros(0, np.uint64)  # First half of each key, sorted; ties are sorted by the second half, then by time.
        self._low = np.zeros(0, np.uint64)
        self._rows = np.zeros(0, np.int32)
        self._recent: dict[bytes, int] = {}  # Rows added since the arrays were last sorted.
        self._waiting: list[npt.NDArray[np.uint64]] = []  # Their keys, uint64 (rows, 2).

    def extend(self, keys: pa.ChunkedArray) -> None:
        """Add rows by their keys, binary of `KEY_BYTES`."""
        if not len(keys):
            return
        self._waiting.append(np.frombuffer(joined_keys(keys), ">u8").reshape(-1, 2))
        self._count += len(keys)
        if len(self._recent) + len(keys) > MERGE_ROWS:
            self.sort()
            return
        for number, key in enumerate(keys.to_pylist(), self._count - len(keys)):
            self._recent.setdefault(key, number)

    def find(self, keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """For each key the number of its row that was written first, of its copies the last; -1 if there is none."""
        if not len(keys):
            return np.zeros(0, np.int64)
        first, found = self._search(keys)
        rows = np.full(len(keys), -1)
        rows[found] = self._rows[first[found]]
        if self._recent:
            for k in np.flatnonzero(~found):
                rows[k] = self._recent.get(keys[int(k)], -1)
        return rows

    def find_all(self, key: bytes) -> npt.NDArray[np.int64]:
        """Numbers of all rows with a key, in the order in which they were written."""
        self.sort()
        [first], [found] = self._search([key])
        last = first
        while found and last < len(self._rows) and (self._high[last], self._low[last]) == (self._high[first], self._low[first]):
            last += 1
        return self._rows[first:last].astype(np.int64)

    def _search(self, keys: Sequence[bytes]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Positions in the sorted arrays, and whether the key is there."""
        halves = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2)
        high, low = halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)
        first = np.searchsorted(self._high, high)
        if not len(self._high):
            return first, np.zeros(len(keys), bool)
        last = len(self._high) - 1
        at = np.minimum(first, last)
        # Two different keys that share their first half are next to impossible, but cost only another step.
        while (moved := (self._high[at] == high) & (self._low[at] < low) & (at < last)).any():
            at = at + moved
        return at, (self._high[at] == high) & (self._low[at] == low)

    def sort(self) -> None:
        """Sort the rows added last in among the others, so that of equal keys the one written first is found."""
        if not self._waiting:
            return
        halves = np.concatenate(self._waiting)
        high = np.concatenate([self._high, halves[:, 0].astype(np.uint64)])
        low = np.concatenate([self._low, halves[:, 1].astype(np.uint64)])
        rows = np.concatenate([self._rows, np.arange(self._count - len(halves), self._count, dtype=np.int32)])
        order = np.lexsort((low, high))
        self._high, self._low, self._rows = high[order], low[order], rows[order]
        self._recent, self._waiting = {}, []
        self._sort_copies()

    def _sort_copies(self) -> None:
        """Sort rows of one key by their time; of those that were written at one time, the last one comes first."""
        equal = np.flatnonzero((self._high[1:] == self._high[:-1]) & (self._low[1:] == self._low[:-1]))
        if not len(equal):
            return
        tied = np.union1d(equal, equal + 1)
        rows = self._rows[tied].astype(np.int64)
        self._rows[tied] = rows[np.lexsort((-rows, self._written(rows), self._low[tied], self._high[tied]))]
