"""ResULIC: images of any size become streams and come back, options have their effect, and hostile streams are refused."""

import base64
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import Container
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.backbone.files import PRETRAINED, read_training_record
from icmbench.codecs.diffusion.prompts import clip_tokens
from icmbench.codecs.diffusion.sampling.compression_aware import CompressionAwareSampler
from icmbench.codecs.diffusion.sampling.enhance import EnhancementSampler
from icmbench.codecs.diffusion.sampling.samplers import draw_noise
from icmbench.codecs.resulic import NEGATIVE, NOISE_LEVELS, SUFFIX, Resulic
from icmbench.codecs.training.ship_weights import ship
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.options import bind


@pytest.fixture(scope="module")
def resulic_model(backbone):
    """A rate point with random weights, chosen so that the control module has an effect and the latents are not all zero."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = models.RESULIC.build_parts(backbone, "tiny")
        latent, control = parts["latent"], parts["control"]
        for conv in (*control.encoder_out, control.middle_out, *control.decoder_out, *control.encoder_in):
            torch.nn.init.normal_(conv.weight, std=0.05)
        torch.nn.init.normal_(latent.encoder[-1].weight, std=0.5)
        torch.nn.init.normal_(latent.hyper_enc[-1].weight, std=0.3)
        for net in (*latent.context.parameters_anchor, *latent.context.parameters_nonanchor):
            # Scales that fit latents of this size.
            torch.nn.init.constant_(net[-1].bias[: net[-1].out_channels // 2], 1.5)
    return models.RESULIC.build_model(backbone, **parts)


@pytest.fixture(scope="module")
def folder(resulic_model, tmp_path_factory):
    """A folder with the model, once for each lambda, and its backbone."""
    folder = tmp_path_factory.mktemp("weights")
    models.save_model(resulic_model, folder / "resulic-lambda36.safetensors")
    for point in (1.5, 3, 6, 16):
        os.link(folder / "resulic-lambda36.safetensors", folder / f"resulic-lambda{point:g}.safetensors")
    models.save_backbone(resulic_model.backbone, folder / "backbone.safetensors")
    return folder


@pytest.fixture
def tiny(folder):
    def make(point: float = 36, **options) -> Resulic:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Resulic(point, **({"profile": "tiny", "weights": folder, "device": "cpu"} | options))

    return make


def test_full_profile_has_the_published_size():
    """Control module 54.81M, UNet 865.91M parameters; test_vae_compressor.py counts the compressor."""
    from icmbench.codecs.diffusion.backbone.stable_diffusion import PROFILES, DiffusionBackbone

    with torch.device("meta"):
        base = DiffusionBackbone(PROFILES["sd21"])
        control = models.RESULIC.build_parts(base, "sd21")["control"]
    count = {"unet": base.unet, "control": control}
    millions = {name: sum(p.numel() for p in module.parameters()) / 1e6 for name, module in count.items()}
    assert millions == {"unet": pytest.approx(865.91, abs=0.01), "control": pytest.approx(54.81, abs=0.01)}


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (65, 130), (128, 128), (576, 40)])
def test_any_size(tiny, size, picture):
    codec = tiny(steps=2)
    image = picture(*size)
    data = codec.compress(image)
    decoded = codec.decompress(data)
    assert decoded.shape == image.shape
    assert decoded.dtype == np.uint8
    assert sum(codec.rate_breakdown(data).values()) == 8 * len(data)


def test_stream_says_how_to_decode(tiny, picture):
    """The default sampling of a point takes no bytes. Values that differ travel with the stream."""
    image = picture(64, 64)
    default = tiny(6).compress(image)
    decoding = tiny(36)._request(default).decoding
    assert decoding.sampler == CompressionAwareSampler(NOISE_LEVELS[6], 3, 0)
    assert (decoding.guidance, decoding.negative, decoding.wavelet) == (2.5, tuple(clip_tokens.tokenize(NEGATIVE)), False)
    assert tiny().rate_breakdown(default)["header"] == 8 * 10
    other = tiny(6, noise_level=405, steps=2, eta=1, cfg=1).compress(image)
    decoding = tiny(36)._request(other).decoding
    assert (decoding.sampler, decoding.guidance) == (CompressionAwareSampler(405, 2, 1), 1)
    plain = tiny(6, cdm=False).compress(image)
    sampler = tiny(36)._request(plain).decoding.sampler
    assert (type(sampler).__name__, sampler.steps) == ("DdimSampler", 50)
    assert np.array_equal(tiny(36).decompress(other), tiny(6).decompress(other))


@pytest.mark.parametrize("eta", [0, 1])
def test_adjustable_noise_schedule_starts_from_the_latent_in_noise(tiny, picture, backbone, eta):
    """The baseline of table 4: equation 8 at N_r of the point, then DDIM or DDPM as without compression-aware diffusion."""
    image = picture(64, 64)
    data = tiny(6, cdm=False, ans=True, eta=eta, seed=3).compress(image)
    decoding = tiny(36)._request(data).decoding
    assert decoding.sampler == EnhancementSampler(50, NOISE_LEVELS[6], eta)
    assert len(data) - len(tiny(6, cdm=False, eta=eta, seed=3).compress(image)) == 1  # The container's byte for the variant.
    assert Resulic.stream_options(data) | {"cdm": False, "ans": True, "eta": eta, "steps": 50, "noise_level": 300} == (
        Resulic.stream_options(data)
    )
    short = {"steps": 2, "noise_level": 405}
    data = tiny(6, cdm=False, ans=True, eta=eta, seed=3, **short).compress(image)
    request = tiny(36)._request(data)
    assert request.decoding.sampler == EnhancementSampler(2, 405, eta)
    assert np.array_equal(tiny(36).decompress(data), tiny(6).decompress(data))
    y_hat, z_hat = request.model.latents(request.container, data)
    z_c, noise = request.model.hint(y_hat, z_hat), draw_noise([3], request.decoding.sampler.draws, 16, 16)
    starts = []
    request.decoding.sampler(lambda x, t: (starts.append((t, x)), torch.zeros_like(x))[1], backbone.abar, z_c, noise)
    time, start = starts[0]
    a_n = float(backbone.abar[405])
    assert time == 405
    torch.testing.assert_close(start, a_n**0.5 * z_c + (1 - a_n) ** 0.5 * noise[:, 0])


def test_adjustable_noise_schedule_is_for_plain_diffusion(tiny):
    with pytest.raises(CodecError, match=r"set cdm: false"):
        tiny(36, ans=True)


# Streams of a gradient of 56x40 pixels, made by the release before container version 2 with the weights of this package.
EARLIER_STREAMS = {
    "I0MBOCjM8QAb9jFVAEeGzb8vM7m9yzU/N6gAl8KkCEJDOkvP8w==": {"cdm": True, "eta": 0, "steps": 3, "seed": 0},
    "I1MFOCgCrAKAAnkZABv2MVUAR4bNvy8zub3LNT83qACXwqQIQkM6S+Wy": {"cdm": True, "eta": 1, "steps": 2, "seed": 0},
    "I2MFOCgCrAKAAlb0ABv2MVUAR4bNvy8zub3LNT83qACXwqQIQkM6S4et": {"cdm": False, "eta": 0, "steps": 2, "seed": 0},
    "I3MHOCgFAAAAAqwCgAJZhwAb9jFVAEeGzb8vM7m9yzU/N6gAl8KkCEJDOkuVMg==": {"cdm": False, "eta": 1, "steps": 2, "seed": 5},
    "I0MJOCgFAzBAAeACvipGrQAb9jFVAEeGzb8vM7m9yzU/N6gAl8KkCEJDOksSQQ==": {"cdm": True, "eta": 0, "steps": 3, "seed": 0},
}


@pytest.mark.skipif(
    not (PRETRAINED / "tiny" / "resulic-lambda6.safetensors").is_file(), reason="no trained weights in this checkout"
)
@pytest.mark.filterwarnings("ignore:.*samples with")
@pytest.mark.parametrize(("stream", "made_with"), EARLIER_STREAMS.items())
def test_streams_of_earlier_releases_decode(stream, made_with):
    data = base64.b64decode(stream)
    common = {"point": 6, "profile": "tiny", "mode": "portable", "noise_level": 300, "cfg": 2.5, "ans": False}
    assert Resulic.stream_options(data) == common | made_with
    codec = Resulic(6, profile="tiny", device="cpu")
    assert codec.decompress(data).shape == (40, 56, 3)
    parsed = Container.from_bytes(data)
    y_hat, _ = codec._request(data).model.latents(parsed, data)
    assert int(y_hat.count_nonzero()) > 0 and parsed.variant == 0


def test_steps_may_vary_by_point_within_one_block(tiny, picture, tmp_path):
    """What an experiment file can say once for all points; points that it leaves out keep the default of three steps."""
    options = bind(Resulic, {"steps": {36: 4, 1.5: 2}}, "set", tmp_path)
    image = picture(64, 64)
    for point, steps in ((36, 4), (6, 3), (1.5, 2)):
        codec = tiny(point, **options)
        decoding = tiny(3)._request(codec.compress(image)).decoding
        assert decoding.sampler == CompressionAwareSampler(NOISE_LEVELS[point], steps, 0)
        assert codec.fingerprint == tiny(point, steps=steps).fingerprint
    assert tiny(6, **options).compress(image) == tiny(6).compress(image)
    plain = tiny(36)._request(tiny(6, cdm=False, steps={6: 20}).compress(image)).decoding.sampler
    assert plain.steps == 20
    with pytest.raises(CodecError, match=r"steps name lambda 5, which is no rate point: name some of 1\.5, 3, 6, 16, 36"):
        tiny(36, steps={36: 4, 5: 4})
    with pytest.raises(UserError, match=r"set\.steps"):
        bind(Resulic, {"steps": {36: "many"}}, "set", tmp_path)
    with pytest.raises(CodecError, match=r"steps"):
        tiny(36, steps={36: 0})


@pytest.mark.parametrize(
    ("trained", "options", "message"),
    [
        ({"cdm": True, "eta": 0}, {"eta": 0}, None),
        ({"cdm": True, "eta": 1}, {"eta": 1}, None),
        ({"cdm": True, "eta": 0}, {"eta": 1}, "samples with eta: 1, but its weights were trained with eta: 0: set"),
        ({"cdm": True, "eta": 1}, {"eta": 0}, "samples with eta: 0, but its weights were trained with eta: 1: set"),
        ({"cdm": False}, {"cdm": False, "eta": 1}, None),
        ({"cdm": False}, {"eta": 1}, "samples with cdm: true, but its weights were trained with cdm: false: set"),
        ({"cdm": True, "eta": 0}, {"cdm": False}, "samples with cdm: false, but its weights were trained with cdm: true: set"),
        ({}, {"cdm": False}, None),  # Files from before this record may have been trained either way, but not for eta 1.
        ({}, {"eta": 1}, "samples with eta: 1, but its weights were trained with eta: 0: set"),
    ],
)
def test_sampling_otherwise_than_trained_is_said(resulic_model, tmp_path, picture, trained, options, message):
    """In one sentence, when the codec is made, and when it decodes a stream of another way of sampling."""
    models.save_model(resulic_model, tmp_path / "resulic-lambda36.safetensors", trained)
    models.save_backbone(resulic_model.backbone, tmp_path / "backbone.safetensors")
    common = {"profile": "tiny", "weights": tmp_path, "device": "cpu"}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        codec = Resulic(36, **common, **options)
    assert [message in str(warning.message) and "lambda=36" in str(warning.message) for warning in said] == [True] * bool(message)
    default = {"cdm": trained.get("cdm", True), "eta": trained.get("eta", 0)}
    fitting = Resulic(36, **common, **default)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fitting._request(codec.compress(picture(64, 64)))
    assert [message in str(warning.message) for warning in said] == [True] * bool(message)


def test_shipped_weights_keep_the_record_of_their_training(resulic_model, tmp_path):
    source = tmp_path / "resulic-lambda36.safetensors"
    models.save_model(resulic_model, source, {"cdm": True, "eta": 1})
    ship([source], tmp_path / "small")
    assert read_training_record(tmp_path / "small" / source.name) == {"cdm": True, "eta": 1}
    (tmp_path / "cut.safetensors").write_bytes(source.read_bytes()[:100])
    with pytest.raises(CodecError, match=r"cut\.safetensors is no whole safetensors file"):
        read_training_record(tmp_path / "cut.safetensors")


def test_seed_decides_the_pixels(tiny, picture):
    image = picture(64, 64)
    first = tiny(seed=3).compress(image)
    assert np.array_equal(tiny(seed=3).decompress(first), tiny().decompress(first))
    assert not np.array_equal(tiny().decompress(first), tiny().decompress(tiny(seed=4).compress(image)))


def test_words_guide_and_are_counted(tiny, tmp_path, picture):
    """A token takes 16 bits, or fewer under the static prior. The suffix joins the prompt and is not sent."""
    image, words = picture(64, 64), "a barn reflected in a pond"
    for coder, bits in (("clip16", 16 * 6), ("prior", None)):
        codec = tiny(residuals=words, text=coder)
        data = codec.compress(image)
        text = Container.from_bytes(data).text
        assert text.count == 6
        assert text.bits == bits or (bits is None and text.bits < 16 * 6)
        assert codec.rate_breakdown(data)["text"] == 8 * (3 + len(text.data))
        assert tiny()._request(data).prompt == tuple(clip_tokens.tokenize(f"{words}, {SUFFIX}"))
        assert not np.array_equal(codec.decompress(data), codec.decompress(tiny().compress(image)))
    assert tiny()._request(tiny().compress(image)).prompt == tuple(clip_tokens.tokenize(SUFFIX))
    assert tiny()._request(tiny(residuals=words, text="deflate").compress(image)).prompt == tuple(
        clip_tokens.tokenize(f"{words}, {SUFFIX}")
    )
    (tmp_path / "captions.json").write_text(json.dumps({"a": words, "b": ""}))
    by_id = tiny(captions=tmp_path / "captions.json")
    streams = by_id.compress_batch([image, image], ["a", "b"])
    assert [by_id.rate_breakdown(data)["text"] > 0 for data in streams] == [True, False]
    with pytest.raises(CodecError, match=r"no caption for image 'c'"):
        by_id.compress(image, "c")


def test_long_captions_leave_room_for_the_suffix(tiny, picture):
    codec = tiny(residuals="word " * 100, text="clip16")
    data = codec.compress(picture(64, 64))
    prompt = codec._request(data).prompt
    assert len(prompt) == 75
    assert prompt[-6:] == tuple(clip_tokens.tokenize(", " + SUFFIX))
    assert Container.from_bytes(data).text.count == 69


def test_guidance_leads_away_from_the_negative(tiny, picture):
    data = tiny(residuals="a red barn").compress(picture(64, 64))
    decoded = tiny().decompress(data)
    assert not np.array_equal(decoded, tiny(negative="a red barn").decompress(data))
    assert not np.array_equal(decoded, tiny(suffix="").decompress(data))


@pytest.mark.parametrize("mode", ["default", "portable"])
def test_batches(tiny, mode, picture):
    """In a batch of mixed sizes, lambdas, seeds and words, each image equals what it would be alone, up to rounding of float32."""
    streams = [
        tiny(36, seed=1, mode=mode).compress(picture(64, 100, 0)),
        tiny(6, mode=mode, residuals="a boat").compress(picture(40, 40, 1)),
        tiny(6, seed=2).compress(picture(60, 128, 2)),
        tiny(6, seed=1, residuals="two dogs, grass").compress(picture(64, 128, 3)),
    ]
    codec = tiny(batch=2)
    for image, data in zip(codec.decompress_batch(streams), streams):
        alone = codec.decompress(data)
        assert image.shape == alone.shape
        assert np.abs(image.astype(int) - alone).max() <= 2


def test_wavelet_changes_only_low_frequencies(tiny, picture):
    data = tiny().compress(picture(128, 200))
    change = tiny(colour="wavelet").decompress(data).astype(float) - tiny().decompress(data)
    assert np.abs(change).mean() > 0.5
    assert np.abs(np.diff(change, axis=0)).mean() < 0.2 * np.abs(change).mean()


def test_bad_bytes(tiny, picture):
    codec = tiny(residuals="a boat", text="clip16")
    data = codec.compress(picture(64, 64))
    parsed = Container.from_bytes(data)
    unknown_tokens = replace(parsed.text, data=b"\xff" * len(parsed.text.data))
    foreign = [
        b"",
        data[:-1],
        replace(parsed, codec="diff-icmh", checksum=0).to_bytes(),
        replace(parsed, model=6 | 64, checksum=0).to_bytes(),  # A lambda that does not exist.
        replace(parsed, model=5, checksum=0).to_bytes(),  # Another profile.
        replace(parsed, checksum=0).to_bytes(),  # Other symbols.
        replace(parsed, text=unknown_tokens, checksum=0).to_bytes(),
        replace(parsed, width=700, checksum=0).to_bytes(),
    ]
    for bad in foreign:
        with pytest.raises(BitstreamError):
            codec.decompress(bad)


def test_mutated_streams(tiny, fuzz, picture):
    originals = [
        tiny(point, mode=mode, steps=steps, eta=eta, **words).compress(picture(*size))
        for point, mode, steps, eta, size, words in (
            (36, "default", 2, 0, (1, 1), {}),
            (6, "portable", 2, 0, (65, 130), {"residuals": "a barn"}),
            (1.5, "default", 2, 1, (128, 128), {"residuals": "a boat", "text": "clip16"}),
            (16, "default", 2, 0, (60, 200), {"residuals": "a boat", "text": "deflate"}),
            (6, "default", 2, 0, (40, 60), {"cdm": False, "ans": True}),
        )
    ]
    fuzz(tiny(), originals, count=80, seconds=20.0, memory=1 << 30)


DECODE = """
import sys, numpy, torch
torch.set_num_threads(2)
from icmbench.codecs.resulic import Resulic
folder = sys.argv[1]
codec = Resulic(1.5, profile="tiny", weights=__import__("pathlib").Path(folder), device="cpu")
numpy.save(f"{folder}/decoded.npy", codec.decompress(open(f"{folder}/stream", "rb").read()))
"""


def test_fresh_process_with_other_threads_decodes(tiny, folder, photo, tmp_path):
    """A stream made on one thread decodes in another process on two, from its bytes and the weights alone."""
    for name in ("resulic-lambda36.safetensors", "resulic-lambda1.5.safetensors", "backbone.safetensors"):
        os.link(folder / name, tmp_path / name)
    codec = tiny(residuals="a red door", seed=5)
    data = codec.compress(photo[:256, :384])
    (tmp_path / "stream").write_bytes(data)
    assert codec.rate_breakdown(data)["y"] > 1000  # The stream must hold symbols that could be decoded wrongly.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", DECODE, tmp_path], env=environment, check=True)
    assert np.abs(np.load(tmp_path / "decoded.npy").astype(int) - codec.decompress(data)).max() <= 2


def test_other_weights_are_noticed(tiny, picture):
    data = tiny().compress(picture(64, 64))
    models.load_model.cache_clear()  # Random weights warn when they are loaded, and another test may have loaded them.
    with pytest.raises(BitstreamError), pytest.warns(UserWarning, match=r"random"):
        Resulic(36, profile="tiny", weights="random", device="cpu").decompress(data)


def test_bad_options(tmp_path):
    wrong = [{"point": 5}, {"profile": "huge"}, {"steps": 0}, {"steps": 200, "noise_level": 100}, {"noise_level": 1000}, {"eta": 2}]
    for options in [*wrong, {"cfg": 0}, {"text": "morse"}, {"residuals": tmp_path / "none.json"}]:
        with pytest.raises(CodecError):
            Resulic(**{"point": 36, "profile": "tiny", "weights": "random", "device": "cpu"} | options)


def test_fingerprint_holds_what_decides_the_pixels(tiny):
    changes = [
        {"noise_level": 600},
        {"eta": 1},
        {"cdm": False},
        {"cdm": False, "ans": True},
        {"steps": 2},
        {"suffix": ""},
        {"negative": ""},
        {"residuals": "a boat"},
        {"captions": "a boat"},
        {"text": "clip16"},
        {"seed": 2},
    ]
    fingerprints = {tiny().fingerprint, tiny(6).fingerprint, *(tiny(**options).fingerprint for options in changes)}
    assert tiny().fingerprint in fingerprints
    assert len(fingerprints) == 2 + len(changes)


def test_importing_the_codec_is_cheap():
    code = "import sys, icmbench.codecs.resulic; print({'torch', 'diffusers', 'transformers', 'constriction'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
