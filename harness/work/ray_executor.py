"""Units on a Ray cluster: actors that keep their codecs and models, placed by cores and GPUs.

`RAY_ADDRESS` names an existing cluster; without it a local one is started. Nothing but the names of cells travels: workers read
images and write shards themselves, so the datasets and the run folder lie on a shared disk or an object store.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.plugins import explained
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.cell import Outcome
from icmbench.harness.work.executors import THREAD_VARIABLES, lost
from icmbench.harness.work.loop import Progress, WorkUnit, run_units

LOSSES = 3  # of a unit of one series whose worker or node is lost, before its cell is named as missing


class RayWorker:
    """Lives in one Ray actor; its bench is built once."""

    extra = "ray"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def ready(self) -> None:
        """Answers once the actor is placed and runs."""

    def run(self, unit: WorkUnit, keep: bool) -> Outcome:
        [outcome] = run_units(self.bench, [unit], keep, lambda images: None)
        return outcome


def ray_cluster(
    bench: Bench, units: Sequence[WorkUnit], keep: bool, progress: Progress, workers: int, gpus: float
) -> Iterator[Outcome]:
    """Units on `workers` actors of `gpus` GPUs each, one unit at a time each: what is not started waits here.

    An actor gets its first unit when it runs. One whose process or node is lost is replaced as soon as there is room, and its
    unit goes to whoever is free, series by series.
    """
    with explained("--executor ray", RayWorker):
        import ray
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, configure_logging=False)
    workers = min(workers, len(units))
    cores = cores_each([node["Resources"] for node in ray.nodes() if node["Alive"]], workers, gpus)
    threads = {"env_vars": dict.fromkeys(THREAD_VARIABLES, str(cores))}
    remote = ray.remote(RayWorker).options(num_cpus=cores, num_gpus=gpus, runtime_env=threads)
    running: dict[Any, tuple[Any, WorkUnit | None, float]] = {}  # by reference; without a unit: an actor that is starting
    idle: list[Any] = []
    waiting = list(reversed(units))
    losses: Counter[WorkUnit] = Counter()
    failed_starts = 0
    limit = bench.experiment.timeout

    def start() -> None:
        actor = remote.remote(bench)
        running[actor.ready.remote()] = (actor, None, time.monotonic())

    def retried(unit: WorkUnit, most: int) -> bool:
        losses[unit] += 1
        if len(unit.series) > 1:  # which of its series did it? the others are to go on
            waiting.extend(WorkUnit(unit.block, (k,)) for k in unit.series)
        elif losses[unit] < most:
            waiting.append(unit)
        else:
            return False
        return True

    for _ in range(workers):
        start()
    try:
        while waiting or any(unit for _, unit, _ in running.values()):
            while waiting and idle:
                actor, new = idle.pop(), waiting.pop()
                running[actor.run.remote(new, keep)] = (actor, new, time.monotonic())
            done, _ = ray.wait(list(running), timeout=None if limit is None else 1.0)
            outcomes: list[tuple[WorkUnit, Outcome]] = []
            for reference in done:
                actor, unit, _ = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayError as error:
                    ray.kill(actor)
                    failed_starts = 0 if unit else failed_starts + 1
                    if failed_starts > LOSSES * workers:
                        raise UserError(f"workers cannot start on the Ray cluster: {' '.join(str(error).split())[:500]}") from None
                    start()
                    if unit and not retried(unit, LOSSES):
                        why = f"its worker or node was lost {LOSSES} times ({type(error).__name__}): run the same command again"
                        outcomes.append((unit, lost(bench, unit, why)))
                    continue
                idle.append(actor)
                if unit:
                    outcomes.append((unit, outcome))
            for reference, (actor, unit, started) in list(running.items()):
                if unit and limit is not None and time.monotonic() - started > limit * unit.images:
                    del running[reference]
                    ray.kill(actor)
                    start()
                    if not retried(unit, 1):
                        why = f"took longer than the experiment's timeout of {limit:g} s an image"
                        outcomes.append((unit, lost(bench, unit, why)))
            for ended, outcome in outcomes:
                progress(ended.images)
                yield outcome
    finally:
        for actor in [*idle, *(actor for actor, _, _ in running.values())]:
            ray.kill(actor)


def cores_each(nodes: Sequence[dict[str, float]], workers: int, gpus: float) -> int:
    """The most cores that each of `workers` may take so that all fit on `nodes` (their resources, `CPU` and `GPU`).

    Raises UserError where not even one core each fits.
    """

    def room(cores: int) -> int:
        by_gpu = (int(node.get("GPU", 0) / gpus + 1e-9) if gpus else workers for node in nodes)
        return sum(min(int(node.get("CPU", 0) // cores), most) for node, most in zip(nodes, by_gpu, strict=True))

    most = int(max((node.get("CPU", 0) for node in nodes), default=0))
    fitting = [cores for cores in range(1, most + 1) if room(cores) >= workers]
    if not fitting:
        each = f"one core and {gpus:g} GPUs" if gpus else "one core"
        fits = room(1) if most else 0
        raise UserError(f"--workers {workers}: the Ray cluster has room for {fits} workers of {each}; ask for fewer or add nodes")
    return fitting[-1]
