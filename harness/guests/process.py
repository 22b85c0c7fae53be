"""A guest process, as the parent sees it: started, asked, watched, and ended with everything that it started."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from icmbench.harness.config.errors import UserError
from icmbench.harness.guests.environment import Environment
from icmbench.harness.guests.families import kill_family, marked_environment
from icmbench.harness.guests.packages import package_folders
from icmbench.harness.guests.side.guest import PROTOCOL, CannotCrossError, Channel, ProtocolError, SharedFile

GUEST_FILE = Path(__file__).parent / "side" / "guest.py"
START_SECONDS = 120.0  # Until the interpreter must have imported numpy; networks are loaded later.
POLL_SECONDS = 0.2
RETRIES = 2  # How often a request is sent again whose guest died over it.
TAIL_LINES = 15
SHARED_MEMORY = Path("/dev/shm")


class GuestDied(Exception):
    """The process of a guest ended, or was ended because it took too long. The text says how, and what it said last."""


class GuestOverdueError(GuestDied):
    """The process took too long, and was ended."""


class GuestProcess:
    """One running interpreter of an environment.

    Args:
        environment: where the interpreter is and what it sees.
        print_tracebacks: whether errors of the guest's code are printed with their traceback.

    Raises:
        UserError: the interpreter cannot be started, or is none that can be a guest.
    """

    def __init__(self, environment: Environment, print_tracebacks: bool = False) -> None:
        self.environment = environment
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._deadline = float("inf")
        files = [_unlinked_file(), _unlinked_file()]
        to_guest, from_guest = os.pipe(), os.pipe()
        theirs = [to_guest[0], from_guest[1], files[0].fileno(), files[1].fileno()]
        command = [environment.python, str(GUEST_FILE), *map(str, theirs), str(os.getpid())]
        variables, self._mark = marked_environment(environment.variables())
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=theirs,
                env=variables,
                cwd=environment.working_folder,
                start_new_session=True,
            )
        except OSError as error:
            for descriptor in (*to_guest, *from_guest):
                os.close(descriptor)
            raise UserError(f"{environment.key}.python: {environment.python} cannot be started: {error}") from error
        os.close(to_guest[0])
        os.close(from_guest[1])
        self._files = files
        self._ends: tuple[int, ...] = (from_guest[0], to_guest[1])
        incoming, outgoing = SharedFile(files[1].fileno()), SharedFile(files[0].fileno())
        self._channel = Channel(from_guest[0], to_guest[1], incoming, outgoing, self._wait)
        self._relay = threading.Thread(target=self._relay_output, daemon=True)
        self._relay.start()
        self._shake_hands(print_tracebacks)

    def ask(self, request: Mapping[str, Any], seconds: float) -> Any:
        """Send a request and wait for its answer.

        Args:
            request: as `icmbench.harness.guests.side.guest.Server` takes it.
            seconds: the process is ended if it takes longer.

        Returns:
            The answer: a mapping with `result` or `error`.

        Raises:
            GuestOverdueError: the process took too long. It is not there any more.
            GuestDied: the process ended, or sent what is no answer. It is not there any more either.
            CannotCrossError: the request holds what cannot cross.
        """
        self._deadline = time.monotonic() + seconds
        try:
            self._channel.send(dict(request))
            return self._channel.receive()
        except CannotCrossError:
            raise
        except ProtocolError as error:
            self.end()
            raise GuestDied(f"sent what is no answer: {error}") from error
        except TimeoutError as error:
            self.end()
            raise GuestOverdueError(f"took longer than {seconds:.3g} s and was ended") from error
        except (EOFError, OSError) as error:
            raise GuestDied(self._how_it_ended()) from error

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def end(self) -> None:
        """Kill the process with everything that it started, unless that was done before."""
        if not self._ends:
            return
        for descriptor in self._ends:
            os.close(descriptor)
        self._ends = ()
        for file in self._files:
            file.close()
        kill_family(self._mark, None)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._relay.join(1)

    def _shake_hands(self, print_tracebacks: bool) -> None:
        """Compare protocols and tell the guest what it sees. Raises UserError if that fails."""
        key, python = self.environment.key, self.environment.python
        self._deadline = time.monotonic() + START_SECONDS
        try:
            hello = self._channel.receive()
            if hello["protocol"] != PROTOCOL:
                raise ProtocolError(f"protocol {hello['protocol']} instead of {PROTOCOL}")
            self._channel.send(
                {
                    "path": list(map(str, self.environment.path)),
                    "packages": package_folders(),
                    "print_tracebacks": print_tracebacks,
                }
            )
            self._channel.receive()
        except (EOFError, OSError, ProtocolError) as error:
            took_too_long = isinstance(error, TimeoutError)
            how = f"was silent for {START_SECONDS:.0f} s" if took_too_long else self._how_it_ended()
            self.end()
            raise UserError(f"{key}: {python} {how}; a guest needs Python 3.8 or newer and numpy") from error

    def _wait(self, descriptor: int) -> None:
        """Wait until the guest has written something; a child that it left behind may hold its end of the pipe open."""
        while not select.select([descriptor], [], [], POLL_SECONDS)[0]:
            if time.monotonic() > self._deadline:
                raise TimeoutError
            if not self.is_alive() and not select.select([descriptor], [], [], 0)[0]:
                raise EOFError

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self.end()
        code = self._process.returncode
        ending = f"was killed by signal {-code} ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
        said = next((line for line in reversed(self._tail) if line.strip()), "")
        return f"{ending}; it said last: {said.strip()}" if said else ending

    def _relay_output(self) -> None:
        """Print what the guest and its libraries print, with the name of the environment before each line."""
        stream = self._process.stderr
        assert stream is not None
        label = self.environment.key.rpartition(".")[2]
        for line in iter(stream.readline, b""):
            text = line.decode(errors="replace").rstrip("\r\n")
            self._tail.append(text)
            with suppress(OSError, ValueError):
                print(f"[{label}] {text}", file=sys.stderr, flush=True)


class Guests:
    """The guest processes of this process: at most one for each environment, started when it is first needed."""

    def __init__(self) -> None:
        self._processes: dict[Environment, GuestProcess] = {}
        self._locks: dict[Environment, threading.RLock] = {}
        self._guard = threading.Lock()
        self._owner = os.getpid()
        self.print_tracebacks = False

    def lock(self, environment: Environment) -> threading.RLock:
        """Held while a request is under way: two threads may use codecs of one environment."""
        with self._guard:
            return self._locks.setdefault(environment, threading.RLock())

    def process(self, environment: Environment) -> GuestProcess:
        """The running process of an environment; another one if the last has ended. Raises UserError if none can be started."""
        with self.lock(environment):
            self._forget_those_of_a_parent()
            process = self._processes.get(environment)
            if process is None or not process.is_alive():
                if process is not None:
                    process.end()  # Children that it left behind may still live.
                process = self._processes[environment] = GuestProcess(environment, self.print_tracebacks)
            return process

    def end(self) -> None:
        """End all processes. They are started again when they are needed."""
        self._forget_those_of_a_parent()
        for environment in list(self._processes):
            with self.lock(environment):
                self._processes.pop(environment).end()

    def _forget_those_of_a_parent(self) -> None:
        """After a fork, the processes of the parent are not this process's to use."""
        if self._owner != os.getpid():
            self._processes.clear()
            self._owner = os.getpid()


GUESTS = Guests()


def call_with_retry(environment: Environment, call: Callable[[GuestProcess], Any], retries: int = RETRIES) -> Any:
    """Ask a guest, and ask its successors if it died meanwhile: it may have been killed through no fault of the request.

    Raises:
        GuestDied: it died over and over.
        UserError: no process can be started.
    """
    with GUESTS.lock(environment):
        for attempt in range(retries + 1):
            try:
                return call(GUESTS.process(environment))
            except GuestOverdueError:
                raise
            except GuestDied:
                if attempt == retries:
                    raise
        raise AssertionError("the loop returns or raises")


def _unlinked_file() -> IO[bytes]:
    """A file in memory without a name, so that nothing is left behind whoever is killed; on a disk where there is none."""
    folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK) else None
    return tempfile.TemporaryFile(dir=folder, buffering=0)


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return "unknown"
