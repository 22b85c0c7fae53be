"""Plug-ins of another package, found by entry point: small codecs with one peculiarity each, and tasks that cost nothing.

Every call of a codec or model appends a line to the file that ICMBENCH_CALLS names, in whatever process it happens.
"""

import ctypes
import os
import resource
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from icmbench.codecs.base import BitstreamError, RatePoint, fingerprint
from icmbench.tasks.base import MetricSpec, Task
from icmbench.tasks.base import fingerprint as task_fingerprint


def log_call(description):
    if "ICMBENCH_CALLS" in os.environ:
        with Path(os.environ["ICMBENCH_CALLS"]).open("a") as file:
            file.write(description + "\n")


class Shift:
    """Drops the low bits of each sample and compresses the result with zlib."""

    name = "shift"
    default_points = (6, 4, 2)

    def __init__(self, point, seed=0):
        self.point = RatePoint.of("bits", 8 - point)
        self.fingerprint = fingerprint(codec=self.name, point=point)
        self.shift, self.seed = point, seed

    def compress(self, image):
        log_call(f"compress {self.name}")
        time.sleep(float(os.environ.get("ICMBENCH_SLOW_CODEC", 0)))  # Gives a test time to interrupt a run.
        return bytes(np.array(image.shape, "<u4")) + zlib.compress((image >> self.shift).tobytes())

    def decompress(self, data):
        log_call(f"decompress {self.name}")
        try:
            shape = np.frombuffer(data[:12], "<u4")
            return np.frombuffer(zlib.decompress(data[12:]), np.uint8).reshape(shape) << self.shift
        except (ValueError, zlib.error) as error:
            raise BitstreamError(str(error)) from error

    def rate_breakdown(self, data):
        return {"header": 96, "y": 8 * len(data) - 96}


class Shaky(Shift):
    """Decodes a stream to other pixels every time, as a diffusion decoder on a GPU does."""

    name = "shaky"
    deterministic = False

    def decompress(self, data):
        image = super().decompress(data)
        return image ^ np.frombuffer(os.urandom(image.size), np.uint8).reshape(image.shape) % 4


class Estimating:
    """Drops the low bits of each sample and estimates the bits that are left, without a coder; `habit` makes it misbehave."""

    name = "estimating"
    default_points = (6, 4, 2)

    def __init__(self, point, habit: str = "", scale: float = 1.0, seed=0):
        self.point = RatePoint.of("bits", 8 - point)
        self.fingerprint = fingerprint(codec=self.name, point=point, habit=habit, scale=scale)
        self.shift, self.habit, self.scale = point, habit, scale

    def reconstruct(self, image):
        log_call(f"reconstruct {self.name}")
        time.sleep(float(os.environ.get("ICMBENCH_SLOW_CODEC", 0)))
        if image.mean() < 100 and self.habit == "picky":
            raise ArithmeticError("too dark")
        pixels = image >> self.shift << self.shift
        bits = self.scale * self.bits_of(image)
        odd = {
            "nan": (pixels, float("nan")),
            "infinite": (pixels, np.float32("inf")),
            "zero": (pixels, 0),
            "negative": (pixels, -1.0),
            "text": (pixels, "24"),
            "array": (pixels, np.ones(2)),
            "truth": (pixels, True),
            "pixels": pixels,
            "three": (pixels, bits, bits),
            "floats": (pixels / 255, bits),
            "small": (pixels[:-1], bits),
            "random": (pixels ^ np.frombuffer(os.urandom(image.size), np.uint8).reshape(image.shape) % 4, bits),
        }
        return odd.get(self.habit, (pixels, bits))

    def bits_of(self, image):
        """The empirical entropy of the samples that are left, in bits: never a whole number of bytes."""
        counts = np.bincount((image >> self.shift).ravel())
        shares = counts[counts > 0] / image.size
        return float(image.size * -(shares * np.log2(shares)).sum() + 0.3)


class EstimatingInBatches(Estimating):
    """Estimates like `estimating`, several images at once, and can run out of memory or lose one."""

    name = "estimating-in-batches"

    def reconstruct_batch(self, images, ids):
        assert len(images) == len(ids)
        log_call(f"batch of {len(images)}")
        if len(images) > 1 and self.habit == "hungry":
            raise MemoryError
        return [self.reconstruct(image) for image in images][self.habit == "fewer" :]


class EstimatingShaky(Estimating):
    """Estimates like `estimating`, and reconstructs an image to other pixels and bits every time."""

    name = "estimating-shaky"
    deterministic = False

    def reconstruct(self, image):
        image, bits = super().reconstruct(image)
        noise = np.frombuffer(os.urandom(image.size), np.uint8).reshape(image.shape) % 4
        return image ^ noise, bits + float(noise.mean())


