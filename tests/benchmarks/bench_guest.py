"""What it costs that a codec lives in a guest: seconds of a call that computes nothing, as multiples of copying the image.

    python tests/benchmarks/bench_guest.py [--python PATH] [--repeats 200]

An adapter takes an image and gives back a few bytes, and gives back an image for them. `compress` moves the pixels of an image to
the guest, `decompress` those of an image back. Both are timed for one photograph of 768 x 512 pixels, for a batch of eight, and for
one picture of 20 MB. The goal is at most five copies of the image for each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from icmbench.harness.guests.environment import Environment
from icmbench.harness.guests.plugin import adapter_plugin
from icmbench.harness.guests.process import GUESTS

ADAPTER = """
import numpy as np

class Echo:
    def __init__(self, point):
        self.pictures = []
    def compress(self, image):
        self.pictures = [image]
        return b"stream"
    def decompress(self, data):
        return self.pictures[0]
    def compress_batch(self, images, ids):
        self.pictures = images
        return [b"stream"] * len(images)
    def decompress_batch(self, streams):
        return self.pictures
"""


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after three that do not count."""
    seconds = []
    for turn in range(repeats + 3):
        start = time.perf_counter()
        call()
        if turn >= 3:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Print one line for each kind of call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "echo.py"
        path.write_text(ADAPTER)
        plugin, _ = adapter_plugin("codecs", {"file": str(path)}, "bench", Environment("bench", options.python), Path(folder))
        codec = plugin(point=1)
        photograph, large = (512, 768, 3), (2500, 2700, 3)
        for name, shape, count in (("768x512", photograph, 1), ("eight of 768x512", photograph, 8), ("20 MB", large, 1)):
            images = [np.random.default_rng(k).integers(0, 256, shape, np.uint8) for k in range(count)]
            ids = [str(k) for k in range(count)]

            def compress(images: list[np.ndarray] = images, ids: list[str] = ids) -> object:
                return codec.compress(images[0]) if len(images) == 1 else codec.compress_batch(images, ids)

            def decompress(count: int = count) -> object:
                return codec.decompress(b"stream") if count == 1 else codec.decompress_batch([b"stream"] * count)

            def copy(images: list[np.ndarray] = images) -> list[np.ndarray]:
                return [image.copy() for image in images]

            copied = median_seconds(copy, options.repeats)
            for what, call in (("compress", compress), ("decompress", decompress)):
                seconds = median_seconds(call, options.repeats)
                print(f"{name}: {what} {1e3 * seconds:.3f} ms, a copy {1e3 * copied:.3f} ms: {seconds / copied:.1f} copies")
        GUESTS.end()


if __name__ == "__main__":
    main()
