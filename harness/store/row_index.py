"""What is known of the rows of a collection without reading its shards: keys, some columns, and which shard holds which row."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icmbench.harness.store.key_index import KeyIndex

Rows = npt.NDArray[np.int64]  # Row numbers of a collection; -1 stands for an absent row.

MAX_CHUNKS = 64  # Pieces of a table in memory; with more of them looking up single rows becomes slow.
_LOCATION = [("shard", pa.int32()), ("row", pa.int32())]  # The position among the shards, and in the shard.


class RowIndex:
    """The rows of a collection, numbered in the order in which they became known. A row keeps its number.

    Small shards are replaced by larger ones. The rows of a shard that is gone keep their numbers, and stand for their copies.

    Args:
        columns: the columns that are known of each row; `key` and `written` among them.

    Attributes:
        shards: file names of all shards that rows came from.
        covered: those of them that the index in the folder covers.
    """

    def __init__(self, columns: pa.Schema) -> None:
        self.shards: list[str] = []
        self.covered: frozenset[str] = frozenset()
        self._gone: set[int] = set()  # Positions of the shards that were replaced.
        self._names = columns.names
        self._rows = pa.schema([*columns, *_LOCATION]).empty_table()
        self._keys = KeyIndex(lambda rows: self.facts(rows, ["written"]).column(0).to_numpy())

    # Finding rows.

    def find(self, keys: Sequence[bytes]) -> Rows:
        """Row numbers by key; of several rows with one key the one written first."""
        return self._keys.find(keys)

    def find_all(self, key: bytes) -> Rows:
        """Numbers of all rows with a key, the one written first before the others."""
        return self._keys.find_all(key)

    def all_rows(self) -> Rows:
        """The numbers of all rows, each once although it may have been copied into a larger shard."""
        if not self._gone:
            return np.arange(self._rows.num_rows)
        return np.flatnonzero(~np.isin(self._rows.column("shard").to_numpy(), list(self._gone)))

    def facts(self, rows: Rows, columns: Sequence[str]) -> pa.Table:
        """Known columns of rows, in the given order."""
        return self._rows.select(list(columns)).take(pa.array(rows))

    # Where rows are.

    def current(self, rows: Rows) -> Rows:
        """Row numbers with those of shards that are gone exchanged for those of their copies.

        Raises:
            LookupError: a row has no copy.
        """
        shards = self._rows.column("shard").to_numpy()
        moved = np.flatnonzero(np.isin(shards[rows], list(self._gone))) if self._gone else ()
        if not len(moved):
            return rows
        rows, written = rows.copy(), self._rows.column("written").to_numpy()
        keys = self._rows.column("key").take(pa.array(rows[moved])).to_pylist()
        for k, key in zip(moved, keys, strict=True):
            copies = [n for n in self.find_all(key) if written[n] == written[rows[k]] and shards[n] not in self._gone]
            if not copies:
                raise LookupError(key)
            rows[k] = copies[0]
        return rows

    def places(self, rows: Rows) -> Iterator[tuple[str, Rows, Rows]]:
        """Where rows lie: the file name of each shard, positions in `rows` of those that it holds, and their positions in it."""
        located = self.facts(rows, ["shard", "row"])
        shards, positions = (located.column(name).to_numpy() for name in ("shard", "row"))
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            yield self.shards[shard], chosen, positions[chosen]

    def stored(self) -> tuple[list[str], pa.Table]:
        """File names of the shards that are not gone, and their rows with the positions of their shards among these."""
        present = [k for k in range(len(self.shards)) if k not in self._gone]
        rows = self._rows.take(pa.array(self.all_rows()))
        shards = np.searchsorted(present, rows.column("shard").to_numpy()).astype("i4")
        rows = rows.set_column(rows.schema.get_field_index("shard"), "shard", pa.array(shards))
        return [self.shards[k] for k in present], rows

    # Learning of rows.

    def start(self, shards: Sequence[str], rows: pa.Table) -> None:
        """Begin with what `stored` returned; nothing was known before."""
        rows = rows.select(self._rows.schema.names)
        self.shards, self.covered, self._rows = list(shards), frozenset(shards), rows
        self._keys.extend(rows.column("key"))

    def fits(self, rows: pa.Table) -> bool:
        """Whether a table has the columns that `start` takes; it may have others, as indices of earlier versions do."""
        return {*self._rows.schema.names} <= {*rows.schema.names}

    def add(self, shard: str, table: pa.Table) -> None:
        """Add the rows of a shard.

        Args:
            shard: its file name; one that is known has the same rows, written at the same second.
            table: at least the columns of the index.
        """
        if shard in self.shards:
            return
        count = table.num_rows
        number, row = np.full(count, len(self.shards), "i4"), np.arange(count, dtype="i4")
        located = table.select(self._names).append_column("shard", pa.array(number)).append_column("row", pa.array(row))
        located = located.replace_schema_metadata(None)
        self._rows = pa.concat_tables([self._rows, located])
        if self._rows.column("key").num_chunks > MAX_CHUNKS:
            self._rows = self._rows.combine_chunks()
        self._keys.extend(located.column("key"))
        self.shards.append(shard)

    def mark_gone(self, names: Container[str]) -> None:
        """Note which shards are gone; all others are there."""
        self._gone = {k for k, name in enumerate(self.shards) if name in names}
        self._keys.sort()
