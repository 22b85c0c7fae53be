"""A photograph, programs that hang, and damaged streams for the project's own codecs."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.codecs.base import BitstreamError
from icmbench.codecs.bitstream import Container, seal

# Hypothesis would fail an example that takes long, which depends on what else the machine does.
hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")

MAX_STEPS = 50  # A stream that claims more sampling steps is not decoded past its check, which would take long.


@pytest.fixture(scope="session")
def photograph(shared) -> np.ndarray:
    """kodim03, 768x512."""
    with Pillow.open(shared / "data/kodak/kodim03.png") as picture:
        return np.array(picture.convert("RGB"))


@pytest.fixture
def limit_time_from(monkeypatch) -> Callable[[Path], None]:
    """Lets time limits count from the moment when a program has written a file, and end a tenth of a second later.

    A program that hangs is then always ended while it hangs, however slowly this machine starts it.
    """
    wait = subprocess.Popen.wait

    def limit(path: Path) -> None:
        def wait_from_file(process, timeout=None):
            while timeout is not None and not (path.exists() and path.read_text()):
                time.sleep(0.02)
            return wait(process, timeout and 0.1)

        monkeypatch.setattr(subprocess.Popen, "wait", wait_from_file)

    return limit


def mutate(body: bytes, rng: np.random.Generator) -> bytes:
    """Damages bytes one to three times: bits flipped, a cut, an insertion, a run overwritten or removed, a header byte, noise."""
    data = bytearray(body)
    for _ in range(rng.integers(1, 4)):
        damage = rng.integers(7)
        position = int(rng.integers(len(data))) if data else 0
        run = rng.bytes(int(rng.integers(1, 20)))
        if damage == 0 and data:
            for _ in range(rng.integers(1, 9)):
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        elif damage == 1:
            del data[position:]
        elif damage == 2:
            data[position:position] = run
        elif damage == 3:
            data[position : position + len(run)] = run
        elif damage == 4:
            del data[position : position + len(run)]
        elif damage == 5 and data:
            data[min(int(rng.integers(12)), len(data) - 1)] = int(rng.integers(256))
        elif damage == 6 and rng.random() < 0.3:
            data = bytearray(data[:3] + rng.bytes(len(data)))
    return bytes(data)


def peak() -> int:
    """The largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture
def fuzz(monkeypatch, record_property) -> Callable[..., None]:
    """Mutates streams. Each raises BitstreamError or decodes to an image of the size it declares, quickly and in little memory.

    ICMBENCH_FUZZ sets how many; `tox run -e soak` takes 5,000. Half of them carry a right stream check, so that the header's reader
    and the entropy coder meet the damage themselves. Half of those are decoded without the symbol check, so that they decode to the
    end if they can.

    No stream may take more CPU time than `seconds` or, on a slow machine, than 20 times the slowest original.
    """

    def run(codec, originals: list[bytes], count: int, seconds: float, memory: int) -> None:
        rng = np.random.default_rng(0)
        count = int(os.environ.get("ICMBENCH_FUZZ", count))
        for data in originals:  # The first decoding of each size also loads and prepares networks.
            codec.decompress(data)
        limit = max(seconds, 20 * max(cpu_seconds(lambda data=data: codec.decompress(data)) for data in originals))
        before, slowest = peak(), 0.0
        outcomes = {"refused": 0, "decoded": 0}
        for index in range(count):
            original = originals[int(rng.integers(len(originals)))]
            body = mutate(original[:-2], rng)
            data = seal(body) if index % 2 else body + original[-2:]
            with monkeypatch.context() as patch:
                if index % 4 == 1 and not _is_long(data):
                    patch.setattr(Container, "verify", lambda *_: None)
                    patch.setattr("icmbench.codecs.entropy.coder.SymbolReader.finish", lambda _: None)
                start = time.process_time()  # CPU time of all threads, which other processes do not change.
                try:
                    image = codec.decompress(data)
                except BitstreamError:
                    outcomes["refused"] += 1
                else:
                    parsed = Container.from_bytes(data)
                    assert image.shape == (parsed.height, parsed.width, 3) and image.dtype == np.uint8
                    outcomes["decoded"] += 1
                slowest = max(slowest, time.process_time() - start)
        grown = peak() - before
        record_property("fuzz", f"{outcomes}, slowest {slowest:.2f} CPU s, memory grew {grown >> 20} MiB")
        print(f"{count} streams: {outcomes}, slowest {slowest:.2f} CPU s, memory grew {grown >> 20} MiB")
        assert sum(outcomes.values()) == count and outcomes["decoded"] > 0 and outcomes["refused"] > count / 2
        assert slowest < limit and grown < memory

    return run


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _is_long(data: bytes) -> bool:
    try:
        overrides = Container.from_bytes(data).overrides
    except BitstreamError:
        return False
    return overrides is not None and overrides.steps > MAX_STEPS
