"""How far the training of a stage has come: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from types import TracebackType

from icmbench.codecs.training.observer import Observer
from icmbench.harness.config.quantities import format_duration, format_memory, format_rate
from icmbench.harness.processes.estimate import print_progress
from icmbench.harness.processes.heartbeats import memory
from icmbench.harness.work.bar import Bar


class TrainingProgress(Observer):
    """Tells of one stage on standard error, as a context: a bar on a terminal, elsewhere a line every so often, such as

    10:42:07  step 110 of 2000 (5.5 %), stage one, 1.9 steps/s, loss 0.12 (eps 0.1, bpp 0.02), remaining 17 min, memory 1.2 GiB

    Losses are means of the steps since the line before; the remaining time is that of this stage, at their pace.

    Args:
        stage: name of the stage.
        steps: number of its steps.
        images: images of a step.
        seconds: time between two lines; 0 for none. A line follows a step, so that slow steps delay it.
    """

    def __init__(self, stage: str, steps: int, images: int, seconds: float) -> None:
        self._stage, self._steps, self._images, self._seconds = stage, steps, images, seconds
        self._is_terminal = sys.stderr.isatty()
        self._bar: Bar | None = None
        self._start_interval(0)

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def begin(self, first: int) -> None:
        if self._is_terminal:
            self._bar = Bar(self._stage, self._steps * self._images).__enter__()
            self._bar.advance(first * self._images)
        self._start_interval(first)

    def step(self, done: int, terms: Mapping[str, float], loss: float) -> None:
        if self._bar is not None:
            self._bar.advance(self._images)
        self._loss += loss
        for name, value in terms.items():
            self._terms[name] += value
        is_due = time.monotonic() - self._since >= self._seconds or done == self._steps
        if is_due and self._seconds and not self._is_terminal:
            print_progress(self._line(done))
            self._start_interval(done)

    def tell(self, sentence: str) -> None:
        print_progress(sentence)

    def _start_interval(self, done: int) -> None:
        self._first, self._since = done, time.monotonic()
        self._loss, self._terms = 0.0, defaultdict[str, float](float)

    def _line(self, done: int) -> str:
        count, seconds = done - self._first, max(time.monotonic() - self._since, 1e-9)
        terms = ", ".join(f"{name} {value / count:.3g}" for name, value in self._terms.items())
        parts = [
            f"step {done} of {self._steps} ({100 * done / self._steps:.1f} %)",
            f"stage {self._stage}",
            f"{format_rate(count / seconds)} steps/s",
            f"loss {self._loss / count:.3g} ({terms})",
            f"remaining {format_duration((self._steps - done) * seconds / count)}",
            f"memory {format_memory(memory())}{_gpu_memory()}",
        ]
        return ", ".join(parts)


def _gpu_memory() -> str:
    """The most memory that PyTorch has held on a GPU, as the end of a line; empty without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return ""
    return f" and {format_memory(torch.cuda.max_memory_reserved())} of the GPU"
