"""From what the processes of a command say: how much is done, how fast, and how long the rest takes."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from icmbench.harness.config.quantities import format_duration, format_memory, format_rate
from icmbench.harness.config.secrets import redact
from icmbench.harness.processes.heartbeats import Beat
from icmbench.harness.work.activity import Part

MALFORMED = (KeyError, TypeError, ValueError)  # What reading the numbers of a damaged file raises.
LEAST_SECONDS = 60.0  # A shorter time that leaves out what was not timed says nothing.
SHOWN_NAMES = 4  # Codecs or tasks that one line names; the rest is counted.


@dataclass(frozen=True)
class Estimate:
    """How far a command has come.

    Attributes:
        done: images that are done, counted once for each series.
        images: how many there are.
        codec_rates: images a second of one worker, by codec label.
        task_rates: the same by task label.
        remaining: seconds until the end; NaN if nothing was timed.
        untimed: codecs and tasks that were never timed, so that `remaining` leaves them out.
        at_work: what is at work, with the seconds since it began; the longest first.
        failures: failures so far.
        memory: bytes of memory of all processes.
    """

    done: int
    images: int
    codec_rates: dict[str, float] = field(default_factory=dict)
    task_rates: dict[str, float] = field(default_factory=dict)
    remaining: float = math.nan
    untimed: tuple[str, ...] = ()
    at_work: tuple[tuple[str, float], ...] = ()
    failures: int = 0
    memory: int = 0

    def line(self) -> str:
        """Everything in one line."""
        share = self.done / self.images if self.images else 1.0
        rates = [_listed({name: format_rate(rate) for name, rate in each.items()}) for each in (self.codec_rates, self.task_rates)]
        parts = [f"{share:.1%}: {self.done:,} of {self.images:,} reconstructions"]
        if any(rates):
            parts.append("images/s of one worker: " + " | ".join(filter(None, rates)))
        parts += [self.remaining_text(), f"{self.failures} failures", f"memory {format_memory(self.memory)}"]
        if self.at_work:
            text, seconds = self.at_work[0]
            parts.append(f"at work: {text}, for {format_duration(seconds)}")
        return "; ".join(parts)

    def detail(self) -> str:
        """What stands beside a bar that shows how much is done."""
        at_work = f", {self.at_work[0][0]}" if self.at_work else ""
        return f"{self.remaining_text()}{at_work}" + (f", {self.failures} failures" if self.failures else "")

    def remaining_text(self) -> str:
        """The remaining time in words."""
        untimed = f", not timed yet: {_listed(dict.fromkeys(self.untimed, ''))}" if self.untimed else ""
        if math.isnan(self.remaining) or (self.untimed and self.remaining < LEAST_SECONDS):
            return f"remaining time unknown{untimed}"
        return f"remaining {'at least ' if untimed else ''}{format_duration(self.remaining)}{untimed}"


def estimate(command: Mapping[str, Any], workers: Sequence[Beat], select: Callable[[Part], bool] | None = None) -> Estimate:
    """Add up what the processes of a command say.

    The work that is left is the sum over all parts of the images that are left and of the seconds that one took, so that a slow
    codec whose turn comes last counts in full. How many such seconds pass in one second of the clock is taken from this run.

    Args:
        command: what the parent process says.
        workers: what each process that computes says.
        select: tells which parts count; all by default. A reconstruction then counts as done once it is decoded.
    """
    tallies = _totals([worker.facts.get("tallies", []) for worker in workers])
    todo = {Part(*names): (int(images), cost) for *names, images, cost in command["parts"]}
    living = [worker for worker in workers if worker.state != "dead"]
    finished = sum(int(worker.facts.get("finished", 0)) for worker in workers)
    images, done = int(command["images"]), finished + sum(int(worker.facts.get("done", 0)) for worker in living)
    done = min(images, max(done, int(command["returned"])))
    now = time.time()
    at_work = [(str(text), max(0.0, now - float(since))) for worker in living for text, since in worker.facts.get("at_work", [])]
    busy = sum(seconds for _, seconds in tallies.values()) + sum(seconds for _, seconds in at_work)
    elapsed = now - min((float(worker.facts["first"]) for worker in workers if worker.facts.get("first")), default=now)
    if select is not None:
        tallies = {part: tally for part, tally in tallies.items() if select(part)}
        todo = {part: number for part, number in todo.items() if select(part)}
        images = sum(number for part, (number, _) in todo.items() if not part.task)
        done = sum(min(number, tallies.get(part, (0, 0.0))[0]) for part, (number, _) in todo.items() if not part.task)
    memory = {int(facts.get("pid", 0)): int(facts.get("memory", 0)) for facts in (command, *(worker.facts for worker in living))}
    left, untimed = _work_left(todo, tallies)
    return Estimate(
        done=done,
        images=images,
        codec_rates=_rates({part: tally for part, tally in tallies.items() if not part.task}),
        task_rates=_rates({part: tally for part, tally in tallies.items() if part.task}),
        remaining=0.0 if not todo else left * elapsed / busy if busy > 0 and elapsed > 0 else math.nan,
        untimed=untimed,
        at_work=tuple(sorted(at_work, key=lambda item: -item[1])),
        failures=int(command["failures"]) + sum(int(worker.facts.get("failures", 0)) for worker in living),
        memory=sum(memory.values()),
    )


def _work_left(
    todo: Mapping[Part, tuple[int, float | None]], tallies: Mapping[Part, tuple[int, float]]
) -> tuple[float, tuple[str, ...]]:
    """Seconds of work that are left, and the codecs and tasks that were never timed.

    Where a point of a codec or a task on it was not timed yet, another timed one of the same codec or task stands for it: it is
    nearer to the truth than leaving that work out.
    """
    timed: dict[str, list[float]] = {}
    for part, (images, seconds) in tallies.items():
        if images:
            timed.setdefault(_label(part), []).append(seconds / images)
    left, untimed = 0.0, []
    for part, (number, cost) in todo.items():
        images, seconds = tallies.get(part, (0, 0.0))
        others = timed.get(_label(part))
        each = seconds / images if images else cost if cost is not None else max(others) if others else None
        if number > images and each is None:
            untimed.append(_label(part))
        elif number > images and each is not None:
            left += (number - images) * each
    return left, tuple(dict.fromkeys(untimed))


def _label(part: Part) -> str:
    """The task that works, or the codec."""
    return part.task or part.codec


def print_progress(text: str) -> None:
    """Print a line with the time of day on standard error, at once, also where that is a pipe or a file."""
    try:
        print(f"{time.strftime('%H:%M:%S')}  {redact(text)}", file=sys.stderr, flush=True)
    except OSError:  # Nobody reads it.
        return


def _totals(processes: Sequence[Sequence[Sequence[Any]]]) -> dict[Part, tuple[int, float]]:
    """Images and seconds by part, summed over processes."""
    totals: dict[Part, tuple[int, float]] = {}
    for rows in processes:
        for *names, images, seconds in rows:
            part = Part(*names)
            before, before_seconds = totals.get(part, (0, 0.0))
            totals[part] = (before + int(images), before_seconds + float(seconds))
    return totals


def _rates(tallies: Mapping[Part, tuple[int, float]]) -> dict[str, float]:
    """Images a second by codec or task, over all points."""
    sums: dict[str, tuple[int, float]] = {}
    for part, (images, seconds) in tallies.items():
        before, before_seconds = sums.get(_label(part), (0, 0.0))
        sums[_label(part)] = (before + images, before_seconds + seconds)
    return {name: images / seconds for name, (images, seconds) in sums.items() if images and seconds > 0}


def _listed(texts: Mapping[str, str]) -> str:
    """The first few names with their texts, and how many more there are."""
    shown = [f"{name} {text}".strip() for name, text in list(texts.items())[:SHOWN_NAMES]]
    return ", ".join([*shown, *([f"{len(texts) - SHOWN_NAMES} more"] if len(texts) > SHOWN_NAMES else [])])
