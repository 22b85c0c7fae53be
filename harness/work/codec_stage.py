"""The codec's part of a cell: source pixels -> reconstruction, by a stream or with estimated bits, and the rows of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icmbench.harness.store.keys import pixel_sha256
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import Sources
from icmbench.harness.work.coded import Coded, decode_streams, estimate
from icmbench.harness.work.failures import failure_key
from icmbench.harness.work.outcome import Failure, Outcome
from icmbench.harness.work.pixels import read_only
from icmbench.harness.work.series import Series
from icmbench.harness.work.stream_source import Stream, StreamSource
from icmbench.harness.work.todo import Todo
from icmbench.tasks.base import Image


@dataclass(frozen=True)
class CodedRows:
    """What a codec stage has to store.

    Attributes:
        rows: rows of streams, by image id.
        failed: why images could not be coded, by failure key.
    """

    rows: Mapping[str, dict[str, Any]]
    failed: Mapping[bytes, str]


class CodecStage:
    """Codes and decodes the images of one cell.

    Args:
        bench: the experiment and its store.
        name: the cell, as messages name it.
        series: the codec at its point and seed.
        sources: facts about the source pixels.
        todo: what the cell lacks.
    """

    def __init__(self, bench: Bench, name: str, series: Series, sources: Sources, todo: Todo) -> None:
        self.bench, self.name, self.series, self.sources, self.todo = bench, name, series, sources, todo
        self._source = StreamSource(bench, series, sources, todo)
        self._pixels_of = dict(zip(todo.streams.ids, todo.streams.pixels, strict=True))
        self._new_rows: dict[str, dict[str, Any]] = {}
        self._failed: dict[bytes, str] = {}

    def reconstruct(self, originals: Mapping[str, Image], outcome: Outcome) -> dict[str, Image]:
        """Code and decode some images, except for those whose kept reconstruction is still intact.

        Args:
            originals: source pixels by image id, uint8 (height, width, 3).
            outcome: receives failures and counts.

        Returns:
            Reconstructions by image id, uint8 (height, width, 3); images that could not be coded are left out.

        Raises:
            CodecError: the codec broke its contract, and the experiment tolerates no failures.
        """
        images = {i: kept for i in originals if (kept := self._load_kept(i)) is not None}
        missing = [i for i in originals if i not in images]
        if self.series.estimated:
            coded = estimate(self.series, missing, originals, self.bench.tolerant)
        else:
            coded = decode_streams(self.series, self._streams(missing, originals, outcome), originals, self.bench.tolerant)
        outcome.codec_images += len(coded)
        for image_id, result in coded.items():
            if isinstance(result, Exception):
                self._record_failure(image_id, result, outcome)
                continue
            self._add_row(image_id, result)
            images[image_id] = result.image
            if image_id in self.todo.keep:
                self.bench.store.keep_picture(self.pixels_of(image_id), result.image)
        return {i: images[i] for i in originals if i in images}

    def _streams(self, ids: Sequence[str], originals: Mapping[str, Image], outcome: Outcome) -> dict[str, Stream]:
        """Streams of those images that have or get one."""
        streams = {}
        for image_id, stream in self._source.streams(ids, originals).items():
            if isinstance(stream, Exception):
                self._record_failure(image_id, stream, outcome)
            else:
                streams[image_id] = stream
        return streams

    def pixels_of(self, image_id: str) -> str:
        """SHA-256 of the reconstruction of an image that was reconstructed."""
        sha256 = self._pixels_of[image_id]
        assert sha256 is not None
        return sha256

    def take(self) -> CodedRows:
        """The rows and failures since the last call, to be written by `write`."""
        rows, self._new_rows = self._new_rows, {}
        failed, self._failed = self._failed, {}
        return CodedRows(rows, failed)

    def write(self, coded: CodedRows) -> frozenset[str]:
        """Store rows and, if decoding is not deterministic, claim their pixels.

        Returns:
            Images whose pixels another process claimed first, so that what is predicted on them counts for nothing.

        Raises:
            UserError: the store cannot be written.
        """
        self.bench.failures.record(coded.failed)
        if not coded.rows:
            return frozenset()
        self.bench.lookup.collection(self.series).append(list(coded.rows.values()))
        if self.series.deterministic:
            return frozenset()
        claims = self.bench.store.claims(self.series.fingerprint)
        last = self.todo.streams.last_generation
        return frozenset(
            image_id
            for image_id, row in coded.rows.items()
            if claims.claim(row["key"], last.get(image_id, -1) + 1, row["sha256"]) != row["sha256"]
        )

    def _load_kept(self, image_id: str) -> Image | None:
        sha256 = self._pixels_of[image_id]
        image = None if sha256 is None else self.bench.store.load_picture(sha256)
        return None if image is None else read_only(image)

    def _add_row(self, image_id: str, coded: Coded) -> None:
        """Make the row of an image, if it is new or its pixels are.

        Raises:
            CodecError: a deterministic codec gave other pixels than before.
        """
        sha256 = pixel_sha256(coded.image)
        self._source.check_pixels(image_id, sha256)
        self._pixels_of[image_id] = sha256
        if self._source.has_stored(image_id) and self.series.deterministic:
            return
        self._new_rows[image_id] = {
            "key": self.todo.streams.keys[image_id],
            "source": self.sources.sha256[image_id],
            "facts": self.series.facts(image_id),
            "height": coded.image.shape[0],
            "width": coded.image.shape[1],
            "sha256": sha256,
            "machine": self.bench.machine,
            **coded.columns(),
        }

    def _record_failure(self, image_id: str, error: Exception, outcome: Outcome) -> None:
        outcome.failures.append(Failure(f"{self.name} / {image_id}", reason(error)))
        self._failed[failure_key(self.series.fingerprint, self.todo.streams.keys[image_id])] = reason(error)
