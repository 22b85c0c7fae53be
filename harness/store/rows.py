"""Rows as Arrow tables and back: what codecs and tasks return has numpy arrays in it, and shards are Parquet files."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table.

    Args:
        rows: one mapping per row with a value for every column: a number, text, bytes, a 1-D array, or None for null.
        schema: the columns and their types.

    Raises:
        KeyError: a row lacks a column.
    """
    columns = [pa.array([_to_arrow_value(row[field.name], field.type) for row in rows], type=field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _to_arrow_value(value: Any, arrow_type: pa.DataType) -> Any:
    """A value that pyarrow accepts: Python numbers for numpy scalars, nested lists for arrays of more than one dimension."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and (value.ndim != 1 or pa.types.is_nested(arrow_type.value_type)):
        return value.tolist()
    return value


def from_table(table: pa.Table, names: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of an Arrow table; the reverse of `to_table`.

    Args:
        table: the table.
        names: the columns to take.

    Returns:
        One mapping per row. A list of numbers becomes a 1-D array of the column's type, shared with its neighbours in memory.
    """
    columns = {name: _column_values(table.column(name)) for name in names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _column_values(column: pa.ChunkedArray) -> list[Any]:
    arrow_type = column.type
    is_list = pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type)
    if not is_list or not _is_numeric(arrow_type.value_type) or column.null_count:
        return column.to_pylist()
    rows: list[Any] = []
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        offsets = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()  # The offsets of a slice do not begin at 0.
        rows += [values[a:b] for a, b in itertools.pairwise(offsets)]
    return rows


def _is_numeric(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type))
