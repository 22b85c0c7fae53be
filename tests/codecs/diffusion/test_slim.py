"""SLIM: images of any size become streams and come back, options have their effect, and hostile streams are refused."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import Container, Overrides, Text
from icmbench.codecs.slim import Slim

CAPTION = "a dog with a bone in its mouth"


@pytest.fixture(scope="module")
def folder(backbone, tmp_path_factory):
    """A folder with one model for all points and its backbone. Its weights are random, but control and latents have an effect."""
    import torch

    from icmbench.codecs.diffusion import models

    with torch.random.fork_rng():
        torch.manual_seed(2)
        parts = models.SLIM.build_parts(backbone, "tiny")
        for conv in (*parts["control"].encoder_out, parts["control"].middle_out, *parts["control"].decoder_out):
            torch.nn.init.normal_(conv.weight, std=0.05)
        torch.nn.init.normal_(parts["latent"].encoder[-1].weight, std=1.0)
    folder = tmp_path_factory.mktemp("slim")
    models.save_model(models.SLIM.build_model(backbone, **parts), folder / "slim-lambda1.safetensors")
    for point in Slim.points[1:]:
        os.link(folder / "slim-lambda1.safetensors", folder / f"slim-lambda{point}.safetensors")
    models.save_backbone(backbone, folder / "backbone.safetensors")
    return folder


@pytest.fixture
def slim(folder):
    def make(point: float = 1, **options) -> Slim:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Slim(point, **{"profile": "tiny", "weights": folder, "device": "cpu", "steps": 1} | options)

    return make


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (65, 130), (129, 33)])
def test_any_size(slim, size, picture):
    """Images are padded to multiples of 128, as in the full profile."""
    codec = slim(captions=CAPTION)
    image = picture(*size)
    data = codec.compress(image)
    assert codec._model_and_decoding(Container.from_bytes(data))[0].latent.pad == 128
    decoded = codec.decompress(data)
    assert (decoded.shape, decoded.dtype) == (image.shape, np.uint8)
    assert sum(codec.rate_breakdown(data).values()) == 8 * len(data)


@pytest.mark.parametrize(("text", "bits"), [("zlib", 304), ("utf8", 240), ("smallest", 240), ("clip16", 128), ("prior", 80)])
def test_captions_guide_and_are_counted(slim, picture, text, bits):
    """The text takes the published bits of this caption and 3 or 4 bytes for coder, count and length. It changes the picture."""
    image = picture(64, 64)
    codec = slim(captions=CAPTION, text=text)
    data = codec.compress(image)
    assert codec.rate_breakdown(data)["text"] == bits + 8 * (4 if bits > 127 else 3)
    plain = slim()
    assert len(data) - len(plain.compress(image)) == codec.rate_breakdown(data)["text"] // 8
    assert not np.array_equal(plain.decompress(data), plain.decompress(plain.compress(image)))
    assert np.array_equal(plain.decompress(data), codec.decompress(data))  # The stream holds all that a decoder needs.


def test_captions_by_image_and_captioner(slim, tmp_path, picture):
    (tmp_path / "captions.json").write_text(json.dumps({"a": "a cat", "b": ""}))
    codec = slim(captions=tmp_path / "captions.json")
    image = picture(64, 64)
    a, b = codec.compress_batch([image, image], ["a", "b"])
    assert (Container.from_bytes(a).text.data, Container.from_bytes(b).text) == (b"a cat", None)
    with pytest.raises(CodecError, match=r"no caption for image 'c'"):
        codec.compress(image, "c")
    described = []

    def describe(image):
        described.append(image)
        return "left half"

    masked = slim(captioner=describe, roi=lambda image: np.arange(image.shape[1])[None] < np.full((image.shape[0], 1), 32))
    assert Container.from_bytes(masked.compress(image)).text.data == b"left half"
    assert np.array_equal(described[0][:, :32], image[:, :32])
    assert not described[0][:, 32:].any()
    slim(captioner=describe, roi="none").compress(image)
    assert np.array_equal(described[1], image)


def test_stream_says_how_to_decode(slim, picture):
    image = picture(64, 64)
    codec = slim(4, sampler="ddpm", steps=3, noise_level=500, cfg=2.5, seed=9, captions="a dog")
    data = codec.compress(image)
    request = slim()._request(data)
    assert (request.decoding.sampler.steps, request.decoding.sampler.noise_level, request.decoding.sampler.eta) == (3, 500, 1)
    assert (request.decoding.guidance, request.seed, request.prompt) == (2.5, 9, "a dog")
    assert np.array_equal(slim().decompress(data), codec.decompress(data))
    default = slim(steps=3)
    assert default.rate_breakdown(default.compress(image))["header"] == 8 * 10


def test_without_diffusion(slim, picture):
    """The ablation decodes the hint alone, so neither noise nor words change the picture."""
    image = picture(64, 64)
    codec = slim(sampler="none", seed=1)
    first = codec.decompress(codec.compress(image))
    assert np.array_equal(first, slim().decompress(slim(sampler="none", seed=2, captions=CAPTION).compress(image)))
    assert not np.array_equal(first, slim().decompress(slim().compress(image)))


@pytest.mark.parametrize("mode", ["default", "portable"])
def test_batches(slim, mode, picture):
    streams = [
        slim(1, seed=1, mode=mode, captions="a dog").compress(picture(64, 100, 0)),
        slim(4, mode=mode).compress(picture(40, 40, 1)),
        slim(1, seed=2, mode=mode, captions="two cats").compress(picture(60, 128, 2)),
    ]
    codec = slim(batch=2)
    for together, data in zip(codec.decompress_batch(streams), streams):
        alone = codec.decompress(data)
        assert together.shape == alone.shape
        assert np.abs(together.astype(int) - alone).max() <= 2


def test_bad_bytes(slim, picture):
    codec = slim(captions=CAPTION, text="deflate")
    data = codec.compress(picture(64, 64))
    parsed = Container.from_bytes(data)
    foreign = [
        b"",
        data[:-1],
        replace(parsed, codec="resulic", checksum=0).to_bytes(),
        replace(parsed, model=15, checksum=0).to_bytes(),  # A point that does not exist.
        replace(parsed, model=1 | 3 << 4 | 1 << 6, checksum=0).to_bytes(),  # A sampler that does not exist.
        replace(parsed, model=1, checksum=0).to_bytes(),  # Another profile.
        replace(parsed, checksum=0).to_bytes(),  # Other symbols.
        replace(parsed, overrides=Overrides(9, 5, 1.0), checksum=0).to_bytes(),  # More steps than times.
        replace(parsed, text=Text(1, 1, 13, b"\0\0"), checksum=0).to_bytes(),  # Tags.
        replace(parsed, width=700, checksum=0).to_bytes(),
    ]
    for bad in foreign:
        with pytest.raises(BitstreamError):
            codec.decompress(bad)


def test_mutated_streams(slim, fuzz, picture):
    originals = [
        slim(1).compress(picture(1, 1)),
        slim(4, mode="portable", captions="a barn", sampler="ddpm", steps=2).compress(picture(65, 130)),
        slim(16, captions=CAPTION, text="prior").compress(picture(128, 128)),
        slim(2, captions="a dog and " * 8, text="zlib", sampler="none").compress(picture(60, 200)),
    ]
    fuzz(slim(), originals, count=60, seconds=20.0, memory=1 << 30)


def test_fresh_process_decodes_from_bytes_alone(slim, folder, tmp_path, picture):
    """Another process with two threads decodes the same symbols, and the same pixels up to rounding of float32."""
    codec = slim(captions=CAPTION, text="prior")
    (tmp_path / "stream").write_bytes(data := codec.compress(picture(100, 70)))
    code = f"""
