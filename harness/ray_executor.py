"""Units on a Ray cluster: actors that keep their codecs and models, placed by cores and GPUs.

`RAY_ADDRESS` names an existing cluster; without it a local one is started. Nothing but the names of cells travels: workers read
images and write shards themselves, so the datasets and the run folder lie on a shared disk or an object store.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from icmbench.harness.bench import Bench
from icmbench.harness.cell import Outcome
from icmbench.harness.executors import THREAD_VARIABLES, lost
from icmbench.harness.loop import Progress, Unit, run_unit
from icmbench.harness.plugins import explained

RETRIES = 3  # of a unit whose worker or node is lost, before its cells are named as missing


class Worker:
    """Lives in one Ray actor; its bench is built once."""

    extra = "ray"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def run(self, unit: Unit, keep: bool) -> Outcome:
        return run_unit(self.bench, unit, keep, lambda images: None)


def ray_cluster(
    bench: Bench, units: Sequence[Unit], keep: bool, progress: Progress, workers: int, gpus: float
) -> Iterator[Outcome]:
    """Units on `workers` actors of `gpus` GPUs each, one unit at a time each: what is not started waits here.

    An actor whose process or node is lost is started again where there is room, and its unit with it.
    """
    with explained("--executor ray", Worker):
        import ray
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, configure_logging=False)
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
    threads = {"env_vars": dict.fromkeys(THREAD_VARIABLES, str(cores))}
    remote = ray.remote(Worker).options(
        num_cpus=cores, num_gpus=gpus, max_restarts=-1, max_task_retries=RETRIES, runtime_env=threads
    )
    idle: list[Any] = [remote.remote(bench) for _ in range(min(workers, len(units)))]
    running: dict[Any, tuple[Any, Unit, float]] = {}
    waiting = list(reversed(units))
    limit = bench.experiment.timeout
    try:
        while waiting or running:
            while waiting and idle:
                actor, unit = idle.pop(), waiting.pop()
                running[actor.run.remote(unit, keep)] = (actor, unit, time.monotonic())
            done, _ = ray.wait(list(running), timeout=None if limit is None else 1.0)
            for reference in done:
                actor, unit, _ = running.pop(reference)
                idle.append(actor)
                progress(unit.images)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield lost(bench, unit, f"its worker or node was lost ({type(error).__name__}): run the same command again")
            for reference, (actor, unit, started) in list(running.items()):
                if limit is not None and time.monotonic() - started > limit * unit.images:
                    del running[reference]
                    ray.kill(actor, no_restart=True)
                    idle.append(remote.remote(bench))
                    progress(unit.images)
                    yield lost(bench, unit, f"took longer than the experiment's timeout of {limit:g} s an image")
    finally:
        for actor in [*idle, *(actor for actor, _, _ in running.values())]:
            ray.kill(actor, no_restart=True)
