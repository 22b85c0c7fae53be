"""One cell: a series (a codec at a rate point and seed) over a block of images, and the tasks that lack predictions on them."""

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

Rows = dict[str, dict[str, Any]]  # Rows of a shard by image id.


@dataclass(frozen=True)
class Failure:
    """Something that could not be computed.

    Attributes:
        cell: name of the cell, followed by the task and the image if only these failed.
        reason: why, in one sentence.
    """

    cell: str
    reason: str


@dataclass
class Outcome:
    """What computing a unit of work came to; sums over several units are made with `add`.

    Attributes:
        failures: what could not be computed.
        codec_images: number of images that were compressed or decompressed.
        model_images: number of images that a task model predicted on, counted once per task.
        replaced: names of the cells whose stored realisation was replaced by another.
        out_of_memory: whether memory ran out on a single image, where no batch could be halved any more.
    """

    failures: list[Failure] = field(default_factory=list)
    codec_images: int = 0
    model_images: int = 0
    replaced: list[str] = field(default_factory=list)
    out_of_memory: bool = False

    def add(self, other: Outcome) -> None:
        """Add the failures and counts of another unit to these."""
        self.failures += other.failures
        self.codec_images += other.codec_images
        self.model_images += other.model_images
        self.replaced += other.replaced
        self.out_of_memory |= other.out_of_memory