import numpy as np, pathlib, torch
from icmbench.codecs.slim import Slim
torch.set_num_threads(2)
codec = Slim(16, profile="tiny", weights=pathlib.Path({str(folder)!r}), device="cpu")
np.save({str(tmp_path / "pixels.npy")!r}, codec.decompress(pathlib.Path({str(tmp_path / "stream")!r}).read_bytes()))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert np.abs(np.load(tmp_path / "pixels.npy").astype(int) - codec.decompress(data)).max() <= 2


def test_bad_options(tmp_path):
    wrong = [
        {"point": 3},
        {"profile": "huge"},
        {"sampler": "euler"},
        {"steps": 0},
        {"steps": 9, "noise_level": 5},
        {"noise_level": 1000},
        {"cfg": 0},
        {"text": "lzma"},
        {"captions": "nowhere.json"},
        {"captioner": {"url": "ftp://here", "model": "m"}},
        {"captioner": {"sauce": "x"}},
        {"captioner": len, "roi": str(tmp_path / "nothing.pth")},
        {"captioner": len, "roi": "efficientnet-lite0", "roi_threshold": 2},
    ]
    for options in wrong:
        with pytest.raises(CodecError):
            Slim(**{"point": 1, "profile": "tiny", "weights": "random", "device": "cpu"} | options)


def test_fingerprint_holds_what_decides_the_pixels(slim):
    def fingerprint(point=1, **options):
        return slim(point, **options).fingerprint

    changes = [
        {"noise_level": 500},
        {"cfg": 2.0},
        {"captions": "a dog"},
        {"text": "zlib"},
        {"sampler": "none"},
        {"control": "full"},
    ]
    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(4), *(fingerprint(**options) for options in changes)}) == 2 + len(changes)


def test_importing_the_codec_is_cheap():
    code = "import sys, icmbench.codecs.slim; print({'torch', 'diffusers', 'transformers', 'constriction'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_full_profile_sizes():
    """The control module has 54.81M (light) or 374.02M (full) parameters, and the compressor is ResULIC's."""
    import torch
    from accelerate import init_empty_weights

    from icmbench.codecs.diffusion import models
    from icmbench.codecs.diffusion.backbone.stable_diffusion import PROFILES, DiffusionBackbone

    with init_empty_weights():
        base = DiffusionBackbone(PROFILES["sd21"])
        light, full = models.SLIM.build_parts(base, "sd21"), models.SLIM_FULL.build_parts(base, "sd21")

    def millions(module: torch.nn.Module) -> float:
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    assert millions(light["control"]) == pytest.approx(54.81, rel=0.01)
    assert millions(full["control"]) == pytest.approx(374.02, rel=0.01)
    assert 12 < millions(light["latent"]) < 15
    assert light["latent"].pad == 128
