"""All rows of one kind that were computed under one fingerprint, found by key.

<kind>/<digest of the fingerprint>/<rows>-<SHA-256>.parquet    a shard: rows that were written together
<kind>/<digest of the fingerprint>/index-<SHA-256>.parquet     the keys of many shards, which need not be read to be searched

The name of each file holds the SHA-256 of its bytes, so a file that was damaged, or exchanged for another, is noticed when it is
read. Shards are never changed. The index is derived from them: it names the shards that it covers and is made anew at any time.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.formats import FORMAT, KEY, check_metadata
from icmbench.harness.store.key_index import KeyIndex
from icmbench.harness.store.keys import KEY_BYTES, digest
from icmbench.harness.store.rows import to_table

Kind = Literal["sources", "streams", "predictions", "failures"]
Rows = npt.NDArray[np.int64]  # Row numbers of a collection; -1 stands for an absent row.

COMPACT_ROWS = 1000  # Rows of the shards that `compact` writes,
COMPACT_BYTES = 64 * 2**20  # unless they reach this size before.
SHARD_NAME = re.compile(r"(?P<rows>\d{6,})-(?P<sha256>[0-9a-f]{32})\.parquet")
INDEX_NAME = re.compile(r"index-(?P<sha256>[0-9a-f]{32})\.parquet")
MAX_CHUNKS = 64  # Pieces of a table in memory; with more of them looking up single rows becomes slow.
# The first columns of every shard: the row's key, and when it was computed, in seconds since 1970.
KEY_COLUMNS = [("key", pa.binary(KEY_BYTES)), ("written", pa.float64())]
_LOCATION = [("shard", pa.int32()), ("row", pa.int32())]  # Columns of the index: the position among its shards, and in the shard.


class Collection:
    """The rows of one kind and fingerprint in a folder.

    Args:
        folder: the run folder or store.
        kind: what the rows are.
        fingerprint: everything that the rows have in common and that decides them.
        schema: the columns after `KEY_COLUMNS`.
        indexed: names of the columns that the index repeats, so that `facts` need not read shards.
        about: facts for people, written into each shard beside its fingerprint, such as the name of the codec.

    Attributes:
        place: the folder of the shards, below `folder`.
        schema: all columns of a shard.
    """

    def __init__(
        self,
        folder: Folder,
        kind: Kind,
        fingerprint: str,
        schema: pa.Schema,
        indexed: Sequence[str] = (),
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.kind, self.fingerprint = folder, kind, fingerprint
        self.place = f"{kind}/{digest(fingerprint)}"
        self.schema = pa.schema([*KEY_COLUMNS, *schema])
        self._about = dict(about or {})
        self._indexed = [name for name, _ in KEY_COLUMNS] + list(indexed)
        self._shards: list[str] = []  # File names of the shards that the rows come from.
        self._gone: set[int] = set()  # Positions of those of them that were replaced by larger ones; their rows keep their numbers.
        self._covered: frozenset[str] = frozenset()  # Those of them that the stored index covers.
        self._rows = pa.schema([*(self.schema.field(name) for name in self._indexed), *_LOCATION]).empty_table()
        self._keys = KeyIndex()
        self._last_read: tuple[str, pa.Table] | None = None
        self._lock = threading.RLock()  # A second thread writes while the first one looks up.

    def __len__(self) -> int:
        """Number of rows, those included that repeat a key."""
        return len(self.all_rows())

    # Finding rows.

    def refresh(self) -> None:
        """Learn of the rows that other processes wrote, by one listing of the folder."""
        for _ in range(3):
            present = [name.rpartition("/")[2] for name in self.folder.names(self.place)]
            try:
                with self._lock:
                    self._load(present)
            except FileNotFoundError:  # Another process has replaced small shards by larger ones since the listing.
                continue
            return
        raise UserError(f"{self.folder.full_path(self.place)} changes while it is read: run the same command again")

    def find(self, keys: Sequence[bytes]) -> Rows:
        """Row numbers by key; of several rows with one key the one written first."""
        with self._lock:
            return self._keys.find(keys)

    def all_rows(self) -> Rows:
        """The numbers of all rows, each once although it may have been copied into a larger shard."""
        if not self._gone:
            return np.arange(self._rows.num_rows)
        return np.flatnonzero(~np.isin(self._rows.column("shard").to_numpy(), list(self._gone)))

    def find_all(self, key: bytes) -> Rows:
        """Numbers of all rows with a key, the one written first before the others."""
        with self._lock:
            return self._keys.find_all(key)

    def facts(self, rows: Rows, columns: Sequence[str]) -> pa.Table:
        """Indexed columns of rows that exist, in the given order."""
        return self._rows.select(list(columns)).take(pa.array(rows))

    # Reading and writing shards.

    def read(self, rows: Rows, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows that exist, in the given order.

        Args:
            rows: row numbers, int64 (n,).
            columns: names of columns; all by default.

        Raises:
            UserError: a shard is damaged, or was exchanged for another file.
        """
        names = list(columns) if columns is not None else self.schema.names
        for _ in range(3):
            try:
                return self._read_rows(self._present(rows), names)
            except FileNotFoundError:  # Another process has just replaced a shard by a larger one.
                self.refresh()
        raise UserError(f"{self.folder.full_path(self.place)} changes while it is read: run the same command again")

    def _read_rows(self, rows: Rows, names: Sequence[str]) -> pa.Table:
        empty = pa.schema([self.schema.field(name) for name in names]).empty_table()
        located = self._rows.select(["shard", "row"]).take(pa.array(rows))
        shards, positions = (located.column(name).to_numpy() for name in ("shard", "row"))
        parts, order = [empty], []
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            parts.append(self._read_shard(self._shards[shard]).select(names).take(pa.array(positions[chosen])))
            order.append(chosen)
        table = pa.concat_tables(parts).combine_chunks()
        return table.take(pa.array(np.argsort(np.concatenate(order), kind="stable"))) if order else table

    def _present(self, rows: Rows) -> Rows:
        """Row numbers with those of replaced shards exchanged for those of their copies."""
        shards = self._rows.column("shard").to_numpy()
        moved = np.flatnonzero(np.isin(shards[rows], list(self._gone))) if self._gone else ()
        if not len(moved):
            return rows
        rows, written = rows.copy(), self._rows.column("written").to_numpy()
        keys = self._rows.column("key").take(pa.array(rows[moved])).to_pylist()
        for k, key in zip(moved, keys, strict=True):
            copies = [n for n in self.find_all(key) if written[n] == written[rows[k]] and shards[n] not in self._gone]
            if not copies:
                raise UserError(f"{self.folder.full_path(self.place)}: a shard was removed: run the same command again")
            rows[k] = copies[0]
        return rows

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as a shard of their own.

        Args:
            rows: values of all columns but `written`, as `to_table` takes them; at least one row.

        Raises:
            UserError: the file system refused the file.
        """
        written = time.time()
        table = to_table([{**row, "written": written} for row in rows], self.schema)
        name = self._write_shard(table)
        with self._lock:
            self._adopt(name, table)

    def shards_of(self, rows: Rows) -> list[str]:
        """File names of the shards that hold some rows; absent rows are passed over."""
        shards = np.unique(self._rows.column("shard").to_numpy()[self._present(rows[rows >= 0])])
        return [self._shards[shard] for shard in shards]

    def compact(self, shards: Sequence[str]) -> None:
        """Replace shards by fewer and larger ones, if many of them are small.

        The new shards are written before the old ones are removed. A process that reads meanwhile lists the folder again.

        Args:
            shards: file names, for example of the shards of one rate point of one dataset, which are then read together.
        """
        small = [name for name in shards if name in self._shards and int(name.partition("-")[0]) < COMPACT_ROWS // 2]
        if len(small) < 2:
            return
        try:
            tables = [self._read_shard(name) for name in small]
        except FileNotFoundError:  # Another process is doing the same.
            self.refresh()
            return
        parts = _parts(pa.concat_tables(tables).combine_chunks())
        if len(parts) >= len(small):
            return
        new = [self._write_shard(part) for part in parts]
        for name in {*small} - {*new}:
            self.folder.remove(f"{self.place}/{name}")
        self.refresh()

    def write_index(self) -> None:
        """Store the index, unless the stored one covers all shards."""
        present = [k for k in range(len(self._shards)) if k not in self._gone]
        names = [self._shards[k] for k in present]
        if not names or self._covered == frozenset(names):
            return
        rows = self._rows.take(pa.array(self.all_rows()))
        position = rows.schema.get_field_index("shard")
        shards = pa.array(np.searchsorted(present, rows.column("shard").to_numpy()).astype("i4"))
        metadata = self._metadata() | {"shards": json.dumps(names)}
        old = [name for name in self.folder.names(self.place) if INDEX_NAME.fullmatch(name.rpartition("/")[2])]
        data = to_parquet(rows.set_column(position, "shard", shards), metadata)
        name = f"{self.place}/index-{content_name(data)}.parquet"
        self.folder.write(name, data)
        self._covered = frozenset(names)
        for other in {*old} - {name}:
            self.folder.remove(other)

    def stored_bytes(self) -> int:
        """Size of all shards in bytes."""
        sizes = self.folder.sizes(self.place)
        return sum(sizes.get(f"{self.place}/{name}", 0) for name in self._shards)

    # Helpers.

    def _load(self, present: Sequence[str]) -> None:
        """Learn of the shards that are present, reading only what is new. Rows that are known keep their numbers."""
        shards = sorted(name for name in present if SHARD_NAME.fullmatch(name))
        if not self._shards and shards:
            self._load_index([name for name in present if INDEX_NAME.fullmatch(name)], shards)
        known = {*self._shards}
        for name in shards:
            if name not in known:
                self._adopt(name, self._read_shard(name))
        there = {*shards}
        self._gone = {k for k, name in enumerate(self._shards) if name not in there}
        self._keys.sort()

    def _load_index(self, names: Sequence[str], shards: Sequence[str]) -> None:
        """Start from the stored index that covers most of the shards; a damaged one counts as absent."""
        best: tuple[list[str], pa.Table] = ([], self._rows)
        for name in names:
            try:
                table = self._read_file(name, INDEX_NAME)
                covered = [str(shard) for shard in json.loads((table.schema.metadata or {})[b"shards"])]
            except (UserError, ValueError, KeyError):
                continue
            if {*covered} <= {*shards} and len(covered) > len(best[0]) and table.schema.names == self._rows.schema.names:
                best = covered, table.replace_schema_metadata(None)
        self._shards, self._covered = list(best[0]), frozenset(best[0])
        self._rows = best[1]
        self._keys.extend(self._rows)

    def _adopt(self, name: str, table: pa.Table) -> None:
        """Add the rows of a shard."""
        if name in self._shards:  # The same rows at the same second, which therefore got the same name.
            return
        count = table.num_rows
        shard, row = np.full(count, len(self._shards), "i4"), np.arange(count, dtype="i4")
        located = table.select(self._indexed).append_column("shard", pa.array(shard)).append_column("row", pa.array(row))
        located = located.replace_schema_metadata(None)
        self._rows = pa.concat_tables([self._rows, located])
        if self._rows.column("key").num_chunks > MAX_CHUNKS:
            self._rows = self._rows.combine_chunks()
        self._keys.extend(located)
        self._shards.append(name)

    def _metadata(self) -> dict[str, str]:
        return {KEY: str(FORMAT), "kind": self.kind, "fingerprint": self.fingerprint, "about": json.dumps(self._about, default=str)}

    def _write_shard(self, table: pa.Table) -> str:
        data = to_parquet(table, self._metadata())
        name = f"{table.num_rows:06d}-{content_name(data)}.parquet"
        self.folder.write(f"{self.place}/{name}", data)
        return name

    def _read_shard(self, name: str) -> pa.Table:
        if self._last_read is None or self._last_read[0] != name:
            self._last_read = name, self._read_file(name, SHARD_NAME)
        return self._last_read[1]

    def _read_file(self, name: str, pattern: re.Pattern[str]) -> pa.Table:
        """A shard or an index whose bytes and metadata are those that its place and name promise."""
        path = self.folder.full_path(f"{self.place}/{name}")
        data = self.folder.read(f"{self.place}/{name}")
        match = pattern.fullmatch(name)
        if match is None or content_name(data) != match["sha256"]:
            remedy = f"delete it, or all damaged files with `icmbench store verify --repair {self.folder.root}`"
            raise UserError(f"{path} is damaged (its bytes are not those of its name): {remedy}, and run the same command again")
        table = pq.read_table(io.BytesIO(data))
        metadata = table.schema.metadata or {}
        check_metadata(path, metadata)
        if metadata.get(b"kind") != self.kind.encode() or metadata.get(b"fingerprint") != self.fingerprint.encode():
            raise UserError(f"{path} belongs elsewhere (it is of another codec or task): delete it and run the same command again")
        if pattern is SHARD_NAME and table.schema.names != self.schema.names:
            raise UserError(f"{path} has other columns than expected: raise the `version` of what was changed, or delete it")
        return table


def to_parquet(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a shard or index."""
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(dict(metadata)), buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def content_name(data: bytes) -> str:
    """What the name of a shard or index says of its bytes: the first half of their SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def _parts(table: pa.Table) -> list[pa.Table]:
    """A table cut into parts of at most `COMPACT_ROWS` rows and about `COMPACT_BYTES` bytes."""
    count = max(1, -(-table.num_rows // COMPACT_ROWS), -(-table.nbytes // COMPACT_BYTES))
    size = -(-table.num_rows // count)
    return [table.slice(start, size) for start in range(0, table.num_rows, size)]
