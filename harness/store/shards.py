"""What shards hold, and their file names.

The key in a name is a digest of everything that decides the content. That of a source shard holds sizes and modification times of
the image files, because hashing their pixels is what it saves.

sources/<dataset>/<block>-<key>.parquet                              hashes of the source pixels
streams/<dataset>/<codec>/<point>/<block>-<key>.parquet              streams, and the hashes of their reconstructions
predictions/<dataset>/<task>/<codec>/<point>/<block>-<key>.parquet   predictions of a task model on the reconstructions
reconstructions/<dataset>/<codec>/<point>/<block>-<key>/<image>.png   reconstructions, with --keep reconstructions
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from icmbench.codecs.base import Codec
from icmbench.harness.config.errors import UserError
from icmbench.harness.store.store import safe_name
from icmbench.tasks.base import Image, Task

# Columns of a shard below sources/: one row per image.
SOURCES = pa.schema(
    [
        ("id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("sha256", pa.string()),  # SHA-256 of the source pixels.
        ("error", pa.string()),  # Why the image could not be read; null if it was read.
    ]
)

# Columns of a shard below streams/: one row per image.
STREAMS = pa.schema(
    [
        ("id", pa.string()),
        ("data", pa.large_binary()),
        ("bytes", pa.int64()),  # Counted size: the length of `data`, or what the codec's `stream_bytes` says.
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("parts", pa.string()),  # JSON object {part: bits}; null if the codec has no `rate_breakdown`.
        ("encode_seconds", pa.float64()),
        ("decode_seconds", pa.float64()),
        ("sha256", pa.string()),  # SHA-256 of the reconstruction.
        ("error", pa.string()),  # Why the image could not be coded; null if it was coded.
    ]
)

# First columns of a shard below predictions/; the columns of the task's own schema follow.
PREDICTION = [("id", pa.string()), ("seconds", pa.float64()), ("error", pa.string())]


@dataclass(frozen=True)
class Series:
    """One codec at one rate point and seed, over all images; or the originals.

    Attributes:
        label: the codec's label in the experiment.
        point: label of the rate point.
        seed: the codec's seed; None if the experiment lists no seeds.
        codec: the codec; None for the originals.
        point_value: the entry of the experiment's `points` that the codec was constructed with.
    """

    label: str
    point: str
    seed: int | None
    codec: Codec | None
    point_value: Any = None

    @property
    def name(self) -> str:
        """The series as people read it."""
        return f"{self.label} {self.point}" + ("" if self.seed is None else f" seed={self.seed}")

    @property
    def folder(self) -> str:
        """The series as two components of a path."""
        return f"{safe_name(self.label)}/{safe_name(self.point_name)}"

    @property
    def point_name(self) -> str:
        """The rate point with its seed; it names the folder of the series below that of the codec."""
        return self.point if self.seed is None else f"{self.point}.seed={self.seed}"

    @property
    def deterministic(self) -> bool:
        """Whether a stream always decodes to the same pixels."""
        return bool(getattr(self.codec, "deterministic", True))

    @property
    def fingerprint(self) -> str:
        """Everything about the codec that decides the bytes of its streams; empty for the originals."""
        return "" if self.codec is None else json.dumps([self.codec.fingerprint, self.seed])


@dataclass(frozen=True)
class ImageBlock:
    """Consecutive images of a dataset that are computed and stored together. Blocks do not depend on the number of workers.

    Attributes:
        dataset: name of the dataset in the experiment.
        number: position of the block in the dataset, from 0.
        ids: the image ids.
    """

    dataset: str
    number: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """Facts about the source pixels of a block, by image id.

    Attributes:
        sha256: `pixel_sha256` of each image; None if it could not be read.
        errors: why an image could not be read; only images that could not.
        shapes: height and width in pixels.
    """

    sha256: dict[str, str | None]
    errors: dict[str, str]
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)


def refuse_shared_names(noun: str, names: Iterable[str]) -> None:
    """Refuse names that would share a folder, before anything is computed into it.

    Two names share one only if `safe_name` replaces characters or shortens them. They are refused instead of being told apart by a
    digest, so that a name has the same folder in every run, whatever stands beside it.

    Args:
        noun: what the names stand for, such as "codecs".
        names: the names, all different.

    Raises:
        UserError: two names have one `safe_name`.
    """
    owners: dict[str, str] = {}
    for name in names:
        other = owners.setdefault(safe_name(name), name)
        if other != name:
            raise UserError(
                f"{noun}: {_quote(other)} and {_quote(name)} would share the folder {safe_name(name)!r}; give them names "
                "that differ in letters a to z or digits within their first 80 characters"
            )


def _quote(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:50]}...{name[-50:]}")


def pixel_sha256(image: Image) -> str:
    """SHA-256 of an image's shape and pixels, in hexadecimal.

    Args:
        image: uint8 array [height, width, 3].
    """
    value = hashlib.sha256(np.array(image.shape, "<u4").tobytes())
    value.update(np.ascontiguousarray(image).data)
    return value.hexdigest()


def digest(facts: Any) -> str:
    """A short key of facts that JSON can hold: the first 80 bits of their SHA-256, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def stream_name(block: ImageBlock, sources: Sources, series: Series) -> str:
    """File name of a stream shard. Its key holds the source pixels and everything that decides the bytes."""
    key = digest([list(block.ids), [sources.sha256[i] for i in block.ids], series.fingerprint])
    return f"streams/{safe_name(block.dataset)}/{series.folder}/{block.number:05d}-{key}.parquet"


def picture_name(stream_file: str, image_id: str) -> str:
    """File name of a kept reconstruction.

    Args:
        stream_file: name of the shard that holds the image's stream.
        image_id: the image.
    """
    folder = stream_file.removeprefix("streams/").removesuffix(".parquet")
    return f"reconstructions/{folder}/{quote(image_id, safe='')[-200:]}.png"


def prediction_name(
    block: ImageBlock, ids: Sequence[str], sources: Sources, series: Series, label: str, task: Task, pixels: Sequence[str | None]
) -> str:
    """File name of a prediction shard. Its key holds the pixels that the task model sees and the task's fingerprint.

    Args:
        block: the block.
        ids: the images of the block that the task scores.
        sources: facts about the block's source pixels.
        series: whose reconstructions are predicted on.
        label: the task's label.
        task: the task.
        pixels: SHA-256 of the reconstruction of each image in `ids`; None for an image that could not be coded.
    """
    originals = [sources.sha256[i] for i in ids] if task.needs_originals else None
    key = digest([list(ids), list(pixels), originals, task.fingerprint])
    return f"predictions/{safe_name(block.dataset)}/{safe_name(label)}/{series.folder}/{block.number:05d}-{key}.parquet"


def cell_name(block: ImageBlock, series: Series) -> str:
    """A series over a block, as messages name it."""
    return f"{block.dataset} / {series.name} / block {block.number}"
