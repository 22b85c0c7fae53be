"""The store: everything that was computed, found by content. It lies in the run folder, or is shared by many runs.

streams/<fingerprint>/       streams, and the hashes of their reconstructions: one row per image; where a codec estimates its
                             rate, bits and hash without a stream, in shards of format 3
predictions/<fingerprint>/   predictions of a task model: one row per image
claims/<fingerprint>/        which pixels are in force, for decoders that are not deterministic
contexts/                    what tasks compute once per model
reconstructions/             kept pictures, by the hash of their pixels
leases/                      which runs use the store
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image as Pillow

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.claims import Claims
from icmbench.harness.store.collection import Collection
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.formats import ESTIMATED_FORMAT, FORMAT
from icmbench.harness.store.keys import digest, pixel_sha256
from icmbench.tasks.base import Image

# Columns of a stream, after the key.
STREAM = pa.schema(
    [
        ("source", pa.string()),  # SHA-256 of the source pixels.
        ("facts", pa.string()),  # Digest of what the codec takes from files by the image's id; empty for most codecs.
        ("stream", pa.string()),  # SHA-256 of `data`.
        ("data", pa.large_binary()),
        ("bytes", pa.int64()),  # Counted size: the length of `data`, or what the codec's `stream_bytes` says.
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("parts", pa.string()),  # JSON object {part: bits}; null if the codec has no `rate_breakdown`.
        ("encode_seconds", pa.float64()),
        ("decode_seconds", pa.float64()),
        ("sha256", pa.string()),  # SHA-256 of the reconstruction.
        ("machine", pa.string()),  # What the seconds were measured on: a digest of hardware and versions.
    ]
)
# Columns of a reconstruction whose codec estimates its rate, after the key: no stream, and nothing that could be decoded.
ESTIMATE = pa.schema(
    [
        ("source", pa.string()),  # As of a stream.
        ("facts", pa.string()),  # As of a stream.
        ("bits", pa.float64()),  # What the codec estimated, not rounded.
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("seconds", pa.float64()),  # Time of coding and decoding, which are one call.
        ("sha256", pa.string()),  # SHA-256 of the reconstruction.
        ("machine", pa.string()),  # As of a stream.
    ]
)
STREAM_FACTS = ["bytes", "height", "width", "parts", "encode_seconds", "decode_seconds", "sha256", "machine"]
ESTIMATE_FACTS = ["bits", "height", "width", "seconds", "sha256", "machine"]

# First columns of a prediction, after the key; the columns of the task's own schema follow.
PREDICTION = [
    ("pixels", pa.string()),  # SHA-256 of the pixels that the model saw.
    ("original", pa.string()),  # SHA-256 of the original, where the task compares with it.
    ("facts", pa.string()),  # Digest of what the task takes from files by the image's id.
    ("seconds", pa.float64()),
    ("machine", pa.string()),
]
PREDICTION_FACTS = ["seconds"]


class Store:
    """What has been computed, found by content. Picklable, because it can be read again from its address.

    Args:
        root: path of the store or its URL on a file system that fsspec can use.

    Attributes:
        folder: its files.
    """

    def __init__(self, root: str | Path) -> None:
        self.folder = Folder(root)
        self._streams: dict[str, Collection] = {}
        self._predictions: dict[str, Collection] = {}
        self._claims: dict[str, Claims] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.folder.root,)

    def streams(self, fingerprint: str, about: Mapping[str, Any] | None = None, estimated: bool = False) -> Collection:
        """Streams of one codec point and seed.

        Args:
            fingerprint: the codec's fingerprint with its seed.
            about: name and point of the codec, for people who look into the store.
            estimated: whether the codec estimates its rate, so that rows are those of `ESTIMATE`, without a stream.
        """
        if fingerprint not in self._streams:
            schema, facts = (ESTIMATE, ESTIMATE_FACTS) if estimated else (STREAM, STREAM_FACTS)
            number = ESTIMATED_FORMAT if estimated else FORMAT
            self._streams[fingerprint] = Collection(self.folder, "streams", fingerprint, schema, facts, about, number)
        return self._streams[fingerprint]

    def predictions(self, fingerprint: str, schema: pa.Schema, about: Mapping[str, Any] | None = None) -> Collection:
        """Predictions of one task with one model.

        Args:
            fingerprint: the task's fingerprint.
            schema: columns of a prediction, as `Task.schema`.
            about: name of the task, for people who look into the store.
        """
        if fingerprint not in self._predictions:
            columns = pa.schema([*PREDICTION, *schema])
            self._predictions[fingerprint] = Collection(self.folder, "predictions", fingerprint, columns, PREDICTION_FACTS, about)
        return self._predictions[fingerprint]

    def claims(self, fingerprint: str) -> Claims:
        """Claimed realisations of a codec whose decoder is not deterministic."""
        if fingerprint not in self._claims:
            self._claims[fingerprint] = Claims(self.folder, fingerprint)
        return self._claims[fingerprint]

    # Kept pictures.

    def has_picture(self, sha256: str) -> bool:
        """Whether the picture with these pixels is kept; it may be damaged."""
        return self.folder.exists(_picture_name(sha256))

    def load_picture(self, sha256: str) -> Image | None:
        """The kept picture with these pixels, uint8 (height, width, 3); None if there is none, or if it is damaged."""
        try:
            data = self.folder.read(_picture_name(sha256))
            with Pillow.open(io.BytesIO(data), formats=["PNG"]) as picture:
                image = np.asarray(picture)
        except Exception:  # Pillow raises a dozen types on damaged files, and a damaged picture counts as absent.
            return None
        return image if pixel_sha256(image) == sha256 else None

    def keep_picture(self, sha256: str, image: Image) -> None:
        """Store pixels without loss, uint8 (height, width, 3)."""
        buffer = io.BytesIO()
        Pillow.fromarray(image).save(buffer, "PNG", compress_level=1)
        self.folder.write(_picture_name(sha256), buffer.getvalue())

    # Contexts of tasks.

    def has_context(self, fingerprint: str) -> bool:
        """Whether the context of a task is stored; it may be damaged."""
        return self.folder.exists(_context_name(fingerprint))

    def context(self, fingerprint: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, npt.NDArray[Any]]:
        """The stored context of a task, or a new one, which is stored first.

        Args:
            fingerprint: what decides the context.
            compute: makes it; called only if it is not stored.

        Raises:
            UserError: the stored file is damaged.
        """
        name = _context_name(fingerprint)
        if not self.folder.exists(name):
            # If another process was first, its context stands.
            self.folder.write(name, context_bytes(fingerprint, compute()), replace=False)
        data = self.folder.read(name)
        try:
            stored, arrays = parse_context(data)
            if stored != fingerprint:
                raise ValueError("it is that of another task or model")
        except Exception as error:  # Whatever zipfile and numpy raise, the file is at fault.
            cause = " ".join(str(error).split()).split(". ")[0].replace("allow_pickle=False", "icmbench")
            path = self.folder.full_path(name)
            raise UserError(f"{path} is damaged ({cause}): delete it and run the same command again") from error
        return arrays


def context_bytes(fingerprint: str, context: Mapping[str, Any]) -> bytes:
    """The content of a context's file: SHA-256 of what follows, length of the fingerprint, fingerprint, arrays as .npz.

    Args:
        fingerprint: what decides the context.
        context: arrays by name.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **dict(context))
    text = fingerprint.encode()
    content = len(text).to_bytes(4, "little") + text + buffer.getvalue()
    return hashlib.sha256(content).digest() + content


def parse_context(data: bytes) -> tuple[str, dict[str, npt.NDArray[Any]]]:
    """Fingerprint and arrays of a context's file.

    Args:
        data: the content of the file.

    Raises:
        ValueError: the bytes are not those that were written.
        Exception: whatever numpy raises on arrays that it cannot read.
    """
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        raise ValueError("its bytes are not those that were written")
    end = 36 + int.from_bytes(data[32:36], "little")
    with np.load(io.BytesIO(data[end:]), allow_pickle=False) as arrays:
        return data[36:end].decode(), {key: arrays[key] for key in arrays.files}


def _context_name(fingerprint: str) -> str:
    return f"contexts/{digest(fingerprint)}.npz"


def _picture_name(sha256: str) -> str:
    return f"reconstructions/{sha256[:2]}/{sha256}.png"
