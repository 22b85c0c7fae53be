"""An S3 server of moto and, in front of it, a proxy that holds every request back for a while: a network's latency on one machine.

    client -> proxy: each piece of a request waits 20 ms, pieces of one connection side by side -> moto -> client, without waiting

The proxy notes the requests, so that a slow program can be told from a slow server.
"""

import asyncio
import subprocess
import sys
import threading
import time
import urllib.request

REQUEST_STARTS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
SERVER = """
import logging, sys, time
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class MotoProcess:
    """moto in a process of its own, so that its processor time is known. Use it as a context.

    Attributes:
        port: where it listens on 127.0.0.1.
        pid: its process.
    """

    def __enter__(self):
        self._process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port, self.pid = int(self._process.stdout.readline()), self._process.pid
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()


class SlowProxy:
    """Forwards connections to a port of this machine. Use it as a context.

    Args:
        port: where the server listens on 127.0.0.1.
        seconds: how long each piece of a request waits.

    Attributes:
        port: where it listens itself.
        requests: when each request came, in seconds of the monotonic clock, and its first line.
    """

    def __init__(self, port, seconds):
        self._server_port, self._seconds, self.requests = port, seconds, []

    def __enter__(self):
        self._loop, started = asyncio.new_event_loop(), threading.Event()

        async def serve():
            server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            started.set()

        self._loop.create_task(serve())
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        started.wait()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _connect(self, client_reader, client_writer):
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        waiting = asyncio.Queue()
        await asyncio.gather(
            self._receive(client_reader, waiting), self._deliver(waiting, writer), self._answer(reader, client_writer)
        )

    async def _receive(self, reader, waiting):
        while data := await self._read(reader):
            if data.startswith(REQUEST_STARTS):
                self.requests.append((time.monotonic(), data.partition(b"\r\n")[0].decode()))
            await waiting.put((time.monotonic() + self._seconds, data))
        await waiting.put((0.0, b""))

    async def _deliver(self, waiting, writer):
        while True:
            due, data = await waiting.get()
            if not data:
                break
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            writer.write(data)
        writer.close()

    async def _answer(self, reader, writer):
        while data := await self._read(reader):
            writer.write(data)
        writer.close()

    async def _read(self, reader):
        try:
            return await reader.read(2**20)
        except ConnectionError:
            return b""


def request_seconds(port, count=50):
    """Mean seconds of a request that finds nothing, one after the other."""
    start = time.perf_counter()
    for k in range(count):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/nothing/{k}")
        except urllib.error.HTTPError:
            continue
    return (time.perf_counter() - start) / count