class EstimatingOnGpu(Estimating):
    """Estimates like `estimating`, says that its networks run on a GPU, and writes down in which process it works."""

    name = "estimating-on-gpu"
    device = "cuda"

    def reconstruct(self, image):
        log_call(f"coded in {os.getpid()} with GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}")
        return super().reconstruct(image)


class BothWays(Shift):
    """Writes streams and estimates its rate as well, which a codec must not."""

    name = "both-ways"

    def reconstruct(self, image):
        return image, 1.0


def _gpus_seen():
    path = os.environ.get("ICMBENCH_CALLS")
    lines = Path(path).read_text().splitlines() if path else []
    return len({line.rpartition(" ")[2] for line in lines if line.startswith("coded in")})


class OnGpu(Shift):
    """Says that its networks run on a GPU, and writes down in which process it works and which GPU that sees."""

    name = "on-gpu"
    device = "cuda"

    def compress(self, image):
        log_call(f"coded in {os.getpid()} with GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}")
        deadline = time.monotonic() + 120
        while _gpus_seen() < int(os.environ.get("ICMBENCH_MEET", 0)) and time.monotonic() < deadline:
            time.sleep(0.05)  # Until so many workers have come up: otherwise the first ones may do all the work.
        return super().compress(image)


class Daemon(Shift):
    """Leaves a process behind that has a session of its own and no parent any more, and then takes its own process down."""

    name = "daemon"

    def compress(self, image):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "86399"])
            os._exit(0)
        os.wait()
        time.sleep(0.3)
        ctypes.string_at(0)


class Vague(Shift):
    """Leaves its rate point out of its fingerprint."""

    name = "vague"

    def __init__(self, point):
        super().__init__(point)
        self.fingerprint = fingerprint(codec=self.name)


class Small(Shift):
    """Decodes to a picture of the wrong size."""

    name = "small"

    def decompress(self, data):
        return super().decompress(data)[:-1]


class Picky(Shift):
    """Cannot code dark pictures while ICMBENCH_PICKY is set."""

    name = "picky"

    def compress(self, image):
        if image.mean() < 100 and "ICMBENCH_PICKY" in os.environ:
            raise ArithmeticError("too dark")
        return super().compress(image)


class Stuck(Shift):
    """Hangs on the third picture."""

    name = "stuck"

    def compress(self, image):
        while image.mean() < 100:
            time.sleep(1)
        return super().compress(image)


class Crash(Shift):
    """Takes its process down on the third picture."""

    name = "crash"

    def compress(self, image):
        if image.mean() < 100:
            ctypes.string_at(0)  # a segmentation fault
        return super().compress(image)


class Clinging(Crash):
    """Takes its process down and leaves a child process behind, which holds the files and pipes of its parent open."""

    name = "clinging"

    def compress(self, image):
        if image.mean() < 100 and not os.fork():
            log_call(f"left {os.getpid()}")
            time.sleep(300)
            os._exit(0)
        return super().compress(image)


class Quitting(Shift):
    """Ends the program on the third picture with the exit code of success."""

    name = "quitting"

    def compress(self, image):
        return sys.exit(0) if image.mean() < 100 else super().compress(image)


class Verbose(Shift):
    """Raises an error with a very long message."""

    name = "verbose"

    def compress(self, image):
        raise ArithmeticError("no! " * 2**18)


class Odd(Shift):
    """Returns a value of the wrong type, shape or number."""

    name = "odd"

    def __init__(self, point, habit: str):
        super().__init__(point)
        self.fingerprint += habit
        self.habit = habit

    def compress(self, image):
        data = super().compress(image)
        return {"text": "bits", "nothing": b"", "none": None, "array": np.zeros(3)}.get(self.habit, data)

    def decompress(self, data):
        image = super().decompress(data)
        odd = {"floats": image / 255, "grey": image[..., 0], "list": image.tolist(), "rotated": image[:, ::-1].swapaxes(0, 1)}
        return odd.get(self.habit, image)

    def compress_batch(self, images, ids):
        return [self.compress(image) for image in images][self.habit == "fewer" :]


class Leaky(Shift):
    """Allocates 60 MB for every picture and never frees them, in a process whose memory is limited to five pictures."""

    name = "leaky"
    kept = []  # noqa: RUF012

    def compress(self, image):
        if not self.kept:
            room = psutil.Process().memory_info().vms + 340 * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
        self.kept.append(np.ones(60 * 2**20, np.uint8))
        return super().compress(image)


