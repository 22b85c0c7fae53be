"""What shards hold and how they are named: by everything that decides their content.

sources/<dataset>/<block>-<key>.parquet                              hashes of the source pixels
streams/<dataset>/<codec>/<point>/<block>-<key>.parquet              real bytes, and the hash of what they decode to
predictions/<dataset>/<task>/<codec>/<point>/<block>-<key>.parquet   what the model said of those pixels
reconstructions/<dataset>/<codec>/<point>/<block>-<key>/<image>.png   with --keep reconstructions
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from icmbench.codecs.base import Codec
from icmbench.harness.store.store import safe_name
from icmbench.tasks.base import Image, Task

SOURCES = pa.schema(
    [
        ("id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("sha256", pa.string()),
        ("error", pa.string()),  # why the image could not be read; null for a good one
    ]
)

STREAMS = pa.schema(
    [
        ("id", pa.string()),
        ("data", pa.large_binary()),
        ("bytes", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("parts", pa.string()),  # JSON {part: bits}, null without rate_breakdown
        ("encode_seconds", pa.float64()),
        ("decode_seconds", pa.float64()),
        ("sha256", pa.string()),  # of the reconstruction
        ("error", pa.string()),  # why there is no stream; null for a good one
    ]
)
PREDICTION = [("id", pa.string()), ("seconds", pa.float64()), ("error", pa.string())]  # then the task's own columns


@dataclass(frozen=True)
class Series:
    """One codec at one rate point and seed: a point of a curve. `codec` is None for the originals.

    given: the entry of the experiment's `points:` that made it.
    """

    label: str
    point: str
    seed: int | None
    codec: Codec | None
    given: Any = None

    @property
    def name(self) -> str:
        return f"{self.label} {self.point}" + ("" if self.seed is None else f" seed={self.seed}")

    @property
    def folder(self) -> str:
        point = self.point if self.seed is None else f"{self.point}.seed={self.seed}"
        return f"{safe_name(self.label)}/{safe_name(point)}"

    @property
    def deterministic(self) -> bool:
        return bool(getattr(self.codec, "deterministic", True))

    @property
    def fingerprint(self) -> str:
        return "" if self.codec is None else json.dumps([self.codec.fingerprint, self.seed])


@dataclass(frozen=True)
class ImageBlock:
    """A fixed run of a dataset's images: the same whatever the number of workers."""

    dataset: str
    number: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """What is known of a block's pixels before coding, by image id: SHA-256, why some could not be read, height and width."""

    sha256: dict[str, str | None]
    errors: dict[str, str]
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)


def pixel_sha256(image: Image) -> str:
    """SHA-256 of an image's shape and pixels."""
    value = hashlib.sha256(np.array(image.shape, "<u4").tobytes())
    value.update(np.ascontiguousarray(image).data)
    return value.hexdigest()


def digest(facts: Any) -> str:
    """A short key of JSON facts: 80 bits of SHA-256."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def stream_name(block: ImageBlock, sources: Sources, series: Series) -> str:
    """Where a stream shard lies; its key holds the source pixels and everything that decides the bytes."""
    key = digest([list(block.ids), [sources.sha256[i] for i in block.ids], series.fingerprint])
    return f"streams/{safe_name(block.dataset)}/{series.folder}/{block.number:05d}-{key}.parquet"


def picture_name(stream_file: str, image_id: str) -> str:
    """Where the kept reconstruction of an image lies, by the name of its stream shard."""
    folder = stream_file.removeprefix("streams/").removesuffix(".parquet")
    return f"reconstructions/{folder}/{quote(image_id, safe='')[-200:]}.png"


def prediction_name(
    block: ImageBlock, ids: Sequence[str], sources: Sources, series: Series, label: str, task: Task, pixels: Sequence[str | None]
) -> str:
    """Where a prediction shard lies; its key holds the hashes of the pixels shown to the model and the task's fingerprint."""
    originals = [sources.sha256[i] for i in ids] if task.needs_originals else None
    key = digest([list(ids), list(pixels), originals, task.fingerprint])
    return f"predictions/{safe_name(block.dataset)}/{safe_name(label)}/{series.folder}/{block.number:05d}-{key}.parquet"


def cell_name(block: ImageBlock, series: Series) -> str:
    return f"{block.dataset} / {series.name} / block {block.number}"
