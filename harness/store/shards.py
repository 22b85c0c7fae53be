"""The files of a collection, each named by the SHA-256 of its bytes, so that damage and exchange are noticed when it is read.

<kind>/<digest of the fingerprint>/<rows>-<SHA-256>.parquet    a shard: rows that were written together, never changed
<kind>/<digest of the fingerprint>/index-<SHA-256>.parquet     keys and places of the rows of many shards
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder, explain_connection_errors
from icmbench.harness.store.formats import FORMAT, KEY, check_metadata
from icmbench.harness.store.keys import KEY_BYTES, digest
from icmbench.harness.store.parallel import for_each, is_remote, remove_all
from icmbench.harness.store.parquet_files import to_parquet
from icmbench.harness.store.whole_files import writing

Kind = Literal["sources", "streams", "predictions", "failures"]

SHARD_NAME = re.compile(r"(?P<rows>\d{6,})-(?P<sha256>[0-9a-f]{32})\.parquet")
INDEX_NAME = re.compile(r"index-(?P<sha256>[0-9a-f]{32})\.parquet")
KEPT_BYTES = 8 * 2**20  # Of the small shards that `ShardFiles.keep` keeps of one collection.
# The first columns of every shard: the row's key, and when it was computed, in seconds since 1970.
KEY_COLUMNS = [("key", pa.binary(KEY_BYTES)), ("written", pa.float64())]


class ShardFiles:
    """Reads and writes the files of one collection.

    Args:
        folder: the run folder or store.
        kind: what the rows are.
        fingerprint: everything that the rows have in common and that decides them.
        schema: the columns after `KEY_COLUMNS`.
        about: facts for people, written into each shard beside its fingerprint, such as the name of the codec.
        number: format number of the files.

    Attributes:
        place: the folder of the files, below `folder`.
        schema: all columns of a shard.
    """

    def __init__(
        self, folder: Folder, kind: Kind, fingerprint: str, schema: pa.Schema, about: Mapping[str, Any], number: int = FORMAT
    ) -> None:
        self.place = f"{kind}/{digest(fingerprint)}"
        self.schema = pa.schema([*KEY_COLUMNS, *schema])
        self._folder = folder
        identity = {"kind": kind, "fingerprint": fingerprint}
        self._metadata = {**identity, "about": json.dumps(dict(about), default=str), KEY: str(number)}
        self._identity = {key.encode(): text.encode() for key, text in identity.items()}
        self._last_read: tuple[str, pa.Table] | None = None
        self._kept: dict[str, pa.Table] = {}

    @property
    def path(self) -> str:
        """The folder of the files on the file system."""
        return self._folder.full_path(self.place)

    def names(self) -> list[str]:
        """File names of everything that lies in the folder."""
        return [name.rpartition("/")[2] for name in self._folder.names(self.place)]

    def sizes(self) -> dict[str, int]:
        """Size of each file in bytes, by file name."""
        return {name.rpartition("/")[2]: size for name, size in self._folder.sizes(self.place).items()}

    def shard_bytes(self) -> int:
        """Size of all shards in bytes."""
        return sum(size for name, size in self.sizes().items() if SHARD_NAME.fullmatch(name))

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, as far as they are there."""
        with writing(self.path), explain_connection_errors(self._folder):
            remove_all(self._folder.fs, [f"{self.path}/{name}" for name in names])

    # Shards.

    def write_shard(self, table: pa.Table) -> str:
        """Write rows; return the file name.

        Raises:
            UserError: the file system refused the file.
        """
        data = to_parquet(table, self._metadata)
        name = f"{table.num_rows:06d}-{content_name(data)}.parquet"
        self._folder.write(f"{self.place}/{name}", data)
        return name

    def write_shards(self, tables: Iterable[pa.Table]) -> list[str]:
        """Write several shards, many at once on an object store; return their file names. See `write_shard`."""
        return list(for_each(self._folder.fs, self.write_shard, tables))

    def read_shards(self, names: Iterable[str]) -> Iterator[tuple[str, pa.Table]]:
        """File name and rows of each of some shards, in order; see `read_shard`. An object store is asked for many at once."""
        names = list(names)
        read = for_each(self._folder.fs, self._read_whole_shard, [name for name in names if name not in self._kept])
        for name in names:
            yield name, self._kept.pop(name) if name in self._kept else next(read)

    def keep(self, name: str, table: pa.Table) -> None:
        """Keep the rows of a shard of an object store for `read_shards`, if there are few.

        A run asks for the keys of the small shards that its workers wrote, and a moment later for all of them, to merge them.
        """
        if is_remote(self._folder.fs) and table.nbytes + sum(kept.nbytes for kept in self._kept.values()) <= KEPT_BYTES:
            self._kept[name] = table

    def read_shard(self, name: str) -> pa.Table:
        """Rows of a shard; the one read last is kept in memory.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: the shard is damaged, was exchanged for another file, or has other columns.
            FormatError: another version of icmbench wrote it.
        """
        last = self._last_read  # Another thread may exchange it meanwhile.
        if last is None or last[0] != name:
            last = self._last_read = name, self._read_whole_shard(name)
        return last[1]

    def _read_whole_shard(self, name: str) -> pa.Table:
        table = self._read(name, SHARD_NAME)
        if table.schema.names != self.schema.names:
            path = f"{self.path}/{name}"
            raise UserError(f"{path} has other columns than expected: raise the `version` of what was changed, or delete it")
        return table

    # Indices.

    def write_index(self, table: pa.Table, shards: Sequence[str]) -> None:
        """Write an index, and remove those before it.

        Args:
            table: its rows, with the number of their shard.
            shards: file names of the shards by number.
        """
        old = [name for name in self.names() if INDEX_NAME.fullmatch(name)]
        data = to_parquet(table, {**self._metadata, "shards": json.dumps(list(shards))})
        name = f"index-{content_name(data)}.parquet"
        self._folder.write(f"{self.place}/{name}", data)
        self.remove({*old} - {name})

    def read_indices(self, names: Iterable[str]) -> Iterator[tuple[list[str], pa.Table]]:
        """Shards and rows of each of some indices; damaged ones count as absent.

        Raises:
            FileNotFoundError: there is no such file.
        """
        for name in names:
            try:
                table = self._read(name, INDEX_NAME)
                yield [str(shard) for shard in json.loads(table.schema.metadata[b"shards"])], table.replace_schema_metadata(None)
            except (UserError, ValueError, KeyError):
                continue

    def _read(self, name: str, pattern: re.Pattern[str]) -> pa.Table:
        """A file whose bytes and metadata are those that its place and name promise."""
        path = f"{self.path}/{name}"
        data = self._folder.read(f"{self.place}/{name}")
        match = pattern.fullmatch(name)
        if match is None or content_name(data) != match["sha256"]:
            remedy = f"delete it, or all damaged files with `icmbench store verify --repair {self._folder.root}`"
            raise UserError(f"{path} is damaged (its bytes are not those of its name): {remedy}, and run the same command again")
        table = pq.read_table(io.BytesIO(data))
        metadata = table.schema.metadata or {}
        check_metadata(path, metadata)
        if any(metadata.get(key) != text for key, text in self._identity.items()):
            raise UserError(f"{path} belongs elsewhere (it is of another codec or task): delete it and run the same command again")
        return table


def content_name(data: bytes) -> str:
    """What the name of a shard or index says of its bytes: the first half of their SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]
