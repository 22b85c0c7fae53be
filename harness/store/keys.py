"""What decides a stored row, and the keys by which rows are found.

    stream      codec fingerprint and seed | SHA-256 of the source pixels, facts of the image
    prediction  task and model fingerprint | SHA-256 of the reconstruction, of the original where the task needs it, facts

What stands left of the bar is shared by all rows of a collection and names its folder; what stands right of it is hashed into the
key of one row. Labels, dataset names, block numbers and shard sizes enter neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from icmbench.tasks.fingerprints import pixel_sha256 as pixel_sha256  # The rule is that of tasks, which know pixels by it too.

if TYPE_CHECKING:
    import pyarrow as pa

KEY_BYTES = 16


def digest(facts: Any) -> str:
    """A short key of facts that JSON can hold: the first 80 bits of their SHA-256, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def row_key(*parts: Any) -> bytes:
    """The key of a row, `KEY_BYTES` long: the beginning of the SHA-256 of texts, numbers or None, in this order."""
    return row_keys(*([part] for part in parts))[0]


def row_keys(*columns: Sequence[Any]) -> list[bytes]:
    """The keys of many rows, of which a run of a paper's size has millions.

    Args:
        columns: the parts of `row_key`, one of each for every row.
    """
    text = "\0".join(["%r"] * len(columns))
    return [hashlib.sha256((text % parts).encode()).digest()[:KEY_BYTES] for parts in zip(*columns, strict=True)]


def joined_keys(column: pa.ChunkedArray) -> bytes:
    """All keys of a column of a table, one after the other."""
    if not len(column):
        return b""
    array, size = column.combine_chunks(), column.type.byte_width
    return bytes(array.buffers()[1][array.offset * size : (array.offset + len(array)) * size])
