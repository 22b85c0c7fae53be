"""The codec contract: pixels to bytes and back.

    image --compress--> bytes --decompress--> image

An image is a `uint8` RGB array of shape (height, width, 3). Decoding needs the bytes and the codec, nothing else.
A codec is found by the entry point group `icmbench.codecs`; its class is called as `Class(point, **options)`, where `point`
is one entry of `points:` in the experiment file (a number, a string or a mapping) and `options` is its `set:`.
The first line of the class docstring describes it in `icmbench list codecs`. Class attributes that are read if present:

    default_points   rate points used where the experiment names none
    weights          one line: the weights it needs, where they come from, their licence
    extra            the optional dependency group that installs what it imports, e.g. "avif"
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Image: TypeAlias = npt.NDArray[np.uint8]


class CodecError(RuntimeError):
    """An encoder could not do its work: a missing binary, a bad option, a failing or hanging process."""


class BitstreamError(ValueError):
    """The bytes are not a whole stream of this codec: foreign, empty, truncated or altered."""


DECODE_ONLY = "{name}: made to decode the streams of a pack, which holds none of this image: its encoder is not here"


@dataclass(frozen=True)
class RatePoint:
    """One point of a rate curve: a label unique within the codec, a sort key, and its parameters as JSON values."""

    label: str
    order: float
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, value: float) -> RatePoint:
        """The usual case, one number: `RatePoint.of("quality", 20)` has the label `quality=20`."""
        return cls(f"{name}={value:g}", float(value), {name: value})


class Codec(Protocol):
    """What the harness calls. Optional members are looked up by name and may be left out."""

    name: str
    point: RatePoint
    fingerprint: str  # everything that decides the bytes, as made by `fingerprint()`

    def compress(self, image: Image) -> bytes: ...

    def decompress(self, data: bytes) -> Image:
        """Raises BitstreamError, never anything else, on bad bytes."""

    # optional:
    # deterministic: bool = True                      False: decoding twice may give different pixels
    # background: bool = False                        True: uses one thread and no global state: runs beside the task models
    # compress_batch(images, ids) -> list[bytes]      ids: for codecs whose streams were made elsewhere
    # decompress_batch(list[bytes]) -> list[Image]
    # rate_breakdown(data) -> {part: bits}            parts sum to the stream; "header" is left out of payload_bpp
    # stream_bytes(data) -> int                       only where the size was measured elsewhere; else len(data)
    # __init__(..., decode_only=False)                True: what only encoding needs may be absent, `compress` raises CodecError,
    #                                                 and the fingerprint is left to the harness, which has it from an anchor pack


def compress_all(codec: Codec, images: Sequence[Image], ids: Sequence[str]) -> list[bytes]:
    """Streams of a batch of images, by the codec's own batch method where it has one."""
    batch = getattr(codec, "compress_batch", None)
    return list(batch(images, ids)) if batch else [codec.compress(image) for image in images]


def decompress_all(codec: Codec, streams: Sequence[bytes]) -> list[Image]:
    """Reconstructions of a batch of streams, by the codec's own batch method where it has one."""
    batch = getattr(codec, "decompress_batch", None)
    return list(batch(streams)) if batch else [codec.decompress(data) for data in streams]


def fingerprint(**facts: Any) -> str:
    """Canonical JSON of everything that decides the bytes: parameters, weight hashes, library versions.

    Kept readable, so that two runs can be compared fact by fact; include a `version` bumped by hand when bytes change.
    """
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a weight file or binary, remembered for this process while path, size and mtime stay the same."""
    stat = Path(path).stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
