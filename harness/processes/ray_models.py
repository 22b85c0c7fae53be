"""Models in actors of their own on a Ray cluster, with resources of their own: coders need CPU cores, models GPUs."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icmbench.harness.processes.heartbeats import worker_beating
from icmbench.harness.processes.model_client import MovedTask, use_remote_models
from icmbench.harness.processes.model_host import ModelHost, Request
from icmbench.harness.work.attempt import ModelError
from icmbench.harness.work.bench import Bench

RETRIES = 1  # How often Ray sends a request again whose actor or node was lost.
REPLACEMENT_SECONDS = 600.0  # Time in which a lost actor is placed again and has loaded its models.


class RayModelHost:
    """Lives in one Ray actor and holds all models. Arguments as of `icmbench.harness.processes.ray_executor.RayWorker`."""

    def __init__(self, bench: Bench, command: str) -> None:
        self._host = ModelHost(bench)
        self._beating = worker_beating(bench.folder, command, bench.activity)
        self._beating.__enter__()  # It ends with the actor, whose process is killed.

    def ready(self) -> None:
        """Return once the actor has been placed and the models are built."""

    def answer(self, request: Request) -> list[Any]:
        """See `ModelHost.answer`. Ray hands the arrays over in shared memory on one node, and copies them between nodes."""
        return self._host.answer(request)


@dataclass(frozen=True)
class RayModels:
    """The model actors of a run, as a coder actor reaches them; see `icmbench.harness.processes.model_client.Models`.

    Attributes:
        actors: handles of `RayModelHost` actors.
        moved: the tasks that they carry out, by label.
        homes: by label, the actors that hold the model of a task; see `icmbench.harness.processes.model_client.deal`.
        seconds_each: time that a request may take per image.
    """

    actors: Sequence[Any]
    moved: Mapping[str, MovedTask]
    homes: Mapping[str, Sequence[int]]
    seconds_each: float

    def connect(self, bench: Bench) -> None:
        """Let the tasks of this actor, and its codecs on a GPU, run in the model actors."""
        use_remote_models(bench, self.moved, self)

    def ask(self, request: Request, sticky: bool) -> list[Any]:
        """See `Models.ask`."""
        import ray

        homes = self.homes[request.name] if request.kind == "predict" else range(len(self.actors))
        turn = zlib.crc32(request.ids[0].encode()) if sticky else next(_turns)
        actor = self.actors[homes[turn % len(homes)]]
        limit = min(self.seconds_each * request.count + REPLACEMENT_SECONDS, 1e9)
        try:
            return list(ray.get(actor.answer.remote(request), timeout=limit))
        except ray.exceptions.GetTimeoutError as error:
            ray.kill(actor, no_restart=False)
            raise ModelError(f"{request.name}: the model took longer than {limit:.0f} s on {request.count} images") from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from None
            raise ModelError(" ".join(str(error).split())[:500]) from error
        except ray.exceptions.RayActorError as error:
            raise ModelError(f"{request.name}: the actor that holds the models was lost {RETRIES + 1} times on it") from error


_turns = itertools.count()  # Each coder asks the actors in turn.