class Cell:
    """Computes what the store lacks of one cell. The constructor reads the store to find out what that is.

    Call `reconstruct` and then `predict_chunk` for each chunk of the block, and `write` after the last one.

    Args:
        bench: the experiment's codecs, tasks and store.
        block: the images.
        series: the codec at its point and seed, or the originals.
        sources: hashes and shapes of the block's source pixels.
        keep: whether to store every reconstruction as a lossless picture.

    Attributes:
        name: the cell as messages name it.
        missing_tasks: labels of the tasks whose prediction shard is missing.
        writes_streams: whether the stream shard is missing or will be replaced.
        replaces_realisation: whether other pixels than those stored will be shown to every task.
    """

    def __init__(self, bench: Bench, block: ImageBlock, series: Series, sources: Sources, keep: bool) -> None:
        self.bench, self.block, self.series, self.sources, self.keep = bench, block, series, sources, keep
        self.name = cell_name(block, series)
        self.tolerant = bench.experiment.fail_on_error is not True
        self.scored_ids = self._scored_ids()
        self.new_rows: Rows = {}
        self.predictions: dict[str, Rows] = {label: {} for label in self.scored_ids}
        self.stream_file = stream_name(block, sources, series)
        self.stored_rows = self._read_stored_rows()
        self.pack = bench.packs.get(series.label)
        self.packed = self.pack.rows(series, sources) if self.pack and not self.stored_rows else {}
        self.missing_tasks = self._find_missing_tasks()
        self.writes_streams = series.codec is not None and not self.stored_rows and bool(self.scored_ids)
        self.replaces_realisation = False
        if self.stored_rows and not self.done and not series.deterministic and not self._all_pictures_intact():
            # Decoding again gives another realisation, and every task must see the same one.
            self.missing_tasks, self.writes_streams, self.replaces_realisation = set(self.scored_ids), True, True

    @property
    def done(self) -> bool:
        """Whether every file of this cell is stored, so that nothing is left to compute."""
        return not self.missing_tasks and not self.writes_streams and (not self.keep or self._all_pictures_stored())

    def _scored_ids(self) -> dict[str, list[str]]:
        """By label, the images of this block that each task scores; tasks that score none of them are left out."""
        labels = self.bench.task_labels(self.block.dataset)
        if self.series.codec is None:
            labels = [label for label in labels if not self.bench.tasks[label].needs_originals]
        return {label: ids for label in labels if (ids := self.bench.scored_ids(label, self.block))}

    def _read_stored_rows(self) -> Rows:
        """Rows of the stream shard; none if it is missing, or holds failures that the experiment does not tolerate."""
        if self.series.codec is None or not self.bench.store.exists(self.stream_file):
            return {}
        rows = self._read_rows(self.stream_file, STREAMS.names)
        return {} if not self.tolerant and any(row["error"] for row in rows.values()) else rows

    def _read_rows(self, name: str, columns: Sequence[str]) -> Rows:
        return {row["id"]: row for row in from_table(self.bench.store.read_table(name, columns), columns)}

    def _prediction_file(self, label: str) -> str:
        rows = self.new_rows or self.stored_rows
        ids = self.scored_ids[label]
        pixels = [self.sources.sha256[i] if self.series.codec is None else rows[i]["sha256"] for i in ids]
        return prediction_name(self.block, ids, self.sources, self.series, label, self.bench.tasks[label], pixels)

    def _find_missing_tasks(self) -> set[str]:
        if self.series.codec is not None and not self.stored_rows:
            return set(self.scored_ids)
        return {label for label in self.scored_ids if not self._has_predictions(self._prediction_file(label))}

    def _has_predictions(self, name: str) -> bool:
        if not self.bench.store.exists(name):
            return False
        return self.tolerant or not any(row["error"] for row in self._read_rows(name, ["id", "error"]).values())

    # Kept reconstructions, as lossless pictures.

    def _all_pictures_stored(self) -> bool:
        rows = self.stored_rows.items()
        return all(row["error"] or self.bench.store.exists(picture_name(self.stream_file, i)) for i, row in rows)

    def _all_pictures_intact(self) -> bool:
        """Whether every reconstruction was kept and still has the recorded pixels."""
        return all(row["error"] or self._load_picture(i) is not None for i, row in self.stored_rows.items())

    def _load_picture(self, image_id: str) -> Image | None:
        name = picture_name(self.stream_file, image_id)
        if not self.stored_rows or not self.bench.store.exists(name):
            return None
        try:
            with Pillow.open(io.BytesIO(self.bench.store.read(name)), formats=["PNG"]) as picture:
                image = read_only(np.asarray(picture))
        except Exception:  # Pillow raises a dozen types on damaged files, and a damaged picture is decoded anew.
            return None
        return image if pixel_sha256(image) == self.stored_rows[image_id]["sha256"] else None

    def _store_picture(self, image_id: str, image: Image) -> None:
        buffer = io.BytesIO()
        Pillow.fromarray(image).save(buffer, "PNG", compress_level=1)
        self.bench.store.write(picture_name(self.stream_file, image_id), buffer.getvalue())

    # Work on one chunk of the block.

    @property
    def background(self) -> bool:
        """Whether `reconstruct` may run in a thread beside the task models."""
        return self.series.codec is None or bool(getattr(self.series.codec, "background", False))

    def predict_chunk(self, images: Mapping[str, Image], originals: Mapping[str, Image], outcome: Outcome) -> None:
        """Let every missing task predict on one chunk. A task that fails is dropped from this cell and recorded.

        Args:
            images: reconstructions by image id, uint8 (height, width, 3).
            originals: source pixels of at least the same images, uint8 (height, width, 3).
            outcome: receives failures and counts.
        """
        for label in sorted(self.missing_tasks):
            scored = set(self.scored_ids[label])
            images_of_task = {image_id: image for image_id, image in images.items() if image_id in scored}
            if not images_of_task:
                continue
            try:
                self._predict_task(label, images_of_task, originals, outcome)
            except Exception as error:
                outcome.out_of_memory |= isinstance(error, MemoryError)
                self.missing_tasks.discard(label)
                outcome.failures.append(Failure(f"{self.name} / {label}", reason(error)))

    def _predict_task(self, label: str, images: Mapping[str, Image], originals: Mapping[str, Image], outcome: Outcome) -> None:
        task = self.bench.tasks[label]
        self.bench.load_context(label)
        ids = list(images)

        def predict(indices: Sequence[int]) -> Sequence[Any]:
            batch = [ids[k] for k in indices]
            sources = [originals[i] for i in batch] if task.needs_originals else None
            return task.predict([images[i] for i in batch], batch, sources)

        start = time.perf_counter()
        results = attempt(predict, range(len(ids)), self.tolerant, "model")
        seconds = (time.perf_counter() - start) / len(ids)
        outcome.model_images += len(ids)
        for k, prediction in results.items():
            self.predictions[label][ids[k]] = (
                self._record_failure(f"{self.name} / {label}", ids[k], prediction, outcome)
                if isinstance(prediction, Exception)
                else {**prediction, "error": None}
            ) | {"id": ids[k], "seconds": seconds}

    def _record_failure(self, where: str, image_id: str, error: Exception, outcome: Outcome) -> dict[str, Any]:
        """Add an image's failure to the outcome; the columns that its row gets."""
        outcome.failures.append(Failure(f"{where} / {image_id}", reason(error)))
        return {"error": reason(error)}

    def reconstruct(self, originals: Mapping[str, Image], outcome: Outcome) -> Mapping[str, Image]:
        """Code and decode one chunk, except for images whose kept reconstruction is still intact.

        Every image gets a row of the stream shard, also one that cannot be coded.

        Args:
            originals: source pixels by image id, uint8 (height, width, 3).
            outcome: receives failures and counts.

        Returns:
            Reconstructions by image id, uint8 (height, width, 3); images that could not be coded are left out.

        Raises:
            CodecError: the codec broke its contract, and the experiment tolerates no failures.
        """
        if self.series.codec is None:
            return originals
        kept = {i: picture for i in originals if (picture := self._load_picture(i)) is not None}
        self.new_rows.update({i: self.stored_rows[i] for i in kept})
        images: dict[str, Image] = {}
        uncoded = [i for i in originals if i not in kept]
        data, encode_seconds = self._encode(uncoded, originals, outcome)
        decodable = [i for i in uncoded if i in data]

        def decode(indices: Sequence[int]) -> Sequence[Image]:
            batch = [decodable[k] for k in indices]
            decoded = decompress_all(self.series.codec, [data[i] for i in batch])  # type: ignore[arg-type]
            for image_id, image in zip(batch, decoded, strict=False):
                _check_pixels(image_id, image, originals[image_id])
            return [read_only(image) for image in decoded]

        start = time.perf_counter()
        decoded = attempt(decode, range(len(decodable)), self.tolerant, "codec") if decodable else {}
        decode_seconds = (time.perf_counter() - start) / max(1, len(decodable))
        outcome.codec_images += len(decodable)
        for k, image in decoded.items():
            image_id = decodable[k]
            if isinstance(image, Exception):
                self._set_row(image_id, originals, self._record_failure(self.name, image_id, image, outcome))
                continue
            times = {"encode_seconds": encode_seconds[image_id], "decode_seconds": decode_seconds}
            sha256 = self._checked_sha256(image_id, image)
            self._set_row(image_id, originals, self._measure_stream(data[image_id]) | times | {"sha256": sha256})
            images[image_id] = image
            if self.keep:
                self._store_picture(image_id, image)
        return {i: kept[i] if i in kept else images[i] for i in originals if i in kept or i in images}

    def _encode(
        self, ids: Sequence[str], originals: Mapping[str, Image], outcome: Outcome
    ) -> tuple[dict[str, bytes], dict[str, float]]:
        """Streams and encoding seconds of a chunk's images: stored ones, otherwise those of an anchor pack, otherwise new ones."""
        if self.stored_rows:
            coded = {i: self.stored_rows[i] for i in ids if not self.stored_rows[i]["error"]}
            self.new_rows.update({i: self.stored_rows[i] for i in ids if i not in coded})
            return {i: row["data"] for i, row in coded.items()}, {i: row["encode_seconds"] for i, row in coded.items()}

        packed = {i: self.packed[i] for i in ids if i in self.packed}
        ids = [i for i in ids if i not in packed]

        def encode(indices: Sequence[int]) -> Sequence[bytes]:
            batch = [ids[k] for k in indices]
            streams = compress_all(self.series.codec, [originals[i] for i in batch], batch)  # type: ignore[arg-type]
            for image_id, data in zip(batch, streams, strict=False):
                if not isinstance(data, bytes) or not data:
                    result = "no bytes" if isinstance(data, bytes) else type(data).__name__
                    raise CodecError(f"compress gave {result} for {image_id!r}; a stream is bytes, at least one")
            return streams

        start = time.perf_counter()
        results = attempt(encode, range(len(ids)), self.tolerant, "codec") if ids else {}
        seconds = (time.perf_counter() - start) / max(1, len(ids))
        streams = {i: self.pack.data(row) for i, row in packed.items()} if self.pack else {}
        times = {i: row.encode_seconds for i, row in packed.items()}
        for k, data in results.items():
            if isinstance(data, Exception):
                self._set_row(ids[k], originals, self._record_failure(self.name, ids[k], data, outcome))
            else:
                streams[ids[k]], times[ids[k]] = data, seconds
        return streams, times

    def _checked_sha256(self, image_id: str, image: Image) -> str:
        """SHA-256 of a reconstruction.

        Raises:
            CodecError: a deterministic codec decoded a stored or packed stream to different pixels.
        """
        sha256 = pixel_sha256(image)
        if not self.series.deterministic:
            return sha256
        if self.stored_rows and sha256 != self.stored_rows[image_id]["sha256"]:
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

    def _set_row(self, image_id: str, originals: Mapping[str, Image], facts: Mapping[str, Any]) -> None:
        height, width = originals[image_id].shape[:2]
        self.new_rows[image_id] = {**dict.fromkeys(STREAMS.names), "id": image_id, "height": height, "width": width, **facts}

    def _measure_stream(self, data: bytes) -> dict[str, Any]:
        """A stream with its size in bytes and, if the codec itemises it, the bits of each part as JSON."""
        codec: Any = self.series.codec
        size = int(codec.stream_bytes(data)) if hasattr(codec, "stream_bytes") else len(data)
        parts = {part: int(bits) for part, bits in codec.rate_breakdown(data).items()} if hasattr(codec, "rate_breakdown") else None
        if parts is not None and sum(parts.values()) != 8 * size:
            raise CodecError(f"rate_breakdown sums to {sum(parts.values())} bits of a stream of {8 * size}")
        return {"data": data, "bytes": size, "parts": None if parts is None else json.dumps(parts)}

    # Writing the cell's shards.

    def write(self) -> None:
        """Write the stream shard, if it is new, and then the prediction shards of the missing tasks.

        Streams come first because they take longest to compute, and because predictions are keyed by the decoded pixels.

        Raises:
            UserError: the store cannot be written, or another run wrote other pixels for this cell meanwhile.
        """
        store = self.bench.store
        for image_id in self.block.ids:
            if image_id in self.sources.errors and self.series.codec is not None:
                self.new_rows[image_id] = {**dict.fromkeys(STREAMS.names), "id": image_id, "error": self.sources.errors[image_id]}
        if self.writes_streams:
            table = to_table([self.new_rows[i] for i in self.block.ids], STREAMS)
            first = not store.exists(self.stream_file)
            if not store.write_table(self.stream_file, table, replace=not first):
                self._compare_with_winner()
        for label in sorted(self.missing_tasks):
            task, rows = self.bench.tasks[label], self.predictions[label]
            schema = pa.schema([*PREDICTION, *task.schema])
            empty = dict.fromkeys(schema.names)
            for image_id in self.scored_ids[label]:
                if image_id not in rows:  # The source image could not be read, or the codec failed on it.
                    rows[image_id] = {"id": image_id, "error": "no pixels"}
            store.write_table(self._prediction_file(label), to_table([empty | rows[i] for i in self.scored_ids[label]], schema))

    def _compare_with_winner(self) -> None:
        """Accept the stream shard that another run wrote first if it records the same pixels.

        Raises:
            UserError: it records other pixels: that realisation stands, and this run's predictions are void.
        """
        winner = self._read_rows(self.stream_file, ["id", "sha256"])
        if any(winner[i]["sha256"] != self.new_rows[i]["sha256"] for i in self.block.ids):
            raise UserError(f"{self.name}: another run wrote its realisation first; run the same command again")


def _check_pixels(image_id: str, image: Any, original: Image) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != original.shape:
        actual = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise CodecError(f"the reconstruction of {image_id!r} is {actual}, not uint8 {original.shape}")


def failures_of(cells: Iterable[str], error: Exception) -> list[Failure]:
    """One failure for each of the named cells, all for the same error."""
    return [Failure(cell, reason(error)) for cell in cells]
