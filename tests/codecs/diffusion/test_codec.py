"""Diff-ICMH as a codec: images of any size become streams and come back, and damaged or foreign streams are refused."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import Container
from icmbench.codecs.diff_icmh import DiffIcmh


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (65, 130), (64, 64), (577, 33)])
def test_any_size(tiny, size, picture):
    codec = tiny(steps=1)
    image = picture(*size)
    data = codec.compress(image)
    decoded = codec.decompress(data)
    assert decoded.shape == image.shape
    assert decoded.dtype == np.uint8
    assert sum(codec.rate_breakdown(data).values()) == 8 * len(data)


def test_seed_decides_the_pixels(tiny, picture):
    image = picture(64, 64)
    first = tiny(seed=3).compress(image)
    assert tiny(seed=3).compress(image) == first
    decoded = tiny().decompress(first)  # The seed of the stream counts, not that of the codec.
    assert np.array_equal(tiny(seed=3).decompress(first), decoded)
    assert not np.array_equal(tiny(seed=4).decompress(tiny(seed=4).compress(image)), decoded)
    assert len(tiny().compress(image)) == len(first) - 4  # Seed 0 takes no bytes.


def test_stream_says_how_to_decode(tiny, picture):
    """Lambda, sampler, steps and guidance travel with the stream. With the default values the whole header takes ten bytes."""
    image = picture(64, 64)
    data = tiny(8, sampler="ddim", steps=3, cfg=2.5).compress(image)
    request = tiny(2)._request(data)
    assert (request.decoding.sampler.steps, request.decoding.guidance) == (3, 2.5)
    assert type(request.decoding.sampler).__name__ == "DdimSampler"
    assert np.array_equal(tiny(2).decompress(data), tiny(8, sampler="ddim", steps=3, cfg=2.5).decompress(data))
    default = tiny(steps=None)
    assert default.rate_breakdown(default.compress(image))["header"] == 8 * 10


def test_tags_guide_and_are_counted(tiny, tmp_path, picture):
    (tmp_path / "words.txt").write_text("\n".join(f"tag{i}" for i in range(4585)))
    options = {"vocabulary": tmp_path / "words.txt", "steps": 2}
    image = picture(64, 64)
    codec = tiny(tags=["tag3", "tag4000"], **options)
    data = codec.compress(image)
    plain = tiny(**options)
    assert codec.rate_breakdown(data)["text"] == 8 * (3 + 4)  # Coder, count and length in a byte each, then 26 bits of tags.
    assert not np.array_equal(plain.decompress(data), plain.decompress(plain.compress(image)))
    with pytest.raises(BitstreamError, match=r"set `vocabulary`"):
        tiny().decompress(data)
    (tmp_path / "words.txt").write_text("\n".join(f"other{i}" for i in range(4585)))
    with pytest.raises(BitstreamError):
        tiny(**options).decompress(data)


@pytest.mark.parametrize("mode", ["default", "portable"])
def test_batches(tiny, mode, picture):
    """In a batch of mixed sizes, lambdas and seeds, each image equals what it would be alone, up to rounding of float32."""
    streams = [
        tiny(2, seed=1, mode=mode).compress(picture(64, 100, 0)),
        tiny(4, mode=mode).compress(picture(40, 40, 1)),
        tiny(2, seed=2).compress(picture(60, 128, 2)),
        tiny(2, seed=1).compress(picture(64, 128, 3)),
    ]
    codec = tiny(batch=2)
    together = codec.decompress_batch(streams)
    for image, data in zip(together, streams):
        alone = codec.decompress(data)
        assert image.shape == alone.shape
        assert np.abs(image.astype(int) - alone).max() <= 2
    images = [picture(64, 64, i) for i in range(3)]
    assert codec.compress_batch(images, ["a", "b", "c"]) == [codec.compress(image) for image in images]


def test_tiles_and_colour(tiny, picture):
    """A picture larger than a tile decodes. The wavelet correction changes only low frequencies."""
    image = picture(128, 200)
    data = tiny().compress(image)
    assert tiny(tile=8, overlap=0).decompress(data).shape == image.shape
    plain, corrected = tiny().decompress(data).astype(float), tiny(colour="wavelet").decompress(data).astype(float)
    change = corrected - plain
    assert np.abs(change).mean() > 0.5
    assert np.abs(np.diff(change, axis=0)).mean() < 0.2 * np.abs(change).mean()


def test_bad_bytes(tiny, picture):
    codec = tiny(steps=1)
    data = codec.compress(picture(64, 64))
    parsed = Container.from_bytes(data)
    foreign = [
        b"",
        data[:-1],
        data[:-1] + bytes([data[-1] ^ 1]),
        replace(parsed, codec="elic", checksum=0).to_bytes(),
        replace(parsed, model=7, checksum=0).to_bytes(),  # A lambda that does not exist.
        replace(parsed, model=1, checksum=0).to_bytes(),  # Another profile.
        replace(parsed, checksum=0).to_bytes(),  # Other symbols.
        replace(parsed, payload=parsed.payload[:-2], z_bytes=0, checksum=0).to_bytes(),
        replace(parsed, width=700, checksum=0).to_bytes(),
    ]
    for bad in foreign:
        with pytest.raises(BitstreamError):
            codec.decompress(bad)


def test_other_weights_are_noticed(tiny, picture):
    from icmbench.codecs.diffusion import models

    data = tiny().compress(picture(64, 64))
    models.load_model.cache_clear()  # Random weights warn when they are loaded, and another test may have loaded them.
    with pytest.raises(BitstreamError), pytest.warns(UserWarning, match=r"random"):
        DiffIcmh(2, profile="tiny", weights="random", device="cpu").decompress(data)


def test_bad_options():
    wrong = {"point": 3, "profile": "huge", "sampler": "euler", "steps": 0, "cfg": 0.5, "tile": 20, "overlap": 96, "device": "gpu9"}
    for options in ({key: value} for key, value in wrong.items()):
        with pytest.raises(CodecError):
            DiffIcmh(**{"point": 2, "profile": "tiny", "weights": "random", "device": "cpu"} | options)
    with pytest.raises(CodecError, match=r"uint8"):
        DiffIcmh(2, profile="tiny", weights="random", device="cpu").compress(np.zeros((4, 4, 3), np.float32))


def test_fingerprint_holds_what_decides_the_pixels(tiny):
    fingerprint = tiny(seed=1).fingerprint
    assert fingerprint == tiny(seed=1).fingerprint
    changes = [
        {"seed": 2},
        {"seed": 1, "steps": 9},
        {"seed": 1, "cfg": 2.0},
        {"seed": 1, "mode": "portable"},
        {"seed": 1, "dtype": "bfloat16"},
    ]
    others = [tiny(4, seed=1).fingerprint, *(tiny(**options).fingerprint for options in changes)]
    assert len({fingerprint, *others}) == 2 + len(changes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_decodes_the_same_streams(tiny, dtype, picture):
    image = picture(64, 64)
    data = tiny().compress(image)
    difference = np.abs(tiny(dtype=dtype).decompress(data).astype(int) - tiny().decompress(data))
    assert np.median(difference) <= 4


def test_photograph_with_tags_and_default_steps(tiny, photo, tmp_path):
    """256x256 pixels, guided, in all 20 steps; bench_diffusion.py says how long this takes."""
    (tmp_path / "words.txt").write_text("door\nhouse")
    codec = tiny(steps=None, vocabulary=tmp_path / "words.txt", tags=["door", "house"])
    data = codec.compress(photo[:256, :256])
    request = codec._request(data)
    assert (request.prompt, request.decoding.sampler.steps, request.decoding.guidance) == ("door, house", 20, 5.0)
    assert codec.decompress(data).shape == (256, 256, 3)


def test_importing_the_codec_is_cheap():
    """Importing the codec, as `icmbench list` does, imports no heavy library."""
    code = "import sys, icmbench.codecs.diff_icmh; print({'torch', 'diffusers', 'transformers', 'constriction'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


@pytest.mark.skipif(not os.environ.get("ICMBENCH_SLOW"), reason="8 GB and minutes; set ICMBENCH_SLOW=1")
def test_full_size_model_runs(picture):
    """Stable Diffusion 2.1's architecture with random weights codes 128x128 pixels in 2 steps on the CPU."""
    codec = DiffIcmh(2, weights="random", device="cpu", dtype="float32", steps=2)
    image = picture(128, 128)
    start = time.perf_counter()
    with pytest.warns(UserWarning, match=r"random"):
        data = codec.compress(image)
    encoded = time.perf_counter()
    decoded = codec.decompress(data)
    print(f"sd21, 128x128, 2 steps: load and encode {encoded - start:.1f} s, decode {time.perf_counter() - encoded:.1f} s")
    assert decoded.shape == image.shape
    assert codec.decompress(data).tobytes() == decoded.tobytes()
