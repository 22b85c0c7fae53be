"""An adapter file, and an experiment whose codec and model live in guests."""

import sys

import pytest

ADAPTER = '''
"""The upper bits of each pixel, packed by zlib, with the misbehaviour that a test asks for."""
import ctypes, os, struct, subprocess, sys, time, zlib
from pathlib import Path
import numpy as np


class BitstreamError(ValueError):
    pass


def note(line):
    with open(os.environ["ICMBENCH_CALLS"], "a") as file:
        file.write(line + "\\n")


class Bits:
    name = "bits"
    default_points = (2, 4)

    def __init__(self, point, table: Path = None, trouble: str = "", device: str = "cpu"):
        self.bits, self.trouble = point, trouble
        self.table = table.read_bytes() if table else b""
        self.fingerprint = {"version": 1}
        note("make %s in %d" % (point, os.getpid()))

    def compress(self, image):
        note("compress")
        if self.trouble == "print":
            print("from Python")
            os.write(1, b"from C\\n")
        if self.trouble == "slow":
            time.sleep(0.02)
        if self.trouble and image.mean() < 100:  # The third picture is dark.
            self.fail()
        return struct.pack("<HH", *image.shape[:2]) + zlib.compress((image >> (8 - self.bits)).tobytes())

    def fail(self):
        if self.trouble == "crash":
            ctypes.string_at(0)
        if self.trouble == "exit":
            sys.exit(0)
        if self.trouble == "error":
            raise ValueError("too dark")
        if self.trouble == "memory":
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
        if self.trouble == "hang":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
            note("child %d" % child.pid)
            time.sleep(1000)

    def decompress(self, data):
        note("decompress")
        try:
            height, width = struct.unpack_from("<HH", data)
            pixels = np.frombuffer(zlib.decompress(data[4:]), np.uint8).reshape(height, width, 3)
        except (struct.error, zlib.error, ValueError) as error:
            raise BitstreamError(str(error)) from error
        return pixels << (8 - self.bits)
'''

MODEL = """
import os
import numpy as np


class Brightness:
    task = "mean-colour"
    fingerprint = "brightness"

    def __call__(self, images):
        return [image.mean(axis=(0, 1)) for image in images]
"""


@pytest.fixture
def adapter(tmp_path, calls):
    path = tmp_path / "adapter.py"
    path.write_text(ADAPTER)
    return path


@pytest.fixture
def guest_experiment(experiment, adapter):
    """Writes an experiment whose codec `bits` is a guest; `options` go to the adapter, `environment` to its environment."""

    def write(options=None, environment=None, points=(4,), **changes):
        section = {"name": "guest", "environment": "own", "label": "bits", "points": list(points)}
        section["set"] = {"file": "adapter.py", **(options or {})}
        environments = {"own": {"python": sys.executable, **(environment or {})}}
        tasks = [{"name": "distance", "dataset": "photos"}]
        codecs = [section, {"name": "shift", "points": [4]}]
        sections = {"environments": environments, "codecs": codecs, "tasks": tasks, "anchor": None, "bootstrap": 0}
        return experiment(**{**sections, **changes})

    return write
