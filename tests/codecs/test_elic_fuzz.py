"""Mutated ELIC streams: each raises BitstreamError or decodes to an image of the size it declares, quickly and in little memory.

ICMBENCH_FUZZ sets how many (default 300). Half of them carry a good stream check, so that the header's reader and the entropy coder
meet the damage themselves; half of those are decoded with the symbol check passed over, so that what is left decodes to the end.
"""

import os
import resource
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("constriction")
pytest.importorskip("safetensors")

from icmbench.codecs import elic_model  # noqa: E402
from icmbench.codecs.base import BitstreamError  # noqa: E402
from icmbench.codecs.bitstream import Container, seal  # noqa: E402
from icmbench.codecs.elic import Elic  # noqa: E402

COUNT = int(os.environ.get("ICMBENCH_FUZZ", "300"))
SECONDS, BYTES = 2.0, 1 << 30


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    path = tmp_path_factory.mktemp("elic") / "narrow.safetensors"
    network = elic_model.ElicNetwork("official", n=16, m=24, slices=(2, 2, 4, 8, 8), context_widths=(20, 12))
    elic_model.save(elic_model.synthetic(network), path)
    return Elic(0.016, weights=path)


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


def test_mutated_streams(codec, monkeypatch, record_property):
    rng = np.random.default_rng(0)
    originals = []
    for size in ((1, 1), (65, 130), (64, 64), (200, 90), (300, 300)):
        for mode in ("default", "portable"):
            codec.mode = mode
            originals.append(codec.compress(rng.integers(0, 256, (*size, 3)).astype(np.uint8)))
    codec.mode = "default"
    for data in originals:
        codec.decompress(data)
    before, slowest = peak(), 0.0
    outcomes = {"refused": 0, "decoded": 0}
    for index in range(COUNT):
        original = originals[int(rng.integers(len(originals)))]
        body = mutate(original[:-2], rng)
        data = seal(body) if index % 2 else body + original[-2:]
        with monkeypatch.context() as patch:
            if index % 4 == 1:
                patch.setattr(Container, "verify", lambda *_: None)
                patch.setattr("icmbench.codecs.entropy.coder.SymbolReader.finish", lambda _: None)
            start = time.perf_counter()
            try:
                image = codec.decompress(data)
            except BitstreamError:
                outcomes["refused"] += 1
            else:
                parsed = Container.from_bytes(data)
                assert image.shape == (parsed.height, parsed.width, 3) and image.dtype == np.uint8
                outcomes["decoded"] += 1
            slowest = max(slowest, time.perf_counter() - start)
    grown = peak() - before
    record_property("fuzz", f"{outcomes}, slowest {slowest:.2f} s, memory grew {grown >> 20} MiB")
    print(f"{COUNT} streams: {outcomes}, slowest {slowest:.2f} s, memory grew {grown >> 20} MiB")
    assert sum(outcomes.values()) == COUNT and outcomes["decoded"] > 0 and outcomes["refused"] > COUNT / 2
    assert slowest < SECONDS and grown < BYTES
