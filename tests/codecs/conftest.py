"""Damaged streams for the project's own codecs."""

import os
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from icmbench.codecs.base import BitstreamError
from icmbench.codecs.bitstream import Container, seal

MAX_STEPS = 50  # a stream that asks for more is not decoded past its check


def mutate(body: bytes, rng: np.random.Generator) -> bytes:
    """One to three of: flipped bits, a cut, an insertion, an overwritten run, a changed header byte, junk throughout."""
    data = bytearray(body)
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(7)
        at = int(rng.integers(len(data))) if data else 0
        run = rng.bytes(int(rng.integers(1, 20)))
        if kind == 0 and data:
            for _ in range(rng.integers(1, 9)):
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = run
        elif kind == 3:
            data[at : at + len(run)] = run
        elif kind == 4:
            del data[at : at + len(run)]
        elif kind == 5 and data:
            data[min(int(rng.integers(12)), len(data) - 1)] = int(rng.integers(256))
        elif kind == 6 and rng.random() < 0.3:
            data = bytearray(data[:3] + rng.bytes(len(data)))
    return bytes(data)


def peak() -> int:
    """The process's largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture
def fuzz(monkeypatch, record_property) -> Callable[..., None]:
    """Mutates streams: each raises BitstreamError or decodes to an image of the size it declares, quickly and in little memory.

    ICMBENCH_FUZZ sets how many; `tox run -e soak` takes 5,000. Half of them carry a good stream check, so that the header's reader
    and the entropy coder meet the damage themselves; half of those are decoded with the symbol check passed over, so that what is
    left decodes to the end.
    """

    def run(codec, originals: list[bytes], count: int, seconds: float, memory: int) -> None:
        rng = np.random.default_rng(0)
        count = int(os.environ.get("ICMBENCH_FUZZ", count))
        for data in originals:
            codec.decompress(data)
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
                start = time.process_time()  # of all threads, so that a busy machine does not count
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
        assert slowest < seconds and grown < memory

    return run


def _is_long(data: bytes) -> bool:
    try:
        overrides = Container.from_bytes(data).overrides
    except BitstreamError:
        return False
    return overrides is not None and overrides.steps > MAX_STEPS
