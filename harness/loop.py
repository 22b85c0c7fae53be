"""The loop: one block of images through every codec at every point, each reconstruction shown to every task.

    for chunk of the block:                read the originals once
        for cell (codec at a point):       compress -> bytes -> decompress, once
            for task:                      predict
    write each cell's streams, then its predictions

A cell whose files are there does nothing. A failure drops its cell (or one task of it) and nothing else.
"""

from __future__ import annotations

import io
import json
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from PIL import Image as Pillow

from icmbench.codecs.base import BitstreamError, CodecError, compress_all, decompress_all
from icmbench.harness.bench import Bench
from icmbench.harness.errors import UserError
from icmbench.harness.shards import (
    PREDICTION,
    STREAMS,
    Block,
    Series,
    Sources,
    cell_name,
    pixel_sha256,
    prediction_name,
    stream_name,
)
from icmbench.harness.store import from_table, to_table
from icmbench.tasks.base import DatasetError, Image

Progress = Callable[[int], None]  # told the number of image-cells done


@dataclass(frozen=True)
class Unit:
    """What one worker takes at a time: some series over one block, sharing the originals."""

    block: Block
    series: tuple[int, ...]  # indices into Bench.series

    @property
    def images(self) -> int:
        return len(self.block.ids) * len(self.series)


@dataclass(frozen=True)
class Failure:
    """A cell, or one task of it, that could not be computed, and why in one sentence."""

    cell: str
    reason: str


@dataclass
class Outcome:
    failures: list[Failure] = field(default_factory=list)
    codec_images: int = 0  # compressed or decompressed
    model_images: int = 0  # shown to a task


