"""Units on a Ray cluster: actors that keep their codecs and models, placed by CPU cores and GPUs.

The environment variable RAY_ADDRESS names an existing cluster; without it a local one is started. Only the names of cells travel
over Ray's network: workers read images and write shards themselves. Datasets and run folder must therefore lie on a shared disk or
in an object store.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.plugins import explain_missing_package
from icmbench.harness.processes.executors import UnitOutcome
from icmbench.harness.processes.heartbeats import worker_beating
from icmbench.harness.processes.model_client import deal, move_tasks
from icmbench.harness.processes.pool import THREAD_COUNT_VARIABLES, Staff
from icmbench.harness.processes.ray_models import RETRIES, RayModelHost, RayModels
from icmbench.harness.processes.retries import RetryPolicy, failed_unit
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.loop import WorkUnit, compute_units
from icmbench.harness.work.outcome import Outcome

# Workers that a unit of one series may lose before it is reported as failed. It is one more than in a local pool, because whole
# nodes of a cluster may be lost too.
MAX_LOSSES = 3
START_SECONDS = 1800.0  # Time until the models must be loaded: a cluster may have to start nodes first.
MAX_FAILED_STARTS_EACH = 3  # Failed starts per worker tolerated before any worker has come up.


class RayWorker:
    """Lives in one Ray actor and builds its codecs and models once.

    Args:
        bench: the experiment's codecs, tasks and store.
        command: under this name the actor says what it does; see `icmbench.harness.processes.heartbeats`.
        models: actors that hold the models; None if this one holds them itself.
    """

    extra = "ray"

    def __init__(self, bench: Bench, command: str, models: RayModels | None = None) -> None:
        self.bench = bench
        if models is not None:
            models.connect(bench)
        self._beating = worker_beating(bench.folder, command, bench.activity)
        self._beating.__enter__()  # It ends with the actor, whose process is killed.

    def ready(self) -> None:
        """Return once the actor has been placed and runs."""

    def run(self, unit: WorkUnit, keep: bool) -> Outcome:
        """Compute one unit; `keep` stores every reconstruction as a lossless picture."""
        [outcome] = compute_units(self.bench, [unit], keep)
        return outcome


def ray_cluster(
    bench: Bench, units: Sequence[WorkUnit], keep: bool, command: str, staff: Staff, gpus: float
) -> Iterator[UnitOutcome]:
    """Compute units on actors of a Ray cluster, each of which has one unit at a time.

    Units wait here until an actor runs and is idle. An actor whose process or node is lost is replaced as soon as the cluster has
    room, and its unit is tried again or reported as failed by the rules of `RetryPolicy`.

    Args:
        bench: the experiment's codecs, tasks and store.
        units: what to compute.
        keep: whether to store every reconstruction as a lossless picture.
        command: under this name the actors say what they do; see `icmbench.harness.processes.heartbeats`.
        staff: how many actors; no more workers are started than there are units.
        gpus: GPUs of each actor that holds models; a fraction lets actors share one.

    Yields:
        Each unit with its outcome, in the order in which they end.

    Raises:
        UserError: ray is not installed, the cluster has no room for so many workers, or workers cannot start on it.
    """
    with explain_missing_package("--executor ray", RayWorker):
        import ray
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, configure_logging=False)
    workers = min(staff.workers, len(units))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    policy = RetryPolicy(bench.experiment.timeout, MAX_LOSSES, MAX_FAILED_STARTS_EACH * workers)
    if staff.models:
        check_room(nodes, workers, staff.models, gpus)
        models = _start_models(ray, bench, command, staff, gpus)
        actor_class = ray.remote(RayWorker).options(num_cpus=1, runtime_env=_threads(1))
        patience = 1 + math.ceil(workers / staff.models)
    else:
        models, patience = None, 1
        cores = cores_each(nodes, workers, gpus)
        actor_class = ray.remote(RayWorker).options(num_cpus=cores, num_gpus=gpus, runtime_env=_threads(cores))
    try:
        yield from _RayPool(ray, actor_class, (bench, command, models), keep, policy, patience).compute(units, workers)
    finally:
        for actor in models.actors if models else ():
            ray.kill(actor)


def _threads(cores: int) -> dict[str, Any]:
    """The environment of actors of so many cores."""
    return {"env_vars": dict.fromkeys(THREAD_COUNT_VARIABLES, str(cores))}


def _start_models(ray: Any, bench: Bench, command: str, staff: Staff, gpus: float) -> RayModels:
    """Start actors that hold the models, and wait until they are built. Raises UserError if they cannot be."""
    options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": RETRIES, "runtime_env": _threads(1)}
    moved = move_tasks(bench)
    homes = deal([*moved], staff.models, staff.shares)
    held = [[label for label, places in homes.items() if k in places] for k in range(staff.models)]
    actors = [ray.remote(RayModelHost).options(**options).remote(bench.with_tasks(labels), command) for labels in held]
    try:
        ray.get([actor.ready.remote() for actor in actors], timeout=START_SECONDS)
    except (ray.exceptions.RayError, TimeoutError) as error:
        for actor in actors:
            ray.kill(actor)
        raise UserError(f"the models cannot be loaded on the Ray cluster: {' '.join(str(error).split())[:500]}") from None
    timeout = bench.experiment.timeout
    return RayModels(actors, moved, homes, math.inf if timeout is None else timeout)


class _RayPool:
    """The actors of one run, and what each is computing.

    `calls` holds the running calls by Ray reference: the actor, its unit (None while the actor starts), and the time of the call.
    """

    def __init__(
        self,
        ray: Any,
        actor_class: Any,
        arguments: tuple[Bench, str, RayModels | None],
        keep: bool,
        policy: RetryPolicy,
        patience: float,
    ) -> None:
        self.ray, self.actor_class, self.arguments, self.keep, self.policy = ray, actor_class, arguments, keep, policy
        self.bench, self.patience = arguments[0], patience
        self.calls: dict[Any, tuple[Any, WorkUnit | None, float]] = {}
        self.idle: list[Any] = []
        self.waiting: list[WorkUnit] = []

    def compute(self, units: Sequence[WorkUnit], workers: int) -> Iterator[UnitOutcome]:
        """Start the actors, and yield each unit with its outcome as it ends."""
        self.waiting = list(reversed(units))
        for _ in range(workers):
            self._start_actor()
        try:
            while self.waiting or self._any_computing():
                while self.waiting and self.idle:
                    actor, unit = self.idle.pop(), self.waiting.pop()
                    self.calls[actor.run.remote(unit, self.keep)] = (actor, unit, time.monotonic())
                done, _ = self.ray.wait(list(self.calls), timeout=None if self.bench.experiment.timeout is None else 1.0)
                yield from [*self._collect(done), *self._end_overdue()]
        finally:
            for actor in [*self.idle, *(actor for actor, _, _ in self.calls.values())]:
                self.ray.kill(actor)

    def _any_computing(self) -> bool:
        return any(unit is not None for _, unit, _ in self.calls.values())

    def _start_actor(self) -> None:
        actor = self.actor_class.remote(*self.arguments)
        self.calls[actor.ready.remote()] = (actor, None, time.monotonic())

    def _collect(self, references: Sequence[Any]) -> Iterator[tuple[WorkUnit, Outcome]]:
        """Outcomes of calls that returned or whose actor was lost; lost actors are replaced."""
        for reference in references:
            actor, unit, _ = self.calls.pop(reference)
            try:
                outcome = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                any_up = unit is not None or bool(self.idle) or self._any_computing()
                self.ray.kill(actor)
                if self.policy.cannot_start(any_worker_up=any_up):
                    message = " ".join(str(error).split())[:500]
                    raise UserError(f"workers cannot start on the Ray cluster: {message}") from None
                self._start_actor()
                if unit is not None and not self._requeue(self.policy.after_loss(unit)):
                    times = f"{MAX_LOSSES} times ({type(error).__name__})"
                    yield unit, failed_unit(self.bench, unit, f"its worker or node was lost {times}: run the same command again")
                continue
            self.idle.append(actor)
            if unit is not None:
                yield unit, outcome

    def _end_overdue(self) -> Iterator[tuple[WorkUnit, Outcome]]:
        """Outcomes of units that exceeded their time limit; their actors are replaced."""
        for reference, (actor, unit, started) in list(self.calls.items()):
            if unit is not None and time.monotonic() - started > self.policy.time_limit(unit) * self.patience:
                del self.calls[reference]
                self.ray.kill(actor)
                self._start_actor()
                if not self._requeue(self.policy.after_timeout(unit)):
                    yield unit, failed_unit(self.bench, unit, self.policy.overdue_reason)

    def _requeue(self, replacements: list[WorkUnit]) -> bool:
        """Queue what runs instead of a lost unit; whether there is anything."""
        self.waiting += replacements
        return bool(replacements)


def check_room(nodes: Sequence[dict[str, float]], coders: int, models: int, gpus: float) -> None:
    """Refuse coders and models, each of one core, that do not fit on the cluster together.

    Args:
        nodes: resources of each node, with `CPU` and `GPU` as counts.
        coders: number of actors that encode and decode.
        models: number of actors that hold models.
        gpus: GPUs of each of the latter.

    Raises:
        UserError: they do not fit.
    """
    cores_each(nodes, models, gpus)
    total = int(sum(node.get("CPU", 0) for node in nodes))
    if total < coders + models:
        raise UserError(f"--coders {coders} --models {models}: the Ray cluster has {total} cores; ask for fewer or add nodes")


def cores_each(nodes: Sequence[dict[str, float]], workers: int, gpus: float) -> int:
    """The most CPU cores that each worker may take so that all workers fit on the cluster.

    Args:
        nodes: resources of each node, with `CPU` and `GPU` as counts.
        workers: number of workers to place.
        gpus: GPUs of each worker.

    Returns:
        Cores per worker, at least 1.

    Raises:
        UserError: the workers do not fit even with one core each.
    """

    def room(cores: int) -> int:
        """Number of workers of so many cores that fit on the cluster."""
        by_gpu = (int(node.get("GPU", 0) / gpus + 1e-9) if gpus else workers for node in nodes)
        return sum(min(int(node.get("CPU", 0) // cores), most) for node, most in zip(nodes, by_gpu, strict=True))

    most = int(max((node.get("CPU", 0) for node in nodes), default=0))
    fitting = [cores for cores in range(1, most + 1) if room(cores) >= workers]
    if not fitting:
        each = f"one core and {gpus:g} GPUs" if gpus else "one core"
        fits = room(1) if most else 0
        raise UserError(f"--workers {workers}: the Ray cluster has room for {fits} workers of {each}; ask for fewer or add nodes")
    return fitting[-1]
