"""What one process computes at this moment, and what it has computed: the numbers behind progress lines and `icmbench status`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from icmbench.harness.work.outcome import Outcome
from icmbench.harness.work.series import AnySeries


class Part(NamedTuple):
    """A part of the work, by which images are counted.

    Attributes:
        dataset: name of the dataset.
        codec: label of the codec, or that of the originals.
        point: rate point with its seed.
        task: label of the task that predicts; empty for encoding and decoding.
    """

    dataset: str
    codec: str
    point: str
    task: str

    @classmethod
    def of(cls, dataset: str, series: AnySeries, task: str = "") -> Part:
        """The part of a series, or of a task on it."""
        return cls(dataset, series.label, series.point_name, task)

    def __str__(self) -> str:
        series = self.codec if self.point == "-" else f"{self.codec} {self.point}"
        return f"{self.task} on {series} of {self.dataset}" if self.task else f"{series} of {self.dataset}"


class Activity:
    """Counts of one process, which the loop updates and another thread reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tallies: dict[Part, tuple[int, float]] = {}  # Images and seconds.
        self._at_work: dict[int, tuple[str, float]] = {}  # By thread: what it does, and since when in seconds since 1970.
        self._done = self._finished = 0  # Images of the current unit, and of those before.
        self._first = 0.0  # When the first part of the work began, in seconds since 1970.
        self._outcome = Outcome()

    def begin_unit(self, outcome: Outcome) -> None:
        """Count from 0 on for a new unit of work, whose failures will be in `outcome`."""
        with self._lock:
            self._done, self._outcome = 0, outcome

    def advance(self, images: int) -> None:
        """Count images of the current unit as done; an image counts once for each series."""
        with self._lock:
            self._done += images

    def end_unit(self) -> None:
        """Note that the current unit is finished and its outcome is on its way."""
        with self._lock:
            self._finished, self._done, self._outcome = self._finished + self._done, 0, Outcome()

    @contextmanager
    def working(self, part: Part, images: int) -> Iterator[None]:
        """While the context lasts, so many images are encoded and decoded, or predicted on."""
        thread, start = threading.get_ident(), time.perf_counter()
        with self._lock:
            self._first = self._first or time.time()
            self._at_work[thread] = (f"{images} images, {part}" if images > 1 else str(part), time.time())
        try:
            yield
        finally:
            with self._lock:
                self._at_work.pop(thread, None)
                before, seconds = self._tallies.get(part, (0, 0.0))
                self._tallies[part] = (before + images, seconds + time.perf_counter() - start)

    @contextmanager
    def noting(self, text: str) -> Iterator[None]:
        """While the context lasts, this process does what the text says, for another process that counts it."""
        thread = threading.get_ident()
        with self._lock:
            self._at_work[thread] = (text, time.time())
        try:
            yield
        finally:
            with self._lock:
                self._at_work.pop(thread, None)

    def snapshot(self) -> dict[str, Any]:
        """The present numbers as JSON values.

        Returns:
            `first`, when this process began to work, in seconds since 1970; `finished` and `done`, images of all units before and
            of the current one; `failures` in the current one; `tallies`, one list for each part with its names, images and seconds;
            `at_work`, for each busy thread a text and its start in seconds since 1970.
        """
        with self._lock:
            return {
                "first": self._first,
                "finished": self._finished,
                "done": self._done,
                "failures": len(self._outcome.failures),
                "tallies": [[*part, *tally] for part, tally in self._tallies.items()],
                "at_work": [[text, since] for text, since in self._at_work.values()],
            }