class Opener(Shift):
    """Opens a file in its constructor, without checking that it exists."""

    name = "opener"

    def __init__(self, point, table: str):
        super().__init__(point)
        self.table = Path(table).read_text()


class Chatty(Shift):
    """Prints to standard output in three ways, and runs out of memory on a batch of more than two images."""

    name = "chatty"

    def compress_batch(self, images, ids):
        print("CHATTER of Python")
        os.write(1, b"CHATTER of the system\n")
        ctypes.CDLL(None).puts(b"CHATTER of C")
        if len(images) > 2:
            raise MemoryError
        return [self.compress(image) for image in images]


class Averager:
    """Mean colour of each image."""

    task = "mean-colour"

    def __init__(self, weight: Path | None = None):
        self.fingerprint = task_fingerprint(model="averager")

    def __call__(self, images):
        for _ in images:
            log_call("model")
        return [image.mean(axis=(0, 1)) for image in images]


class DrawnAverager(Averager):
    """Mean colour of each image, for the task that draws."""

    task = "drawn"


class Loader(Averager):
    """Mean colour of each image; the model is loaded at its first call and takes ICMBENCH_SLOW seconds per image."""

    loaded = False

    def __call__(self, images):
        if not self.loaded:
            log_call(f"load {os.getpid()}")
            self.loaded = True
        time.sleep(float(os.environ.get("ICMBENCH_SLOW", 0)) * len(images))
        return super().__call__(images)


class StuckModel(Averager):
    """Hangs on dark pictures."""

    def __call__(self, images):
        while any(image.mean() < 100 for image in images):
            time.sleep(1)
        return super().__call__(images)


class Hungry(Averager):
    """Runs out of memory on more than one image."""

    def __call__(self, images):
        if len(images) > 1:
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
        return super().__call__(images)


class MeanColour(Task):
    """Whether the mean colour stays within a step of the reference; its context is a step size, computed once."""

    name = "mean-colour"
    annotation = "colour"
    has_context = True
    has_pseudo_labels = True
    metrics = (MetricSpec("within", "%", primary=True, ceiling=100.0),)
    schema = pa.schema([("colour", pa.list_(pa.float64()))])

    def context(self):
        log_call("context")
        return {"step": np.array([2.0])}

    def predict(self, images, ids, originals=None):
        assert self.ready["step"][0] == 2
        return [{"colour": colour} for colour in self.model(images)]

    def pseudo_targets(self, predictions):
        return list(predictions)

    def statistics(self, predictions, targets):
        return np.array([np.abs(p["colour"] - t["colour"]).max() < 2 for p, t in zip(predictions, targets, strict=True)], float)

    def aggregate(self, statistics, weights=None):
        return {"within": 100 * float(np.average(statistics, weights=weights))}


class Distance(Task):
    """Mean absolute difference from the original."""

    name = "distance"
    needs_originals = True
    metrics = (MetricSpec("distance", higher_is_better=False, primary=True, ceiling=0.0),)
    schema = pa.schema([("distance", pa.float64())])

    def predict(self, images, ids, originals=None):
        log_call("distance")
        return [{"distance": np.abs(a.astype(int) - b).mean()} for a, b in zip(images, originals, strict=True)]

    def statistics(self, predictions, targets):
        return np.array([prediction["distance"] for prediction in predictions])

    def aggregate(self, statistics, weights=None):
        return {"distance": float(np.average(statistics, weights=weights))}


class Lift(Distance):
    """How much brighter the reconstruction is than the original, counted like `distance` but under a name of its own."""

    name = "lift"


class Drawn(MeanColour):
    """Counts like `mean-colour`, and draws a white corner on each picture."""

    name = "drawn"
    draws = True

    def draw(self, image, prediction):
        image = image.copy()
        image[:4, :4] = 255
        return image


class Vandal(Distance):
    """Writes into the pictures that it gets."""

    name = "vandal"

    def predict(self, images, ids, originals=None):
        images[0][...] = 0
        return super().predict(images, ids, originals)


class Choosy(Distance):
    """Fails on pictures that use the low bits of a sample, as the reconstructions of JPEG do."""

    name = "choosy"

    def predict(self, images, ids, originals=None):
        if any((image % 4).any() for image in images):
            raise ArithmeticError("what colours")
        return super().predict(images, ids, originals)


class Unscorable(Distance):
    """Makes predictions, but fails when they are scored."""

    name = "unscorable"

    def aggregate(self, statistics, weights=None):
        return {"distance": 1 / 0}
