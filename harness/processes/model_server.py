"""A process that holds the models, on this machine: it takes requests from the coder processes over a socket, one after the other.

Each coder has a connection of its own, read by a thread; a queue puts the requests in order. Pixels lie in files that both sides
map (`icmbench.harness.processes.shared_pixels`), so that requests are small.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import queue
import struct
import threading
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np

from icmbench.harness.guests.families import end_with_parent, ignore_interrupts
from icmbench.harness.processes.heartbeats import worker_beating
from icmbench.harness.processes.model_address import BEGUN_MESSAGE, READY_MESSAGE, Address
from icmbench.harness.processes.model_host import ModelHost, Request
from icmbench.harness.processes.output import stdout_to_stderr
from icmbench.harness.processes.shared_pixels import PixelReader, PixelWriter
from icmbench.harness.work.attempt import ModelError, reason
from icmbench.harness.work.bench import Bench

OVERDUE_EXIT = 138  # Exit code of a process that ended itself because one request took too long.


def serve_models(pipe: Connection, bench: Bench, command: str, address: Address, key: bytes, seconds_each: float) -> None:
    """The main function of a model process; it ends with its parent.

    Args:
        pipe: to the parent, which is told that the process is ready, or why it cannot be.
        bench: the experiment.
        command: under this name the process says what it does.
        address: where to listen.
        key: without it nobody is answered.
        seconds_each: time that a request may take per image; the process ends itself if one takes longer.
    """
    ignore_interrupts()
    end_with_parent()
    with worker_beating(bench.folder, command, bench.activity), stdout_to_stderr():
        try:
            host = ModelHost(bench)
        except Exception as error:
            pipe.send(reason(error))
            return
        Path(address.socket).unlink(missing_ok=True)
        with Listener(address.socket, authkey=key) as listener:
            server = _Server(host, address, seconds_each)
            threading.Thread(target=server.accept, args=(listener,), daemon=True).start()
            pipe.send(READY_MESSAGE)
            server.work()


class _Server:
    """The queue of one model process."""

    def __init__(self, host: ModelHost, address: Address, seconds_each: float) -> None:
        self._host, self._seconds_each = host, seconds_each
        self._requests: queue.SimpleQueue[tuple[Connection, Request]] = queue.SimpleQueue()
        self._reader, self._writer = PixelReader(), PixelWriter(Path(address.socket).parent)
        self._length = _Length(address.queue)
        self._deadline = math.inf
        threading.Thread(target=self._end_when_overdue, daemon=True).start()

    def accept(self, listener: Listener) -> None:
        """Take connections for ever, each with a thread that reads its requests."""
        while True:
            with suppress(OSError, EOFError):  # A caller that died meanwhile, or one without the key.
                connection = listener.accept()
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def work(self) -> None:
        """Answer requests for ever, one after the other."""
        while True:
            connection, request = self._requests.get()
            with suppress(OSError):  # The coder has died.
                connection.send_bytes(BEGUN_MESSAGE)
            self._deadline = time.monotonic() + self._seconds_each * request.count
            answer = self._answer(request)
            self._deadline = math.inf
            self._length.add(-1)
            with suppress(OSError):  # The coder has died.
                connection.send_bytes(answer)

    def _read(self, connection: Connection) -> None:
        with suppress(OSError, EOFError):
            while True:
                request = connection.recv()
                self._length.add(1)
                self._requests.put((connection, request))

    def _answer(self, request: Request) -> bytes:
        """The pickled result, or the pickled exception."""
        try:
            images = [self._reader.read(file) for file in request.images]
            originals = None if request.originals is None else [self._reader.read(file) for file in request.originals]
            results = self._host.answer(replace(request, images=images, originals=originals))
            return pickle.dumps((True, [self._writer.write(r) if _is_picture(r) else r for r in results]))
        except (Exception, SystemExit) as error:
            return dump_error(error)

    def _end_when_overdue(self) -> None:
        while True:
            time.sleep(0.5)
            if time.monotonic() > self._deadline:
                os._exit(OVERDUE_EXIT)


def _is_picture(result: Any) -> bool:
    """Whether a result is a picture as codecs return them, which crosses in memory."""
    return isinstance(result, np.ndarray) and result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3


def dump_error(error: BaseException) -> bytes:
    """An exception as an answer: itself if it can be pickled and restored, otherwise its words."""
    try:
        data = pickle.dumps((False, error))
        pickle.loads(data)  # Some exceptions can be pickled but not restored.
        return data
    except Exception:
        return pickle.dumps((False, ModelError(reason(error))))


class _Length:
    """The number of waiting requests, in a file that the coders map."""

    def __init__(self, path: str) -> None:
        Path(path).write_bytes(struct.pack("q", 0))
        with Path(path).open("r+b") as file:
            self._map: Any = mmap.mmap(file.fileno(), 8)
        self._lock = threading.Lock()
        self._value = 0

    def add(self, number: int) -> None:
        """Count requests that came or went."""
        with self._lock:
            self._value += number
            self._map[:8] = struct.pack("q", self._value)
