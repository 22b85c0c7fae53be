"""The processes that hold the models, as the parent process sees them: started, watched, replaced when they die, and ended."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from icmbench.harness.config.devices import VISIBLE
from icmbench.harness.config.errors import UserError
from icmbench.harness.guests.families import environment, kill_family, new_family
from icmbench.harness.processes.estimate import print_progress
from icmbench.harness.processes.model_address import READY_MESSAGE, Address
from icmbench.harness.processes.model_client import ModelsAddress, deal, move_tasks
from icmbench.harness.processes.model_server import serve_models
from icmbench.harness.processes.shared_pixels import make_folder
from icmbench.harness.work.bench import Bench

START_SECONDS = 600.0  # Seconds until the models must be loaded.
MAX_LOSSES_IN_A_ROW = 5  # Processes of one number that may die before they were ready; then the run ends.
LEAST_REPLACEMENT_SECONDS = 60.0
GRACE_SECONDS = 5.0


class ModelProcesses:
    """Model processes, as a context. All are ready when it begins.

    Args:
        bench: sent to each process.
        count: how many.
        gpus: GPUs that are dealt to them, as CUDA_VISIBLE_DEVICES names them; by default all see the same ones.
        command: under this name they say what they do; see `icmbench.harness.processes.heartbeats`.
        variables: further environment variables, such as the number of threads.
        shares: whether each holds a share of the models instead of all; see `icmbench.harness.processes.model_client.deal`.

    Attributes:
        address: how coder processes reach them.
        replacement_seconds: how long a coder should wait for one that was lost, judged by how long the first ones took.
    """

    def __init__(
        self, bench: Bench, count: int, gpus: Sequence[str], command: str, variables: Mapping[str, str], shares: bool
    ) -> None:
        self._bench, self._gpus, self._command, self._variables = bench, gpus, command, variables
        self._folder = make_folder()
        moved = move_tasks(bench)
        homes = deal([*moved], count, shares)
        addresses = tuple(Address.of(self._folder, k) for k in range(count))
        self.address = ModelsAddress(addresses, os.urandom(16), self._folder, moved, homes)
        self._processes: list[_ModelProcess] = []
        self._early_losses = 0
        self.replacement_seconds = LEAST_REPLACEMENT_SECONDS

    def __enter__(self) -> ModelProcesses:
        self._processes = [self._start(k) for k in range(len(self.address.addresses))]
        start = time.monotonic()
        deadline = start + START_SECONDS
        try:
            while not all(process.is_ready() for process in self._processes):
                self.replace_dead()
                if time.monotonic() > deadline:
                    raise UserError(f"the processes that hold the models were not ready after {START_SECONDS:.0f} s")
                time.sleep(0.05)
        except BaseException:
            self._stop()
            raise
        self.replacement_seconds = LEAST_REPLACEMENT_SECONDS + 2 * (time.monotonic() - start)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def replace_dead(self) -> None:
        """Start another process for each that has died.

        Raises:
            UserError: a model cannot be loaded, or processes die again and again before they are ready.
        """
        for index, process in enumerate(self._processes):
            ready = process.is_ready()
            self._early_losses = 0 if ready else self._early_losses
            if process.process.is_alive():
                continue
            self._early_losses += not ready
            if self._early_losses > MAX_LOSSES_IN_A_ROW:
                code = process.process.exitcode
                raise UserError(
                    f"the processes that hold the models die while they start (exit code {code}): is there memory for them?"
                )
            print_progress(f"model process {index + 1} (process {process.process.pid}) died and is replaced")
            process.stop()
            self._processes[index] = self._start(index)

    def _start(self, index: int) -> _ModelProcess:
        variables = dict(self._variables)
        if self._gpus:
            variables[VISIBLE] = self._gpus[index % len(self._gpus)]
        with environment(variables):  # A spawned child reads it before torch starts.
            held = [label for label, homes in self.address.homes.items() if index in homes]
            process = _ModelProcess(self._bench.with_tasks(held), self._command, self.address.addresses[index], self.address.key)
        if self._gpus:
            print_progress(f"model process {index + 1} (process {process.process.pid}) has GPU {variables[VISIBLE]}")
        return process

    def _stop(self) -> None:
        for process in self._processes:
            process.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


class _ModelProcess:
    """One process, which is started at once."""

    def __init__(self, bench: Bench, command: str, address: Address, key: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_end = context.Pipe()
        seconds_each = math.inf if bench.experiment.timeout is None else bench.experiment.timeout
        arguments: tuple[Any, ...] = (child_end, bench, command, address, key, seconds_each)
        self.process = context.Process(target=serve_models, args=arguments)
        with new_family() as self._mark:
            self.process.start()
        child_end.close()
        self._ready = False

    def is_ready(self) -> bool:
        """Whether the models are built. Raises UserError with the reason if they cannot be."""
        connection: Connection = self._pipe
        try:
            if not self._ready and connection.poll():
                message = connection.recv()
                if message != READY_MESSAGE:
                    raise UserError(str(message))
                self._ready = True
        except (EOFError, OSError):
            return False
        return self._ready

    def stop(self) -> None:
        """Kill the process and everything that it started."""
        pid = self.process.pid if self.process.is_alive() else None
        kill_family(self._mark, pid)
        if pid is not None:
            self.process.kill()
            self.process.join(GRACE_SECONDS)
        self._pipe.close()
