"""All rows of one kind that were computed under one fingerprint, found by key.

shards.py       reads and writes the files
row_index.py    knows the keys, so that shards need not be read to be searched
tidying.py      merges small shards and stores the index when a run is complete
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.formats import FORMAT
from icmbench.harness.store.row_index import RowIndex, Rows
from icmbench.harness.store.rows import to_table
from icmbench.harness.store.shards import INDEX_NAME, KEY_COLUMNS, SHARD_NAME, Kind, ShardFiles

# Waits between looks at a folder in which other processes replace files at this moment.
RETRY_SECONDS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class Collection:
    """The rows of one kind and fingerprint in a folder.

    Args:
        folder: the run folder or store.
        kind: what the rows are.
        fingerprint: everything that the rows have in common and that decides them.
        schema: the columns after `KEY_COLUMNS`.
        indexed: names of the columns that the index repeats, so that `facts` need not read shards.
        about: facts for people, written into each shard beside its fingerprint, such as the name of the codec.
        number: format number of the files.

    Attributes:
        place: the folder of the shards, below `folder`.
        schema: all columns of a shard.
        files: the shards.
        index: what is known of their rows.
    """

    def __init__(
        self,
        folder: Folder,
        kind: Kind,
        fingerprint: str,
        schema: pa.Schema,
        indexed: Sequence[str] = (),
        about: Mapping[str, Any] | None = None,
        number: int = FORMAT,
    ) -> None:
        self.folder, self.files = folder, ShardFiles(folder, kind, fingerprint, schema, about or {}, number)
        self.place, self.schema = self.files.place, self.files.schema
        self.index = RowIndex(pa.schema([self.schema.field(name) for name in (*dict(KEY_COLUMNS), *indexed)]))
        self._lock = threading.RLock()  # A second thread writes while the first one looks up.

    def __len__(self) -> int:
        """Number of rows, those included that repeat a key."""
        return len(self.all_rows())

    # Finding rows.

    def refresh(self) -> None:
        """Learn of the rows that other processes wrote, by one listing of the folder."""
        for wait in RETRY_SECONDS:
            known = frozenset(self.index.shards)  # Shards that the second thread writes from now on may be missing in the listing.
            present = self.files.names()
            try:
                with self._lock:
                    self._load(known, present)
            except FileNotFoundError:  # Another process has replaced small shards by larger ones since the listing.
                time.sleep(wait)
                continue
            return
        raise UserError(f"{self.files.path} changes while it is read: run the same command again")

    def find(self, keys: Sequence[bytes]) -> Rows:
        """Row numbers by key; of several rows with one key the one written first."""
        with self._lock:
            return self.index.find(keys)

    def find_all(self, key: bytes) -> Rows:
        """Numbers of all rows with a key, the one written first before the others."""
        with self._lock:
            return self.index.find_all(key)

    def all_rows(self) -> Rows:
        """The numbers of all rows, each once although it may have been copied into a larger shard."""
        with self._lock:
            return self.index.all_rows()

    def facts(self, rows: Rows, columns: Sequence[str]) -> pa.Table:
        """Indexed columns of rows that exist, in the given order."""
        return self.index.facts(rows, columns)

    def shards_of(self, rows: Rows) -> list[str]:
        """File names of the shards that hold some rows; absent rows are passed over."""
        with self._lock:
            return [name for name, _, _ in self.index.places(self._current(rows[rows >= 0]))]

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
        for wait in RETRY_SECONDS:
            try:
                return self._read_rows(self._current(rows), names)
            except FileNotFoundError:  # Another process has just replaced a shard by a larger one.
                time.sleep(wait)
                self.refresh()
        raise UserError(f"{self.files.path} changes while it is read: run the same command again")

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as a shard of their own.

        Args:
            rows: values of all columns but `written`, as `to_table` takes them; at least one row.

        Raises:
            UserError: the file system refused the file.
        """
        written = time.time()
        table = to_table([{**row, "written": written} for row in rows], self.schema)
        name = self.files.write_shard(table)
        with self._lock:
            self.index.add(name, table)
            self.files.keep(name, table)

    def _load(self, known: frozenset[str], present: Sequence[str]) -> None:
        """Learn of the shards that are present, reading only what is new.

        Args:
            known: shards that were known before the folder was listed.
            present: file names in the folder.
        """
        shards = sorted(name for name in present if SHARD_NAME.fullmatch(name))
        if not self.index.shards and shards:
            self._load_index([name for name in present if INDEX_NAME.fullmatch(name)], frozenset(shards))
        for name, table in self.files.read_shards(sorted({*shards} - {*self.index.shards})):
            self.index.add(name, table)
            self.files.keep(name, table)
        self.index.mark_gone(known - {*shards})

    def _load_index(self, names: Sequence[str], shards: frozenset[str]) -> None:
        """Start from the stored index that covers most of the shards."""
        indices = [(covered, rows) for covered, rows in self.files.read_indices(names) if {*covered} <= shards]
        if fitting := [each for each in indices if self.index.fits(each[1])]:
            self.index.start(*max(fitting, key=lambda each: len(each[0])))

    def _current(self, rows: Rows) -> Rows:
        try:
            with self._lock:
                return self.index.current(rows)
        except LookupError:
            raise UserError(f"{self.files.path}: a shard was removed: run the same command again") from None

    def _read_rows(self, rows: Rows, names: Sequence[str]) -> pa.Table:
        parts, order = [pa.schema([self.schema.field(name) for name in names]).empty_table()], []
        for name, chosen, positions in self.index.places(rows):
            parts.append(self.files.read_shard(name).select(names).take(pa.array(positions)))
            order.append(chosen)
        table = pa.concat_tables(parts).combine_chunks()
        return table.take(pa.array(np.argsort(np.concatenate(order), kind="stable"))) if order else table
