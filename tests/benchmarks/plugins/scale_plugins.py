"""Plug-ins of another package for runs of any size: a codec that costs microseconds, and models of which only names are used.

`icmbench.codecs` and `icmbench.models` find them by entry point, in every process that has this folder on its PYTHONPATH.
"""

import hashlib

import numpy as np

from icmbench.codecs.base import RatePoint, fingerprint
from icmbench.tasks.base import fingerprint as task_fingerprint

CATEGORIES = tuple(f"category {k}" for k in range(80))
SIDE = 32  # Of every image, in pixels.


class Synthetic:
    """Streams that are digests of the pixels, and reconstructions that are the stream repeated; `point` times 16 bytes long."""

    name = "synthetic"

    def __init__(self, point: int, number: int = 0):
        self.point = RatePoint.of("q", point)
        self.fingerprint = fingerprint(codec=self.name, point=point, number=number)
        self._size, self._number = 16 * point + 4 * number, number

    def compress(self, image):
        return self.stream(hashlib.sha256(np.ascontiguousarray(image).data).hexdigest())

    def stream(self, sha256):
        """The stream of an image of which only a hash is known."""
        return hashlib.shake_128(f"{self._number} {self._size} {sha256}".encode()).digest(self._size + int(sha256[0], 16))

    def decompress(self, data):
        return np.resize(np.frombuffer(data, np.uint8), (SIDE, SIDE, 3))

    def rate_breakdown(self, data):
        return {"header": 64, "y": 8 * len(data) - 96, "z": 32}


class Classifier:
    """A classifier of which only fingerprint and class names are used."""

    task = "classification"

    def __init__(self):
        self.fingerprint = task_fingerprint(model="synthetic-classifier")
        self.categories = [f"class {k}" for k in range(1000)]


class Detector:
    """A detector of which only fingerprint and category names are used."""

    task = "detection"

    def __init__(self):
        self.fingerprint = task_fingerprint(model="synthetic-detector")
        self.categories = CATEGORIES
