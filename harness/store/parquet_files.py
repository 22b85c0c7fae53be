"""Parquet files with checksums and the format number: shards, indices, and the tables of a run folder."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.formats import FORMAT, KEY, check_metadata


def to_parquet(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a Parquet file.

    Args:
        table: its rows.
        metadata: of its schema. A format number among it is kept; without one the file is of `FORMAT`.
    """
    buffer = io.BytesIO()
    described = table.replace_schema_metadata({**metadata, KEY: metadata.get(KEY, str(FORMAT))})
    pq.write_table(described, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def write_table(folder: Folder, name: str, table: pa.Table) -> None:
    """Write a table, which keeps the metadata of its schema; see `Folder.write`."""
    metadata = {key.decode(): text.decode() for key, text in (table.schema.metadata or {}).items()}
    folder.write(name, to_parquet(table, metadata))


def write_parts(folder: Folder, name: str, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
    """Write a table of which one part at a time is in memory; see `Folder.write`.

    Args:
        folder: the folder of the file.
        name: the file, below it.
        schema: the columns of all parts.
        parts: the rows, in order.
    """
    buffer = io.BytesIO()
    described = schema.with_metadata({KEY: str(FORMAT)})
    with pq.ParquetWriter(buffer, described, compression="zstd", write_page_checksum=True) as writer:
        for part in parts:
            writer.write_table(part.replace_schema_metadata(described.metadata))
    folder.write(name, buffer.getvalue())


def read_table(folder: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table.

    Args:
        folder: the folder of the file.
        name: the file, below it.
        columns: the columns to read; all by default.

    Raises:
        FormatError: a newer icmbench wrote the file.
        UserError: the file is damaged.
        FileNotFoundError: there is no such file.
    """
    data = folder.read(name)
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        check_metadata(folder.full_path(name), file.schema_arrow.metadata)
        lacking = [column for column in columns or () if column not in file.schema_arrow.names]
        if lacking:
            raise ValueError(f"it has no column {lacking[0]!r}")
        return file.read(columns=list(columns) if columns is not None else None)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        cause = " ".join(str(error).split())
        raise UserError(f"{folder.full_path(name)} is damaged ({cause}): delete it and run the same command again") from error
