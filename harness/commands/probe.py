"""`icmbench plan --probe`: computes the first images of every dataset, so that a plan rests on measured numbers."""

from __future__ import annotations

import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
from fsspec.implementations.local import LocalFileSystem

from icmbench.harness.commands.computing import RunOptions, at_work, units_of
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import Experiment
from icmbench.harness.config.quantities import format_duration, format_memory, format_size
from icmbench.harness.derive.gathering import Gatherer
from icmbench.harness.processes.pool import Staff, process_pool
from icmbench.harness.processes.progress import RunProgress
from icmbench.harness.processes.workload import find_missing, incomplete_units, measure_workload
from icmbench.harness.store.folder import Folder
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.read_only import refuse_to_compute

PROGRESS_SECONDS = 30.0  # Between two lines on how far the probe has come.


@dataclass(frozen=True)
class Probe:
    """What computing a few images took.

    Attributes:
        images: how many images of each dataset were asked for.
        memory: bytes of the largest process, a worker or an encoder that it started; 0 if everything was there before.
        failures: sentences on what could not be computed.
    """

    images: int
    memory: int
    failures: tuple[str, ...]


def probe(experiment: Experiment, part: Experiment, folder: Folder, images: int) -> Probe:
    """Compute the first images of each dataset in one worker process. They are kept, so that the run need not compute them.

    Args:
        experiment: the whole experiment.
        part: the experiment, or the part of it that is planned.
        folder: the run folder.
        images: how many images of each dataset.

    Raises:
        UserError: the number is below 1, or the run folder belongs to another command.
    """
    if images < 1:
        raise UserError("--probe: a number of images, at least 1")
    limit = images if part.limit is None else min(images, part.limit)
    bench = Bench(part.model_copy(update={"limit": limit}), folder)
    with at_work(bench, experiment) as can_write:
        missing = find_missing(bench, Gatherer(bench).missing)
        units = incomplete_units(bench, units_of(bench, RunOptions()), missing)
        if not can_write:
            refuse_to_compute(bench, units, keep=False)
        if not units or not can_write:
            return Probe(images, 0, ())
        for label in bench.tasks:
            bench.load_context(label)
        failures: list[str] = []
        workload = measure_workload(bench, units, missing, {})
        with RunProgress(folder, f"probe of {bench.experiment.name}", workload, "one worker", PROGRESS_SECONDS) as progress:
            for unit, outcome in process_pool(bench, units, False, progress.command, Staff(1)):
                names = [bench.series[k].name for k in unit.series]
                progress.finish_unit(unit.block.dataset, names, unit.images, len(outcome.failures))
                failures += [f"{failure.cell}: {failure.reason}" for failure in outcome.failures]
    return Probe(images, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, tuple(failures))


def describe_costs(seconds: float, unmeasured: int, size: float, workers: int, memory: int, folder: Folder) -> list[str]:
    """Sentences on what a run takes, of one worker and of this machine.

    Args:
        seconds: time of one worker for everything that was measured.
        unmeasured: number of rows of the plan that were never measured.
        size: bytes that the run will write.
        workers: number of worker processes.
        memory: bytes of memory of one worker; 0 if unknown.
        folder: the run folder.
    """
    if unmeasured and not seconds:
        return ["time, disk and memory: unknown, because nothing was measured; --probe N computes N images of each dataset first"]
    at_least = "at least " if unmeasured else "about "
    times = [f"{at_least}{format_duration(seconds)} on one worker"]
    if workers > 1:
        times.append(f"{format_duration(seconds / workers)} on {workers} workers, if the machine has a core for each")
    lines = [f"time: {', '.join(times)}" + (f"; {unmeasured} rows are unknown" if unmeasured else "")]
    free = f" of {format_size(_free_bytes(folder))} that are free" if isinstance(folder.fs, LocalFileSystem) else ""
    lines.append(f"disk: {at_least}{format_size(size)}{free}")
    available = psutil.virtual_memory().available
    if not memory:
        lines.append("memory: not measured in this call; --probe N measures it while it computes what is missing")
        return lines
    needed = memory * workers
    lines.append(
        f"memory: about {format_memory(memory)} of one worker, {format_memory(needed)} of {workers}, "
        f"of {format_memory(available)} that are available" + (": too much, use fewer workers" if needed > available else "")
    )
    return lines


def _free_bytes(folder: Folder) -> int:
    """Free bytes of the disk of a folder, which need not exist yet."""
    path = Path(folder.path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
