"""Mutated ELIC streams raise BitstreamError or decode to an image of the size they declare, quickly and in little memory."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("constriction")
pytest.importorskip("safetensors")

from icmbench.codecs import elic_model  # noqa: E402
from icmbench.codecs.elic import Elic  # noqa: E402


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    path = tmp_path_factory.mktemp("elic") / "narrow.safetensors"
    network = elic_model.ElicNetwork("official", n=16, m=24, slices=(2, 2, 4, 8, 8), context_widths=(20, 12))
    elic_model.save_network(elic_model.fill_synthetic(network), path)
    return Elic(0.016, weights=path)


def test_mutated_streams(codec, fuzz):
    rng = np.random.default_rng(0)
    originals = []
    for size in ((1, 1), (65, 130), (64, 64), (200, 90), (300, 300)):
        for mode in ("default", "portable"):
            codec.mode = mode
            originals.append(codec.compress(rng.integers(0, 256, (*size, 3)).astype(np.uint8)))
    codec.mode = "default"
    fuzz(codec, originals, count=300, seconds=2.0, memory=1 << 30)
