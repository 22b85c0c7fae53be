"""What is done with a collection when a run is complete: small shards are merged, and the index is stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from icmbench.harness.store.collection import Collection
from icmbench.harness.store.shards import ShardFiles

COMPACT_ROWS = 1000  # Rows of the shards that `compact` writes,
COMPACT_BYTES = 64 * 2**20  # unless they reach this size before.


def compact(collection: Collection, groups: Iterable[Sequence[str]]) -> None:
    """Replace shards by fewer and larger ones, where many of a group are small.

    The new shards are written before the old ones are removed. A process that reads meanwhile lists the folder again.

    Args:
        collection: the collection.
        groups: file names, for example of the shards of one rate point of one dataset, which are then read together.
    """
    known, replaced = frozenset(collection.index.shards), frozenset[str]()
    for names in groups:
        replaced |= _compact_group(collection.files, [name for name in names if name in known and name not in replaced])
    if replaced:
        collection.refresh()


def _compact_group(files: ShardFiles, names: Sequence[str]) -> frozenset[str]:
    """Replace the small ones of some shards by larger ones; returns those that were replaced, here or by another process."""
    small = [name for name in names if int(name.partition("-")[0]) < COMPACT_ROWS // 2]
    if len(small) < 2:
        return frozenset()
    try:
        tables = [table for _, table in files.read_shards(small)]
    except FileNotFoundError:  # Another process is doing the same.
        return frozenset(small)
    parts = _parts(pa.concat_tables(tables).combine_chunks())
    if len(parts) >= len(small):
        return frozenset()
    replaced = frozenset(small) - {*files.write_shards(parts)}
    files.remove(replaced)
    return replaced


def store_index(collection: Collection) -> None:
    """Write the index of a collection, unless the one in its folder covers all shards."""
    shards, rows = collection.index.stored()
    if shards and collection.index.covered != frozenset(shards):
        collection.files.write_index(rows, shards)
        collection.index.covered = frozenset(shards)


def _parts(table: pa.Table) -> list[pa.Table]:
    """A table cut into parts of at most `COMPACT_ROWS` rows and about `COMPACT_BYTES` bytes."""
    count = max(1, -(-table.num_rows // COMPACT_ROWS), -(-table.nbytes // COMPACT_BYTES))
    size = -(-table.num_rows // count)
    return [table.slice(start, size) for start in range(0, table.num_rows, size)]
