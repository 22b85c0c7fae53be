"""Where the streams of a cell come from: the store, otherwise an anchor pack, otherwise the codec."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from icmbench.codecs.base import CodecError
from icmbench.harness.work.attempt import attempt
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import Sources
from icmbench.harness.work.series import Series
from icmbench.harness.work.todo import Todo
from icmbench.tasks.base import Image


@dataclass(frozen=True)
class Stream:
    """The stream of one image.

    Attributes:
        data: its bytes.
        encode_seconds: how long encoding took, where and when it was done.
    """

    data: bytes
    encode_seconds: float


class StreamSource:
    """Finds or makes the streams of one cell, and knows which pixels those that were made before decode to.

    Args:
        bench: the experiment and its store.
        series: the codec at its point and seed.
        sources: facts about the source pixels.
        todo: what the cell lacks.
    """

    def __init__(self, bench: Bench, series: Series, sources: Sources, todo: Todo) -> None:
        self._bench, self._series = bench, series
        streams = todo.streams
        self._stored_rows = {i: row for i, row in zip(streams.ids, streams.rows, strict=True) if row >= 0}
        self._stored_pixels = dict(zip(streams.ids, streams.pixels, strict=True))
        self._pack = bench.packs.get(series.label)
        unstored = {i: sources.sha256[i] for i in todo.pixels if i not in self._stored_rows}
        self._packed = self._pack.rows(series.point, series.seed, unstored) if self._pack else {}

    def streams(self, ids: Sequence[str], originals: Mapping[str, Image]) -> dict[str, Stream | Exception]:
        """Streams of images in the given order; an exception for an image that failed, if the experiment tolerates failures.

        Args:
            ids: the images.
            originals: source pixels of at least these images, uint8 (height, width, 3).

        Raises:
            CodecError: a stored stream was altered, or the codec broke its contract and the experiment tolerates no failures.
        """
        streams: dict[str, Stream | Exception] = {**self._load([i for i in ids if self.has_stored(i)])}
        for image_id in ids:
            if image_id in self._packed:
                assert self._pack is not None
                row = self._packed[image_id]
                streams[image_id] = Stream(self._pack.data(row), row.encode_seconds)
        streams |= self._encode([i for i in ids if i not in streams], originals)
        return {image_id: streams[image_id] for image_id in ids}

    def has_stored(self, image_id: str) -> bool:
        """Whether the store has the stream of an image, or where the codec estimates its rate, the bits and hash of pixels."""
        return image_id in self._stored_rows

    def check_pixels(self, image_id: str, sha256: str) -> None:
        """Compare a reconstruction with the one that was had before; where the codec may give others, nothing is compared.

        Args:
            image_id: the image.
            sha256: hash of the reconstruction.

        Raises:
            CodecError: a deterministic codec decoded a stored or packed stream to different pixels, or reconstructed an image to
                other pixels than those whose bits are recorded.
        """
        if not self._series.deterministic:
            return
        if self.has_stored(image_id) and sha256 != self._stored_pixels[image_id]:
            action = f"reconstructing {image_id!r}" if self._series.estimated else f"decoding the stored stream of {image_id!r}"
            raise CodecError(f"{action} again gave other pixels: codec {self._series.label!r} must say `deterministic = False`")
        if self._pack and image_id in self._packed and sha256 != self._packed[image_id].pixels:
            raise CodecError(
                f"the stream of {image_id!r} in {self._pack.path} decodes to other pixels here ({sha256[:12]}) than where it was "
                f"packed ({self._packed[image_id].pixels[:12]}): use the decoder that it was made with"
            )

    def _load(self, ids: Sequence[str]) -> dict[str, Stream]:
        if not ids:
            return {}
        collection = self._bench.lookup.collection(self._series)
        table = collection.read(np.array([self._stored_rows[i] for i in ids]), ["stream", "data", "encode_seconds"])
        streams = {}
        for image_id, recorded, data, seconds in zip(ids, *(column.to_pylist() for column in table.columns), strict=True):
            if hashlib.sha256(data).hexdigest() != recorded:
                place = collection.folder.full_path(collection.place)
                raise CodecError(f"the stored stream of {image_id!r} was altered: delete its shard in {place}")
            streams[image_id] = Stream(data, seconds)
        return streams

    def _encode(self, ids: Sequence[str], originals: Mapping[str, Image]) -> dict[str, Stream | Exception]:
        if not ids:
            return {}

        def encode(indices: Sequence[int]) -> Sequence[bytes]:
            batch = [ids[k] for k in indices]
            return self._series.encode([originals[i] for i in batch], batch)

        start = time.perf_counter()
        results = attempt(encode, range(len(ids)), self._bench.tolerant, "codec")
        mean_seconds = (time.perf_counter() - start) / len(ids)
        return {ids[k]: result if isinstance(result, Exception) else Stream(result, mean_seconds) for k, result in results.items()}
