"""What `icmbench run` and `icmbench plan --probe` share: leases while they work, and units of work given to processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from icmbench.harness.commands.console import print_error
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import Experiment
from icmbench.harness.config.selection import Selection
from icmbench.harness.guests.process import GUESTS
from icmbench.harness.processes import executors
from icmbench.harness.processes.pool import Staff, process_pool
from icmbench.harness.processes.progress import RunProgress, Workload
from icmbench.harness.processes.ray_executor import ray_cluster
from icmbench.harness.store import leases
from icmbench.harness.store.keys import digest
from icmbench.harness.store.references import run_address
from icmbench.harness.store.usage import read_only_note, use_store
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.loop import WorkUnit
from icmbench.harness.work.outcome import Outcome
from icmbench.harness.work.series import Series

RUNNING = "running"  # Leases of the commands that write into a run folder.


@dataclass(frozen=True)
class RunOptions:
    """How an experiment is computed. None of these options changes a result.

    Attributes:
        workers: number of processes that share the work, each of which codes and holds all models; 0 computes in this process,
            which a codec that crashes then ends.
        coders: number of processes that encode and decode while others hold the models; 0 for the combined mode of `workers`.
        models: number of processes that hold the models, with `coders`.
        deal_tasks: whether each of `models` holds a share of the task models instead of all of them, where memory is short.
        executor: "local" for processes on this machine, "ray" for a Ray cluster.
        gpus: GPUs of each worker on a Ray cluster; may be a fraction.
        keep: whether every reconstruction is kept as a lossless picture.
        shard: `(i, n)` computes the i-th of n parts (from 1 on) and writes no tables; a later run without it writes them.
        images: how many images the report shows, the most damaged first.
        progress: seconds between two lines on how far the run has come, where standard error is no terminal; 0 for none.
        devices: GPUs that are dealt to the workers, as CUDA_VISIBLE_DEVICES names them; by default all workers see the same ones.
        only: the part of the experiment that is computed. Its scores are returned, and the tables of the whole stay as they are.
    """

    workers: int = 0
    coders: int = 0
    models: int = 0
    deal_tasks: bool = False
    executor: Literal["local", "ray"] = "local"
    gpus: float = 0.0
    keep: bool = False
    shard: tuple[int, int] | None = None
    images: int = 12
    progress: float = 0.0
    devices: tuple[str, ...] = ()
    only: Selection = field(default_factory=Selection)

    @property
    def processes(self) -> int:
        """Number of processes that take units of work."""
        return max(1, self.coders or self.workers)


DEFAULT_OPTIONS = RunOptions()


@contextmanager
def at_work(bench: Bench, whole: Experiment) -> Iterator[bool]:
    """Hold a lease in the run folder and one in the store, and leave a reference to the run in the store.

    Args:
        bench: what is going to be computed.
        whole: the experiment of which that may be a part. Commands that compute parts of one experiment work side by side.

    Yields:
        Whether the store can be written. Where it can only be read, standard error says so.

    Raises:
        UserError: another command works in the run folder by another version of the experiment file, or the store is being cleaned.
    """
    folder, store = bench.folder, bench.store.folder
    version = digest(whole.model_dump_json())
    facts = {"experiment": bench.experiment.name, "digest": version, "run": run_address(folder)}
    fingerprints = [digest(series.fingerprint) for series in bench.series if isinstance(series, Series)]
    for task in bench.tasks.values():
        fingerprints += [digest(task.fingerprint), *([digest(task.context_fingerprint)] if task.has_context else [])]
    is_part = bool(bench.experiment.only_points) or bench.experiment.model_dump_json() != whole.model_dump_json()
    with leases.hold(folder, RUNNING, facts):
        for lease in leases.leases(folder, RUNNING):
            if not lease.live:
                folder.remove(lease.name)
            elif lease.facts.get("digest") != version:
                raise UserError(
                    f"{folder.root}: another command (process {lease.facts['pid']} on {lease.facts.get('host')}) works there by "
                    "another version of the experiment file: wait until it has ended, or choose another --out"
                )
        with use_store(store, folder, facts, fingerprints, is_part) as can_write:
            if not can_write:
                print_error(read_only_note(store))
            try:
                yield can_write
            finally:
                GUESTS.end()


def units_of(bench: Bench, options: RunOptions) -> list[WorkUnit]:
    """The units of work of this run: all, or those of its part if several jobs share them."""
    if options.shard is None:
        return executors.make_units(bench, options.processes)
    part, count = options.shard
    return executors.make_units(bench, options.processes * count)[part - 1 :: count]


def compute(bench: Bench, units: list[WorkUnit], workload: Workload, options: RunOptions) -> Outcome:
    """Compute units of work where and how the options say.

    Args:
        bench: the experiment's codecs, tasks and store.
        units: what to compute.
        workload: what that comes to, for messages on how far it has come.
        options: how to compute it.
    """
    total = Outcome()
    if not units:
        return total
    computes_here = options.processes == 1 and not options.workers and not options.coders and bench.experiment.timeout is None
    if options.executor == "ray" or not computes_here:
        GUESTS.end()  # Each worker starts its own; these have told their fingerprints, and would only hold memory.
    staff = Staff(options.processes, options.models, options.deal_tasks, options.devices)
    with RunProgress(bench.folder, bench.experiment.name, workload, staff.describe(len(units)), options.progress) as progress:
        if options.executor == "ray":
            outcomes = ray_cluster(bench, units, options.keep, progress.command, staff, options.gpus)
        elif computes_here:
            outcomes = executors.in_process(bench, units, options.keep, progress)
        else:
            outcomes = process_pool(bench, units, options.keep, progress.command, staff)
        for unit, outcome in outcomes:
            total.add(outcome)
            names = [bench.series[k].name for k in unit.series]
            progress.finish_unit(unit.block.dataset, names, unit.images, len(outcome.failures))
    return total
