"""One cell: a series (a codec at a point and seed) over a block of images, shown to every task that lacks it."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image as Pillow

from icmbench.codecs.base import CodecError, compress_all, decompress_all
from icmbench.harness.config.errors import UserError
from icmbench.harness.store.shards import (
    PREDICTION,
    STREAMS,
    ImageBlock,
    Series,
    Sources,
    cell_name,
    picture_name,
    pixel_sha256,
    prediction_name,
    stream_name,
)
from icmbench.harness.store.store import from_table, to_table
from icmbench.harness.work.attempt import attempt, reason
from icmbench.harness.work.bench import Bench, read_only
from icmbench.tasks.base import Image

Rows = dict[str, dict[str, Any]]  # by image id


@dataclass(frozen=True)
class Failure:
    """A cell, or one task or image of it, that could not be computed, and why in one sentence."""

    cell: str
    reason: str


@dataclass
class Outcome:
    """What a unit of work came to."""

    failures: list[Failure] = field(default_factory=list)
    codec_images: int = 0  # compressed or decompressed
    model_images: int = 0  # shown to a task
    renewed: list[str] = field(default_factory=list)  # cells whose realisation was replaced by another
    exhausted: bool = False  # memory ran out where no batch could be halved any more

    def add(self, other: Outcome) -> None:
        self.failures += other.failures
        self.codec_images += other.codec_images
        self.model_images += other.model_images
        self.renewed += other.renewed
        self.exhausted |= other.exhausted


class Cell:
    """Opened, it knows what is missing. `reconstruct` and `show` are called for each chunk of the block, then `write`."""

    def __init__(self, bench: Bench, block: ImageBlock, series: Series, sources: Sources, keep: bool) -> None:
        self.bench, self.block, self.series, self.sources, self.keep = bench, block, series, sources, keep
        self.name = cell_name(block, series)
        self.tolerant = bench.experiment.fail_on_error is not True
        self.tasks = self._tasks()
        self.streams: Rows = {}
        self.predictions: dict[str, Rows] = {label: {} for label in self.tasks}
        self.stream_file = stream_name(block, sources, series)
        self.stored = self._stored()
        self.pack = bench.packs.get(series.label)
        self.packed = self.pack.rows(series, sources) if self.pack and not self.stored else {}
        self.todo = self._missing()
        self.renew = series.codec is not None and not self.stored and bool(self.tasks)  # the stream shard is to be written
        self.again = False  # a realisation that is there is to be replaced
        if self.stored and (self.todo or not self.done) and not series.deterministic and not self._whole():
            # Decoding again gives another realisation: every task must see the same one.
            self.todo, self.renew, self.again = set(self.tasks), True, True

    @property
    def done(self) -> bool:
        return not self.todo and not self.renew and (not self.keep or self._kept())

    def _tasks(self) -> dict[str, list[str]]:
        """Tasks of this dataset with the block's images that they score."""
        wanted = {label: self.bench.scored(label, self.block) for label in self.bench.task_labels(self.block.dataset)}
        original = self.series.codec is None
        return {label: ids for label, ids in wanted.items() if ids and not (original and self.bench.tasks[label].needs_originals)}

    def _stored(self) -> Rows:
        if self.series.codec is None or not self.bench.store.exists(self.stream_file):
            return {}
        rows = self._read(self.stream_file, STREAMS.names)
        return {} if not self.tolerant and any(row["error"] for row in rows.values()) else rows

    def _read(self, name: str, columns: Sequence[str]) -> Rows:
        return {row["id"]: row for row in from_table(self.bench.store.read_table(name, columns), columns)}

    def _file(self, label: str) -> str:
        known = self.streams or self.stored
        ids = self.tasks[label]
        pixels = [self.sources.sha256[i] if self.series.codec is None else known[i]["sha256"] for i in ids]
        return prediction_name(self.block, ids, self.sources, self.series, label, self.bench.tasks[label], pixels)

    def _missing(self) -> set[str]:
        if self.series.codec is not None and not self.stored:
            return set(self.tasks)
        return {label for label in self.tasks if not self._predicted(self._file(label))}

    def _predicted(self, name: str) -> bool:
        if not self.bench.store.exists(name):
            return False
        return self.tolerant or not any(row["error"] for row in self._read(name, ["id", "error"]).values())

    # --- kept reconstructions

    def _kept(self) -> bool:
        return all(row["error"] or self.bench.store.exists(picture_name(self.stream_file, i)) for i, row in self.stored.items())

    def _whole(self) -> bool:
        """Whether every picture is there and holds the recorded pixels."""
        return all(row["error"] or self._load_kept(i) is not None for i, row in self.stored.items())

    def _load_kept(self, image_id: str) -> Image | None:
        name = picture_name(self.stream_file, image_id)
        if not self.stored or not self.bench.store.exists(name):
            return None
        try:
            with Pillow.open(io.BytesIO(self.bench.store.read(name)), formats=["PNG"]) as picture:
                image = read_only(np.asarray(picture))
        except Exception:  # Pillow raises a dozen types on bad files
            return None  # damaged: as good as absent
        return image if pixel_sha256(image) == self.stored[image_id]["sha256"] else None

    def _save_kept(self, image_id: str, image: Image) -> None:
        buffer = io.BytesIO()
        Pillow.fromarray(image).save(buffer, "PNG", compress_level=1)
        self.bench.store.write(picture_name(self.stream_file, image_id), buffer.getvalue())

    # --- work

    @property
    def background(self) -> bool:
        """Whether `reconstruct` may run beside the task models."""
        return self.series.codec is None or bool(getattr(self.series.codec, "background", False))

    def show(self, images: Mapping[str, Image], originals: Mapping[str, Image], outcome: Outcome) -> None:
        """One chunk to every task that is missing."""
        for label in sorted(self.todo):
            scored = set(self.tasks[label])
            mine = {image_id: image for image_id, image in images.items() if image_id in scored}
            if not mine:
                continue
            try:
                self._predict(label, mine, originals, outcome)
            except Exception as error:
                outcome.exhausted |= isinstance(error, MemoryError)
                self.todo.discard(label)
                outcome.failures.append(Failure(f"{self.name} / {label}", reason(error)))

    def _predict(self, label: str, images: Mapping[str, Image], originals: Mapping[str, Image], outcome: Outcome) -> None:
        task = self.bench.tasks[label]
        self.bench.prepare(label)
        ids = list(images)

        def call(indices: Sequence[int]) -> Sequence[Any]:
            some = [ids[k] for k in indices]
            shown = [originals[i] for i in some] if task.needs_originals else None
            return task.predict([images[i] for i in some], some, shown)

        start = time.perf_counter()
        results = attempt(call, range(len(ids)), self.tolerant)
        seconds = (time.perf_counter() - start) / len(ids)
        outcome.model_images += len(ids)
        for k, prediction in results.items():
            self.predictions[label][ids[k]] = (
                self._failed(f"{self.name} / {label}", ids[k], prediction, outcome)
                if isinstance(prediction, Exception)
                else {**prediction, "error": None}
            ) | {"id": ids[k], "seconds": seconds}

    def _failed(self, where: str, image_id: str, error: Exception, outcome: Outcome) -> dict[str, Any]:
        outcome.failures.append(Failure(f"{where} / {image_id}", reason(error)))
        return {"error": reason(error)}

    def reconstruct(self, originals: Mapping[str, Image], outcome: Outcome) -> Mapping[str, Image]:
        """Decoded pixels of those images of a chunk that could be coded; every image gets its stream row."""
        if self.series.codec is None:
            return originals
        kept = {i: picture for i in originals if (picture := self._load_kept(i)) is not None}
        self.streams.update({i: self.stored[i] for i in kept})
        images: dict[str, Image] = {}
        todo = [i for i in originals if i not in kept]
        data, encode_seconds = self._encoded(todo, originals, outcome)
        codable = [i for i in todo if i in data]

        def decode(indices: Sequence[int]) -> Sequence[Image]:
            some = [codable[k] for k in indices]
            decoded = decompress_all(self.series.codec, [data[i] for i in some])  # type: ignore[arg-type]
            for image_id, image in zip(some, decoded, strict=False):
                _check_pixels(image_id, image, originals[image_id])
            return [read_only(image) for image in decoded]

        start = time.perf_counter()
        decoded = attempt(decode, range(len(codable)), self.tolerant) if codable else {}
        decode_seconds = (time.perf_counter() - start) / max(1, len(codable))
        outcome.codec_images += len(codable)
        for k, result in decoded.items():
            image_id = codable[k]
            if isinstance(result, Exception):
                self._record(image_id, originals, self._failed(self.name, image_id, result, outcome))
                continue
            image = result
            times = {"encode_seconds": encode_seconds[image_id], "decode_seconds": decode_seconds}
            self._record(image_id, originals, self._measure(data[image_id]) | times | {"sha256": self._hash(image_id, image)})
            images[image_id] = image
            if self.keep:
                self._save_kept(image_id, image)
        return {i: kept[i] if i in kept else images[i] for i in originals if i in kept or i in images}

    def _encoded(
        self, ids: Sequence[str], originals: Mapping[str, Image], outcome: Outcome
    ) -> tuple[dict[str, bytes], dict[str, float]]:
        """Streams and seconds an image: stored ones, those of a pack, or new ones."""
        if self.stored:
            good = {i: self.stored[i] for i in ids if not self.stored[i]["error"]}
            self.streams.update({i: self.stored[i] for i in ids if i not in good})
            return {i: row["data"] for i, row in good.items()}, {i: row["encode_seconds"] for i, row in good.items()}

        packed = {i: self.packed[i] for i in ids if i in self.packed}
        ids = [i for i in ids if i not in packed]

        def encode(indices: Sequence[int]) -> Sequence[bytes]:
            some = [ids[k] for k in indices]
            streams = compress_all(self.series.codec, [originals[i] for i in some], some)  # type: ignore[arg-type]
            for image_id, data in zip(some, streams, strict=False):
                if not isinstance(data, bytes) or not data:
                    what = "no bytes" if isinstance(data, bytes) else type(data).__name__
                    raise CodecError(f"compress gave {what} for {image_id!r}; a stream is bytes, at least one")
            return streams

        start = time.perf_counter()
        results = attempt(encode, range(len(ids)), self.tolerant) if ids else {}
        seconds = (time.perf_counter() - start) / max(1, len(ids))
        streams = {i: self.pack.data(row) for i, row in packed.items()} if self.pack else {}
        times = {i: row.encode_seconds for i, row in packed.items()}
        for k, data in results.items():
            if isinstance(data, Exception):
                self._record(ids[k], originals, self._failed(self.name, ids[k], data, outcome))
            else:
                streams[ids[k]], times[ids[k]] = data, seconds
        return streams, times

    def _hash(self, image_id: str, image: Image) -> str:
        """Of a reconstruction. CodecError where a deterministic decoder gave other pixels for the same stream before."""
        sha256 = pixel_sha256(image)
        if not self.series.deterministic:
            return sha256
        if self.stored and sha256 != self.stored[image_id]["sha256"]:
            raise CodecError(
                f"decoding the stored stream of {image_id!r} again gave other pixels: "
                f"codec {self.series.label!r} must say `deterministic = False`"
            )
        if self.pack and image_id in self.packed and sha256 != self.packed[image_id].pixels:
            raise CodecError(
                f"the stream of {image_id!r} in {self.pack.path} decodes to other pixels here ({sha256[:12]}) than where it was "
                f"packed ({self.packed[image_id].pixels[:12]}): use the decoder that it was made with"
            )
        return sha256

    def _record(self, image_id: str, originals: Mapping[str, Image], facts: Mapping[str, Any]) -> None:
        height, width = originals[image_id].shape[:2]
        self.streams[image_id] = {**dict.fromkeys(STREAMS.names), "id": image_id, "height": height, "width": width, **facts}

    def _measure(self, data: bytes) -> dict[str, Any]:
        codec: Any = self.series.codec
        size = int(codec.stream_bytes(data)) if hasattr(codec, "stream_bytes") else len(data)
        parts = {part: int(bits) for part, bits in codec.rate_breakdown(data).items()} if hasattr(codec, "rate_breakdown") else None
        if parts is not None and sum(parts.values()) != 8 * size:
            raise CodecError(f"rate_breakdown sums to {sum(parts.values())} bits of a stream of {8 * size}")
        return {"data": data, "bytes": size, "parts": None if parts is None else json.dumps(parts)}

    def write(self) -> None:
        """Streams first: they are what took longest, and predictions are keyed by what they decoded to."""
        store = self.bench.store
        for image_id in self.block.ids:
            if image_id in self.sources.errors and self.series.codec is not None:
                self.streams[image_id] = {**dict.fromkeys(STREAMS.names), "id": image_id, "error": self.sources.errors[image_id]}
        if self.renew:
            table = to_table([self.streams[i] for i in self.block.ids], STREAMS)
            first = not store.exists(self.stream_file)
            if not store.write_table(self.stream_file, table, replace=not first):
                self._adopt_winner()
        for label in sorted(self.todo):
            task, rows = self.bench.tasks[label], self.predictions[label]
            schema = pa.schema([*PREDICTION, *task.schema])
            empty = dict.fromkeys(schema.names)
            for image_id in self.tasks[label]:
                if image_id not in rows:  # its picture could not be read or coded
                    rows[image_id] = {"id": image_id, "error": "no pixels"}
            store.write_table(self._file(label), to_table([empty | rows[i] for i in self.tasks[label]], schema))

    def _adopt_winner(self) -> None:
        """Another run was first. The same pixels: its shard serves both. Others: its realisation stands, and mine is void."""
        winner = self._read(self.stream_file, ["id", "sha256"])
        if any(winner[i]["sha256"] != self.streams[i]["sha256"] for i in self.block.ids):
            raise UserError(f"{self.name}: another run wrote its realisation first; run the same command again")


def _check_pixels(image_id: str, image: Any, original: Image) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != original.shape:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise CodecError(f"the reconstruction of {image_id!r} is {got}, not uint8 {original.shape}")


def failures_of(cells: Iterable[str], error: Exception) -> list[Failure]:
    return [Failure(cell, reason(error)) for cell in cells]
