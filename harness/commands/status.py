"""`icmbench status`: how far the commands have come that work in a run folder, from what their processes write there."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.quantities import format_duration, format_memory
from icmbench.harness.config.secrets import redact
from icmbench.harness.config.selection import Selection
from icmbench.harness.derive.bound import Derived
from icmbench.harness.processes.estimate import MALFORMED, estimate
from icmbench.harness.processes.heartbeats import Beat, RunningCommand, running_commands
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.references import ENVIRONMENT
from icmbench.harness.work.activity import Part

MISSING_SHOWN = 10  # Missing cells of finished tables that are named.


def print_status(run: str, only: Selection) -> None:
    """Print one paragraph per command, and the state of the tables if no command works.

    Args:
        run: the run folder, or its URL.
        only: which part of the work to count.

    Raises:
        UserError: there is no run folder.
    """
    folder = Folder(run)
    if isinstance(folder.fs, LocalFileSystem) and Path(folder.path).is_file():
        raise UserError(f"{run} is a file; give the --out of `icmbench run`")
    if not folder.exists(""):
        raise UserError(f"{run}: no such run folder; give the --out of `icmbench run`")
    commands = running_commands(folder)
    for running in commands:
        try:
            lines = _lines(running, only)
        except MALFORMED:
            lines = [f"{folder.full_path(running.command.name)} cannot be understood; it goes when its command has ended"]
        for line in lines:
            print(redact(line))
    if not any(running.command.state != "dead" for running in commands):
        _print_tables(folder)
    if estimating := _estimating_codecs(folder):
        print(redact(f"rates that the codec estimates, and no real bytes: {', '.join(estimating)}"))


def _lines(running: RunningCommand, only: Selection) -> list[str]:
    """What a command does, and what each of its workers does."""
    command, facts = running.command, running.command.facts
    who = f"{facts.get('experiment')}: process {facts['pid']} on {facts.get('host')}"
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(facts["since"])))
    if "stage" in facts:
        if command.state == "dead":
            return [f"{who}, started {started}, was killed while it {facts['stage']}: the same command goes on"]
        return [f"{who}, at work since {started}: it {facts['stage']}, memory {format_memory(float(facts.get('memory', 0)))}"]

    def select(part: Part) -> bool:
        is_codec = not only.codec or part.codec in only.codec
        is_task = not only.task or not part.task or part.task in only.task
        is_dataset = not only.dataset or part.dataset in only.dataset
        return is_codec and is_task and is_dataset and only.has_point(part.point)

    now = estimate(facts, running.workers, select=select if only else None)
    if command.state == "dead":
        done = f"{now.done:,} of {now.images:,} reconstructions"
        return [f"{who}, started {started}, was killed {format_duration(command.age)} ago after {done}: the same command goes on"]
    lines = [f"{who}, at work since {started}{f', counted: {only}' if only else ''}", f"  {now.line()}"]
    if command.state == "silent":
        lines.append(f"  nothing was heard of it for {format_duration(command.age)}: stopped, or its disk is full or cut off")
    is_over = int(facts["returned"]) >= int(facts["images"])
    return lines + [f"  {_worker_line(worker, is_over)}" for worker in running.workers]


def _worker_line(worker: Beat, is_over: bool) -> str:
    """What one worker does, and whether it is slow or lost."""
    facts, now = worker.facts, time.time()
    who = f"process {facts['pid']} on {facts.get('host')}, {format_memory(float(facts.get('memory', 0)))}"
    if worker.state == "dead" and is_over:
        return f"{who}: has ended, because all work is done"
    if worker.state == "dead":
        return f"{who}: dead; its unit of work is given to another one"
    tasks = [f"{text}, for {format_duration(max(0.0, now - float(since)))}" for text, since in facts.get("at_work", [])]
    what = "; ".join(tasks) or "reads or writes, or waits for work"
    if worker.state == "silent":
        return f"{who}: nothing heard for {format_duration(worker.age)}: stopped, cut off or dead; last at work: {what}"
    return f"{who}: {what}"


def _estimating_codecs(folder: Folder) -> list[str]:
    """Labels of the codecs of a run that estimate their rate, as environment.json names them."""
    series = None
    with contextlib.suppress(UserError):  # What another icmbench wrote does not keep the rest from being told.
        series = folder.read_json(ENVIRONMENT).get("series")
    facts = [each for each in series if isinstance(each, dict)] if isinstance(series, list) else []
    return list(dict.fromkeys(str(each.get("label")) for each in facts if each.get("estimated") is True))


def _print_tables(folder: Folder) -> None:
    """Print whether the tables of a run folder are made, and what they lack."""
    derived = Derived(folder)
    if not derived.names:
        print(f"{folder.root}: no command works here, and no tables were made yet; `icmbench plan` says what is missing")
        return
    if not derived.missing:
        print(f"{folder.root}: no command works here; its tables are made, and nothing is missing in them")
        return
    print(f"{folder.root}: no command works here; {len(derived.missing)} cells are missing in its tables:")
    for cell in derived.missing[:MISSING_SHOWN]:
        print(f"  {cell}")
    if len(derived.missing) > MISSING_SHOWN:
        print(f"  and {len(derived.missing) - MISSING_SHOWN} more")