class Job:
    """One cell at work: a series over a block."""

    def __init__(self, bench: Bench, block: Block, series: Series, sources: Sources, keep: bool) -> None:
        self.bench, self.block, self.series, self.sources, self.keep = bench, block, series, sources, keep
        self.streams: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.stream_file = stream_name(block, sources, series)
        self.stored = self._stored()
        self.todo = self._missing()
        self.renew = not self.stored  # the stream shard is to be written
        if self.stored and (self.todo or keep) and not series.deterministic and not self._kept():
            # Decoding again gives another realisation: every task must see the same one.
            self.todo, self.renew = set(self._tasks()), True

    @property
    def name(self) -> str:
        return cell_name(self.block, self.series)

    @property
    def done(self) -> bool:
        return not self.todo and (self.series.codec is None or bool(self.stored)) and (not self.keep or self._kept())

    def _stored(self) -> dict[str, dict[str, Any]]:
        if self.series.codec is None or not self.bench.store.exists(self.stream_file):
            return {}
        table = self.bench.store.read_table(self.stream_file)
        return {row["id"]: row for row in from_table(table, STREAMS.names)}

    def _tasks(self) -> dict[str, list[str]]:
        """Tasks of this dataset with the block's images that they score."""
        wanted = {}
        for label in self.bench.task_labels(self.block.dataset):
            ids = self.bench.scored(label, self.block)
            if ids and not (self.series.codec is None and self.bench.tasks[label].needs_originals):
                wanted[label] = ids
        return wanted

    def _pixels(self, ids: Iterable[str]) -> list[str]:
        if self.series.codec is None:
            return [self.sources.sha256[i] for i in ids]
        known = self.streams or self.stored
        return [known[i]["sha256"] for i in ids]

    def _file(self, label: str, ids: Sequence[str]) -> str:
        task = self.bench.tasks[label]
        return prediction_name(self.block, ids, self.sources, self.series, label, task, self._pixels(ids))

    def _missing(self) -> set[str]:
        wanted = self._tasks()
        if self.series.codec is not None and not self.stored:
            return set(wanted)
        return {label for label, ids in wanted.items() if not self.bench.store.exists(self._file(label, ids))}

    # --- kept reconstructions

    def _picture(self, image_id: str) -> str:
        folder = self.stream_file.removeprefix("streams/").removesuffix(".parquet")
        return f"reconstructions/{folder}/{quote(image_id, safe='')[-200:]}.png"

    def _kept(self) -> bool:
        return self.series.codec is None or all(self.bench.store.exists(self._picture(i)) for i in self.block.ids)

    def _load_kept(self, image_id: str) -> Image | None:
        name = self._picture(image_id)
        if not self.stored or not self.bench.store.exists(name):
            return None
        with Pillow.open(io.BytesIO(self.bench.store.read(name)), formats=["PNG"]) as picture:
            image = np.asarray(picture)
        return image if pixel_sha256(image) == self.stored[image_id]["sha256"] else None

    # --- work

    def advance(self, ids: Sequence[str], originals: Sequence[Image], outcome: Outcome) -> None:
        """One chunk of the block through the codec and every task that is missing."""
        images = originals if self.series.codec is None else self._reconstruct(ids, originals, outcome)
        wanted = self._tasks()
        for label in sorted(self.todo):
            scored = set(wanted[label])
            mine = [k for k, image_id in enumerate(ids) if image_id in scored]
            if not mine:
                continue
            try:
                self._predict(label, [ids[k] for k in mine], [images[k] for k in mine], [originals[k] for k in mine], outcome)
            except Exception as error:
                self.todo.discard(label)
                outcome.failures.append(Failure(f"{self.name} / {label}", reason(error)))

    def _predict(self, label: str, ids: list[str], images: list[Image], originals: list[Image], outcome: Outcome) -> None:
        task = self.bench.tasks[label]
        self.bench.prepare(label)
        start = time.perf_counter()
        predictions = task.predict(images, ids, originals if task.needs_originals else None)
        seconds = (time.perf_counter() - start) / len(ids)
        outcome.model_images += len(ids)
        if len(predictions) != len(ids):
            raise CodecError(f"task {label!r} gave {len(predictions)} predictions for {len(ids)} images")
        rows = self.rows.setdefault(label, [])
        rows += [{"id": i, "seconds": seconds, **prediction} for i, prediction in zip(ids, predictions, strict=True)]

    def _reconstruct(self, ids: Sequence[str], originals: Sequence[Image], outcome: Outcome) -> list[Image]:
        codec = self.series.codec
        assert codec is not None
        kept = [self._load_kept(i) for i in ids]
        if all(image is not None for image in kept):
            self.streams.update({i: self.stored[i] for i in ids})
            return kept  # type: ignore[return-value]
        if self.stored:
            data = [self.stored[i]["data"] for i in ids]
            encode = [self.stored[i]["encode_seconds"] for i in ids]
        else:
            start = time.perf_counter()
            data = compress_all(codec, originals, ids)
            encode = [(time.perf_counter() - start) / len(ids)] * len(ids)
        start = time.perf_counter()
        images = decompress_all(codec, data)
        decode = (time.perf_counter() - start) / len(ids)
        outcome.codec_images += len(ids)
        for k, image_id in enumerate(ids):
            self._check(image_id, images[k], originals[k])
            row = self._row(image_id, data[k], originals[k], encode[k], decode, pixel_sha256(images[k]))
            if self.stored and row["sha256"] != self.stored[image_id]["sha256"] and self.series.deterministic:
                raise CodecError(
                    f"decoding the stored stream of {image_id!r} again gave other pixels: "
                    f"codec {self.series.label!r} must say `deterministic = False`"
                )
            self.streams[image_id] = row
            if self.keep:
                buffer = io.BytesIO()
                Pillow.fromarray(images[k]).save(buffer, "PNG", compress_level=1)
                self.bench.store.write(self._picture(image_id), buffer.getvalue())
        return images

    def _check(self, image_id: str, image: Any, original: Image) -> None:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != original.shape:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise CodecError(f"the reconstruction of {image_id!r} is {got}, not uint8 {original.shape}")

    def _row(self, image_id: str, data: bytes, original: Image, encode: float, decode: float, sha256: str) -> dict[str, Any]:
        codec: Any = self.series.codec
        if not isinstance(data, bytes):
            raise CodecError(f"compress gave {type(data).__name__} for {image_id!r}, not bytes")
        size = codec.stream_bytes(data) if hasattr(codec, "stream_bytes") else len(data)
        parts = json.dumps(codec.rate_breakdown(data)) if hasattr(codec, "rate_breakdown") else None
        height, width = original.shape[:2]
        return {
            "id": image_id, "data": data, "bytes": size, "height": height, "width": width, "parts": parts,
            "encode_seconds": encode, "decode_seconds": decode, "sha256": sha256,
        }  # fmt: skip

    def write(self) -> None:
        """Streams first: they are what took longest, and predictions are keyed by what they decoded to."""
        store = self.bench.store
        if self.series.codec is not None and self.renew:
            table = to_table([self.streams[i] for i in self.block.ids], STREAMS)
            if not store.write_table(self.stream_file, table, replace=bool(self.stored)):
                self._adopt_winner()
        wanted = self._tasks()
        for label in sorted(self.todo):
            schema = pa.schema([*PREDICTION, *self.bench.tasks[label].schema])
            store.write_table(self._file(label, wanted[label]), to_table(self.rows[label], schema))

    def _adopt_winner(self) -> None:
        """Another run was first. The same pixels: its shard serves both. Others: its realisation stands, and mine is void."""
        winner = self._stored()
        if any(winner[i]["sha256"] != self.streams[i]["sha256"] for i in self.block.ids):
            self.todo.clear()
            raise UserError("another run wrote this cell's realisation first: run the same command again")


def run_unit(bench: Bench, unit: Unit, keep: bool, progress: Progress | None = None) -> Outcome:
    """Compute what is missing of a unit. Failures are returned, not raised; only a store that cannot be written raises."""
    outcome = Outcome()
    report = progress or (lambda images: None)
    block = unit.block
    try:
        sources = bench.sources(block)
        assert sources is not None
    except (DatasetError, OSError) as error:
        outcome.failures += [Failure(cell_name(block, bench.series[k]), reason(error)) for k in unit.series]
        report(unit.images)
        return outcome
    jobs = [Job(bench, block, bench.series[k], sources, keep) for k in unit.series]
    active = [job for job in jobs if not job.done]
    report(len(block.ids) * (len(jobs) - len(active)))
    size = bench.experiment.batch_size
    for start in range(0, len(block.ids) if active else 0, size):
        ids = block.ids[start : start + size]
        for job in list(active):
            try:
                job.advance(ids, [bench.read(block.dataset, image_id) for image_id in ids], outcome)
            except Exception as error:
                active.remove(job)
                outcome.failures.append(Failure(job.name, reason(error)))
                report(len(block.ids) - start)
            else:
                report(len(ids))
    for job in active:
        job.write()
    return outcome


def reason(error: BaseException) -> str:
    """One sentence for errors that speak for themselves; the place in the code too for all others."""
    if isinstance(error, (UserError, DatasetError, CodecError, BitstreamError)):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
