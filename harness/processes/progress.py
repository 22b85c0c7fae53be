"""How far a command has come: a bar on a terminal, and a line now and then in a log.

The numbers come from the signs of life of the processes that compute (`icmbench.harness.processes.heartbeats`), so that a run in
one process, in a pool and on a cluster are reported in the same way, and `icmbench status` can report them from another shell.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.quantities import format_duration
from icmbench.harness.processes import heartbeats
from icmbench.harness.processes.estimate import MALFORMED, Estimate, estimate, print_progress
from icmbench.harness.store.folder import Folder
from icmbench.harness.work.activity import Activity, Part

REFRESH_SECONDS = 1.0  # How often the bar on a terminal is drawn anew.


@dataclass(frozen=True)
class Workload:
    """What a command has to do.

    Attributes:
        images: images of all units of work, counted once for each series.
        parts: images to encode and decode, or to predict on, by part of the work.
        units: by dataset and name of the series, the number of units of work.
        costs: measured seconds per image by part, where there are any from before.
    """

    images: int
    parts: Mapping[Part, int]
    units: Mapping[tuple[str, str], int]
    costs: Mapping[Part, float] = field(default_factory=dict)


class RunProgress:
    """Tells how far a run has come while its units of work are computed, as a context.

    Args:
        folder: the run folder, in which the signs of life are kept.
        title: what the run is called.
        workload: what there is to do.
        who: the processes that compute, in words.
        seconds: time between two lines where standard error is no terminal; 0 for none.

    Attributes:
        command: name of the command in `icmbench.harness.processes.heartbeats`.
    """

    def __init__(self, folder: Folder, title: str, workload: Workload, who: str, seconds: float) -> None:
        self.command = heartbeats.new_command()
        self._folder, self._title, self._workload = folder, title, workload
        self._who, self._seconds = who, seconds
        self._started = time.time()
        self._returned = self._failures = 0  # Images and failures of the units whose outcome is known.
        self._open = Counter(workload.units)
        self._stack = ExitStack()
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> RunProgress:
        name = f"{heartbeats.PROGRESS}/{self.command}/{heartbeats.COMMAND}"
        self._stack.callback(heartbeats.remove_command, self._folder, self.command)
        self._stack.enter_context(heartbeats.beating(self._folder, name, self._facts, with_children=False))
        if self._is_terminal:
            self._stack.enter_context(self._drawing())
        elif self._seconds:
            print_progress(f"{self._title}: {self._workload.images:,} reconstructions lack something; {self._who}")
            self._stack.enter_context(_repeating(self._seconds, lambda: print_progress(self.estimate().line())))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        if kind is None and self._seconds and not self._is_terminal:
            taken = format_duration(time.time() - self._started)
            print_progress(f"{self._returned:,} reconstructions in {taken}, {self._failures} failures")

    @contextmanager
    def in_this_process(self, activity: Activity) -> Iterator[None]:
        """While the context lasts, this process computes too, and says so in a file of its own."""
        with heartbeats.worker_beating(self._folder, self.command, activity):
            yield

    def finish_unit(self, dataset: str, series: list[str], images: int, failures: int) -> None:
        """Note the outcome of a unit of work, and say which series are thereby finished on a dataset."""
        self._returned += images
        self._failures += failures
        finished = []
        for name in series:
            self._open[dataset, name] -= 1
            if not self._open[dataset, name]:
                finished.append(name)
        if finished and self._seconds and not self._is_terminal:
            print_progress(f"finished on {dataset}: {', '.join(finished)}")

    def estimate(self) -> Estimate:
        """How far the run has come now."""
        facts = {**self._facts(), "pid": os.getpid(), "memory": heartbeats.memory(with_children=False)}
        return estimate(facts, heartbeats.workers_of(self._folder, self.command))

    def _facts(self) -> dict[str, Any]:
        """What this process writes about the command, as JSON values."""
        return {
            "experiment": self._title,
            "since": self._started,
            "images": self._workload.images,
            "parts": [[*part, images, self._workload.costs.get(part)] for part, images in self._workload.parts.items()],
            "returned": self._returned,
            "failures": self._failures,
        }

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Draw a bar, with the remaining time and what is at work, until the context ends."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"))
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(self._title, total=self._workload.images, detail="")

            def draw() -> None:
                now = self.estimate()
                bar.update(task, completed=now.done, detail=now.detail())

            with _repeating(REFRESH_SECONDS, draw):
                yield
            bar.update(task, completed=self._returned, detail="")


@contextmanager
def _repeating(seconds: float, action: Any) -> Iterator[None]:
    """Call a function every so many seconds, by the monotonic clock, until the context ends."""
    stopped = threading.Event()

    def repeat() -> None:
        while not stopped.wait(seconds):
            with suppress(OSError, UserError, *MALFORMED):  # A file that is damaged or cut off; the next time it may be whole.
                action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
