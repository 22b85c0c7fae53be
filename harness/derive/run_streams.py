"""The streams of a run: where each lies in the store, the pixels that it decodes to, and the bits of its parts.

A paper's run has millions of streams. Of each only a row number, a flag and the bits of its header are kept, 17 bytes in all; what
else is asked for is read from the indices of the store, one series at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from icmbench.harness.store.row_index import Rows
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import Sources
from icmbench.harness.work.lookup import Streams
from icmbench.harness.work.series import AnySeries, Series


@dataclass(frozen=True)
class FoundStreams:
    """Where the streams of a series lie, for those images of a dataset that a task scores.

    Attributes:
        ids: the images.
        rows: number of each stream in the collection of the series, int64 (ids,); -1 if there is none.
        decoded: whether the pixels of each reconstruction are known, bool (ids,).
        failed: images that could not be read or coded, and that the experiment tolerates.
    """

    ids: tuple[str, ...]
    rows: Rows
    decoded: npt.NDArray[np.bool_]
    failed: frozenset[str]


@dataclass(frozen=True)
class StreamParts:
    """What the streams of a series are made of.

    Attributes:
        header: bits of the part "header" of each stream that exists, int64 (streams,); 0 where it is not itemised.
        itemised: number of streams that are itemised.
        bits: sum over these streams by part, in the order in which the parts first occur.
    """

    header: npt.NDArray[np.int64]
    itemised: int
    bits: Mapping[str, int]


class RunStreams:
    """The streams of all series of a run, by dataset. What it learned is kept: make a new one after a change.

    Args:
        bench: the experiment and its store.
        sources: tells what is recorded of the source pixels of a dataset.
    """

    def __init__(self, bench: Bench, sources: Callable[[str], Sources]) -> None:
        self._bench, self._sources = bench, sources
        self._found: dict[tuple[str, str], FoundStreams] = {}
        self._parts: dict[tuple[str, str], StreamParts] = {}
        self._digests: dict[tuple[str, str], bytes] = {}
        self._id_lists: dict[tuple[str, ...], tuple[str, ...]] = {}  # One object for equal lists of images, which all series share.

    def look_up(self, dataset: str, series: AnySeries) -> Streams:
        """Streams of a series for those images of a dataset that a task scores. They are looked up at each call."""
        tasks = list(self._bench.scoring_tasks(dataset, series).values())
        ids = [i for i in self._bench.datasets[dataset].ids if any(i in scored for _, scored in tasks)]
        return self._bench.lookup.streams(series, ids, self._sources(dataset), tasks)

    def found(self, dataset: str, series: AnySeries) -> FoundStreams:
        """Where the streams lie that `look_up` finds."""
        key = (dataset, series.name)
        if key not in self._found:
            streams = self.look_up(dataset, series)
            ids = self._id_lists.setdefault(streams.ids, streams.ids)
            decoded = np.array([sha256 is not None for sha256 in streams.pixels], bool)
            self._found[key] = FoundStreams(ids, streams.rows, decoded, streams.failed)
        return self._found[key]

    def pixels(self, dataset: str, series: AnySeries) -> list[str | None]:
        """SHA-256 of the reconstruction of each image of `found`; None where there is none."""
        found = self.found(dataset, series)
        if not isinstance(series, Series):
            return [self._sources(dataset).sha256.get(image_id) for image_id in found.ids]
        known = self._bench.lookup.collection(series).facts(found.rows[found.decoded], ["sha256"]).column(0).to_pylist()
        pixels: list[str | None] = [None] * len(found.ids)
        for k, sha256 in zip(np.flatnonzero(found.decoded).tolist(), known, strict=True):
            pixels[k] = sha256
        return pixels

    def frame(self, dataset: str, series: Series) -> pd.DataFrame:
        """Facts about the streams that exist, indexed by image id."""
        found = self.found(dataset, series)
        return self._bench.lookup.frame(series, found.ids, found.rows)

    def parts(self, dataset: str, series: Series) -> StreamParts:
        """The bits of the parts of the streams that exist, in the order of `frame`."""
        key = (dataset, series.name)
        if key not in self._parts:
            self._parts[key] = _sum_of_parts(self.frame(dataset, series)["parts"].tolist())
        return self._parts[key]

    def digest(self, dataset: str, series: Series) -> bytes:
        """A digest of the sizes, shapes and pixels of the streams that exist, and of their images."""
        key = (dataset, series.name)
        if key not in self._digests:
            frame = self.frame(dataset, series)
            numbers = [frame["bits"].to_numpy("f8")] if series.estimated else []
            numbers.append(frame[["height", "width"] if series.estimated else ["bytes", "height", "width"]].to_numpy("i8"))
            value = hashlib.sha256(b"".join(array.tobytes() for array in numbers))
            value.update("".join([*frame.index, *frame["sha256"]]).encode())
            self._digests[key] = value.digest()
        return self._digests[key]


def _sum_of_parts(texts: list[str | None]) -> StreamParts:
    """The parts of streams, each a JSON object {part: bits}, or null if the codec does not itemise its streams."""
    header, total = np.zeros(len(texts), np.int64), Counter[str]()
    itemised = 0
    for k, text in enumerate(texts):
        if isinstance(text, str):
            bits = json.loads(text)
            header[k] = bits.get("header", 0)
            total.update(bits)
            itemised += 1
    return StreamParts(header, itemised, dict(total))
