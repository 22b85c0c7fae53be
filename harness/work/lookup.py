"""What the store holds of an experiment: one look-up for the loop, the plan, the scores and the report.

ids -> source hashes -> streams of a series -> hashes of the reconstructions -> predictions of a task
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from icmbench.harness.store.collection import Collection
from icmbench.harness.store.keys import digest, row_key, row_keys
from icmbench.harness.store.parallel import for_each, is_remote
from icmbench.harness.store.row_index import Rows
from icmbench.harness.store.store import ESTIMATE_FACTS, STREAM_FACTS, Store
from icmbench.harness.work.blocks import Sources
from icmbench.harness.work.failures import Failures, failure_key
from icmbench.harness.work.series import AnySeries, Series
from icmbench.tasks.base import Task

if TYPE_CHECKING:
    import pyarrow as pa

REFRESH_SECONDS = 30.0

ScoringTask = tuple[Task, frozenset[str]]  # A task, and the images that it scores.


@dataclass
class Streams:
    """Streams of a series for some images.

    Attributes:
        ids: the images.
        keys: key of the stream of each image whose source hash is known.
        rows: number of each stream in the collection of the series, int64 (ids,); -1 if there is none.
        pixels: SHA-256 of each reconstruction; None if there is none.
        failed: images that could not be read or coded, and need not be tried again.
        last_generation: where decoding is not deterministic, the generation of the last claim on each stream; -1 if there is none.
        incomplete: images of such a codec on whose claimed pixels some task lacks its prediction.
    """

    ids: tuple[str, ...]
    keys: dict[str, bytes]
    rows: Rows
    pixels: list[str | None]
    failed: frozenset[str]
    last_generation: dict[str, int] = field(default_factory=dict)
    incomplete: set[str] = field(default_factory=set)


class Lookup:
    """Finds streams and predictions by content.

    Args:
        store: the store.
        failures: the failures of the run folder.
        tolerant: whether recorded failures count, because the experiment tolerates some.
    """

    def __init__(self, store: Store, failures: Failures, tolerant: bool) -> None:
        self._store, self._failures, self._tolerant = store, failures, tolerant
        self._refreshed: dict[tuple[str, ...], float] = {}  # When the store was last looked at, on the monotonic clock.

    def collection(self, series: Series) -> Collection:
        """The streams of a series, or what it estimated."""
        return self._store.streams(series.fingerprint, series.about, series.estimated)

    def predictions_of(self, task: Task) -> Collection:
        """All predictions of a task, whatever the codec."""
        return self._store.predictions(task.fingerprint, task.schema, {"task": task.name})

    def refresh(self, series: Sequence[AnySeries], tasks: Mapping[str, Task], force: bool = True) -> None:
        """Learn of the streams, claims, predictions and failures that other processes wrote since.

        Args:
            series: the series whose streams are asked for.
            tasks: by label, the tasks whose predictions are asked for.
            force: whether to look in any case. Otherwise an object store, where each look costs requests, is
                asked again only after `REFRESH_SECONDS`.
        """
        key, now = (*tasks, *(each.name for each in series)), time.monotonic()
        is_recent = now - self._refreshed.get(key, -math.inf) < REFRESH_SECONDS
        if not force and is_recent and is_remote(self._store.folder.fs):
            return
        self._refreshed[key] = now
        coded = [each for each in series if isinstance(each, Series)]
        collections = [*map(self.collection, coded), *map(self.predictions_of, tasks.values())]
        claims = [self._store.claims(each.fingerprint) for each in coded if not each.deterministic]
        refreshes = [*(rows.refresh for rows in collections), *(made.refresh for made in claims), self._failures.refresh]
        list(for_each(self._store.folder.fs, lambda refresh: refresh(), refreshes))

    def streams(self, series: AnySeries, ids: Sequence[str], sources: Sources, tasks: Sequence[ScoringTask]) -> Streams:
        """Streams of images, and the hashes of their reconstructions; for the originals, the hashes of the source pixels.

        Args:
            series: the series.
            ids: the images.
            sources: facts about their source pixels.
            tasks: the tasks that see the reconstructions, each with the images that it scores. Of several realisations the first
                one counts on which all of them have their predictions, otherwise the last one.
        """
        if isinstance(series, Series):
            read = [i for i in ids if i in sources.sha256]
            keys = dict(zip(read, row_keys([sources.sha256[i] for i in read], [series.facts(i) for i in read]), strict=True))
            collection = self.collection(series)
            rows = np.full(len(ids), -1)
            known = [k for k, image_id in enumerate(ids) if image_id in keys]
            rows[known] = collection.find([keys[ids[k]] for k in known])
            pixels: list[str | None] = [None] * len(ids)
            for k, sha256 in zip(
                np.flatnonzero(rows >= 0), collection.facts(rows[rows >= 0], ["sha256"]).column(0).to_pylist(), strict=True
            ):
                pixels[k] = sha256
            streams = Streams(tuple(ids), keys, rows, pixels, frozenset())
            if not series.deterministic:
                self._choose_realisations(series, streams, sources, tasks)
        else:
            streams = Streams(tuple(ids), {}, np.full(len(ids), -1), [sources.sha256.get(i) for i in ids], frozenset())
        streams.failed = frozenset(sources.errors) & {*ids} | self._failed_to_code(series, streams)
        return streams

    def predictions(self, task: Task, ids: Sequence[str], pixels: Sequence[str | None], sources: Sources) -> Rows:
        """Row numbers of a task's predictions; -1 where there is none.

        Args:
            task: the task.
            ids: the images.
            pixels: SHA-256 of the pixels of each; None where there are none.
            sources: facts about the source pixels.
        """
        rows = np.full(len(ids), -1)
        known = [k for k, sha256 in enumerate(pixels) if sha256 is not None]
        rows[known] = self.predictions_of(task).find(_prediction_keys(task, ids, pixels, sources, known))
        return rows

    def failed_to_predict(self, task: Task, ids: Sequence[str], pixels: Sequence[str | None], sources: Sources) -> frozenset[str]:
        """Images on which a task failed before and need not be tried again."""
        if not self._tolerant or not len(self._failures):
            return frozenset()
        known = [k for k, sha256 in enumerate(pixels) if sha256 is not None]
        keys = [failure_key(task.fingerprint, key) for key in _prediction_keys(task, ids, pixels, sources, known)]
        return frozenset(ids[k] for k, failed in zip(known, self._failures.are_recorded(keys), strict=True) if failed)

    def frame(self, series: Series, ids: Sequence[str], rows: Rows) -> pd.DataFrame:
        """Facts about the streams that exist, indexed by image id.

        Args:
            series: the series.
            ids: the images.
            rows: number of the stream of each; -1 if there is none.

        Returns:
            Columns `STREAM_FACTS`, and `bits`, which is 8 times `bytes`. Where the codec estimates its rate, `bits` is what it
            estimated, not rounded, `seconds` is the time of a reconstruction, and what a stream alone has is missing.
        """
        table: pa.Table = self.collection(series).facts(rows[rows >= 0], ESTIMATE_FACTS if series.estimated else STREAM_FACTS)
        frame: pd.DataFrame = table.to_pandas()
        frame.index = pd.Index([ids[k] for k in np.flatnonzero(rows >= 0).tolist()], name="id")
        if series.estimated:
            return frame.assign(bytes=None, parts=None, encode_seconds=np.nan, decode_seconds=np.nan)
        return frame.assign(bits=8 * frame["bytes"])

    def _failed_to_code(self, series: AnySeries, streams: Streams) -> frozenset[str]:
        if not self._tolerant or not len(self._failures) or not isinstance(series, Series):
            return frozenset()
        absent = [i for i, row in zip(streams.ids, streams.rows, strict=True) if row < 0 and i in streams.keys]
        keys = [failure_key(series.fingerprint, streams.keys[i]) for i in absent]
        return frozenset(i for i, failed in zip(absent, self._failures.are_recorded(keys), strict=True) if failed)

    def _choose_realisations(self, series: Series, streams: Streams, sources: Sources, tasks: Sequence[ScoringTask]) -> None:
        """Of the claimed realisations of an image, take the first one on which every task has its prediction, or else the last."""
        claims = self._store.claims(series.fingerprint)
        collection = self.collection(series)
        for k, image_id in enumerate(streams.ids):
            if image_id in streams.keys:  # Claims may outlive the rows of a shard that was deleted.
                streams.last_generation[image_id] = max(claims.generations(streams.keys[image_id]), default=-1)
            if streams.rows[k] < 0:
                continue
            rows = collection.find_all(streams.keys[image_id])
            stored = collection.facts(rows, ["sha256"]).column(0).to_pylist()
            row_of = dict(zip(reversed(stored), reversed(rows), strict=True))
            generations = claims.generations(streams.keys[image_id])
            claimed = [pixels for _, pixels in sorted(generations.items()) if pixels in row_of]
            complete = [
                pixels
                for pixels in claimed
                if all(self.predictions(task, [image_id], [pixels], sources)[0] >= 0 for task, ids in tasks if image_id in ids)
            ]
            if not complete:
                streams.incomplete.add(image_id)
            if not claimed:  # Whoever wrote these rows died before it claimed their pixels; the stream itself is as good as any.
                streams.pixels[k] = None
                continue
            pixels = (complete or claimed[-1:])[0]
            streams.pixels[k], streams.rows[k] = pixels, row_of[pixels]


def prediction_facts(task: Task, image_id: str, pixels: str | None, sources: Sources) -> dict[str, str | None]:
    """What decides a prediction beside the task's fingerprint: the columns `pixels`, `original` and `facts` of its row.

    Args:
        task: the task.
        image_id: the image; it enters only by the facts that the task takes from files by it.
        pixels: SHA-256 of the pixels that the model sees.
        sources: facts about the source pixels.
    """
    return {name: values[0] for name, values in _prediction_columns(task, [image_id], [pixels], sources).items()}


def prediction_key(task: Task, image_id: str, pixels: str | None, sources: Sources) -> bytes:
    """Key of a prediction, from the same arguments as `prediction_facts`."""
    return key_of_facts(prediction_facts(task, image_id, pixels, sources))


def key_of_facts(facts: Mapping[str, str | None]) -> bytes:
    """Key of a prediction, from what `prediction_facts` returned."""
    return row_key(*facts.values())


def _prediction_columns(
    task: Task, ids: Sequence[str], pixels: Sequence[str | None], sources: Sources
) -> dict[str, Sequence[str | None]]:
    """`prediction_facts` of many images, by column."""
    facts = [_digest_of_facts(task, image_id, sha256) for image_id, sha256 in zip(ids, pixels, strict=True)]
    originals = [sources.sha256.get(image_id) if task.needs_originals else None for image_id in ids]
    return {"pixels": pixels, "original": originals, "facts": facts}


def _digest_of_facts(task: Task, image_id: str, pixels: str | None) -> str:
    """A digest of what a task takes from files by an image's id, and its model by the pixels; empty if they take nothing."""
    of_image, of_pixels = task.facts(image_id), None if pixels is None else task.pixel_facts(pixels)
    if of_pixels is not None:
        return digest([of_image, of_pixels])
    return "" if of_image is None else digest(of_image)


def _prediction_keys(
    task: Task, ids: Sequence[str], pixels: Sequence[str | None], sources: Sources, chosen: Sequence[int]
) -> list[bytes]:
    """Keys of the predictions on the images at some positions of `ids`."""
    columns = _prediction_columns(task, [ids[k] for k in chosen], [pixels[k] for k in chosen], sources)
    return row_keys(*columns.values())
