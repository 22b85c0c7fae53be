"""CADC: any image to bytes and back, with one evaluation of the UNet and no text in the stream."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import Container, Text
from icmbench.codecs.cadc import CHANNELS, PROMPT, Cadc
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.backbone import adapted
from icmbench.codecs.diffusion.cadc_model import SEPARATOR, CadcModel
from icmbench.codecs.diffusion.latents.cadc_compressor import CADC_PROFILES, CadcCompressor
from icmbench.codecs.diffusion.prompts import clip_tokens
from icmbench.codecs.diffusion.sampling import samplers
from icmbench.harness.config.options import bind


@pytest.fixture(scope="module")
def folder(backbone, tmp_path_factory):
    """Random weights of two points, with latents that are not all zero and with UNets that differ."""
    folder = tmp_path_factory.mktemp("cadc")
    for point in (2, 32):
        with torch.random.fork_rng():
            torch.manual_seed(point)
            latent, unet = CadcCompressor(**CADC_PROFILES["tiny"]), adapted.adapt_unet(backbone.unet, 32)
            torch.nn.init.normal_(latent.g_a[-2].dense[-1].weight, std=1.0)
            torch.nn.init.normal_(unet.conv_in.weight, std=0.05)
            for net in latent.context.adapters_out:
                torch.nn.init.constant_(net.light.bias[32:], 1.5)  # Scales that fit latents of this size.
        models.save_model(CadcModel(backbone, latent, unet), folder / f"cadc-lambda{point}.safetensors")
    models.save_backbone(backbone, folder / "backbone.safetensors")
    return folder


@pytest.fixture(scope="module")
def tiny(folder):
    """A function that makes a codec of the tiny profile from options."""
    return lambda point=2, **options: Cadc(point, **{"profile": "tiny", "weights": folder, "device": "cpu"} | options)


@pytest.fixture
def calls(tiny):
    """The shapes of the inputs of all evaluations of the UNet of lambda 2 during a test."""
    shapes = []
    unet = tiny()._model_and_decoding(Container("cadc", 1 | 1 << 6, 1, 1, b""))[0].backbone.unet
    handle = unet.conv_in.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    yield shapes
    handle.remove()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (65, 130), (257, 33)])
def test_any_size_in_one_evaluation_without_text(tiny, size, picture, calls):
    """An image that is smaller than its padding is reflected repeatedly."""
    codec, image = tiny(), picture(*size)
    data = codec.compress(image)
    assert not calls
    decoded = codec.decompress(data)
    assert (decoded.shape, decoded.dtype) == (image.shape, np.uint8)
    rates = codec.rate_breakdown(data)
    assert sum(rates.values()) == 8 * len(data)
    assert rates["text"] == 0 and rates["y"] > 0 and rates["z"] > 0
    assert len(calls) == 1 and calls[0][:2] == (1, 32)


def test_the_step_is_that_of_the_paper(tiny, picture):
    """The decoder's pixels are those of x0 = (x - sqrt(1 - abar) eps) / sqrt(abar), computed here from the networks."""
    codec, image = tiny(), picture(256, 256)
    request = codec._request(codec.compress(image))
    model, backbone = request.model, request.model.backbone
    y_hat, _ = model.latents(request.container, request.data)
    with torch.no_grad():
        l_t = model.latent.g_s(y_hat)
        eps = backbone.eps(l_t, torch.tensor([999]), backbone.embed([PROMPT]))
        clean = (l_t[:, :4] - (1 - backbone.abar[999]).sqrt().float() * eps) / backbone.abar[999].sqrt().float()
        expected = (backbone.decode(clean)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert abs(float(backbone.abar[999]) - 0.00466) < 1e-5
    assert np.abs(codec.decompress(request.data).astype(int) - expected).max() <= 1


def test_captions_cost_no_bits_and_change_the_pixels(tiny, picture, calls):
    captioned_pictures = []

    def captioner(picture):
        captioned_pictures.append(picture)
        return "a red door"

    image = picture(256, 300)
    plain, captioned = tiny(), tiny(captioner=captioner)
    data = captioned.compress(image)
    assert not captioned_pictures
    assert captioned.rate_breakdown(data) == plain.rate_breakdown(plain.compress(image))
    decoded = captioned.decompress(data)
    assert len(calls) == 1
    assert (captioned_pictures[0].shape, captioned_pictures[0].dtype) == ((256, 512, 3), np.uint8)
    prompted = tiny(prompt="a red door, " + PROMPT)
    assert np.array_equal(prompted.decompress(prompted.compress(image)), decoded)
    assert not np.array_equal(plain.decompress(plain.compress(image)), decoded)
    with pytest.raises(BitstreamError, match=r"set `captioner`"):
        plain.decompress(data)
    assert captioned.fingerprint != plain.fingerprint != prompted.fingerprint


@pytest.mark.parametrize("mode", ["default", "portable"])
def test_batches(tiny, mode, picture, calls):
    streams = [
        tiny(2, mode=mode).compress(picture(64, 100, 0)),
        tiny(32, mode=mode).compress(picture(40, 40, 1)),
        tiny(2).compress(picture(60, 128, 2)),
    ]
    codec = tiny(colour="wavelet")
    together = codec.decompress_batch(streams)
    assert [shape[0] for shape in calls] == [2]
    for image, data in zip(together, streams):
        alone = codec.decompress(data)
        assert image.shape == alone.shape
        assert np.abs(image.astype(int) - alone).max() <= 2
    images = [picture(64, 64, i) for i in range(2)]
    assert codec.compress_batch(images, ["a", "b"]) == [codec.compress(image) for image in images]


def test_uncertainty_concerns_only_the_encoder(tiny, photo):
    """m >= 1 shrinks y, z does not depend on m, and a decoder without UGAQ decodes the same pixels."""
    ugaq, plain = tiny(), tiny(ugaq=False)
    data, plain_data = ugaq.compress(photo[:256]), plain.compress(photo[:256])
    assert data != plain_data
    assert ugaq.rate_breakdown(data)["z"] == plain.rate_breakdown(plain_data)["z"]
    assert np.array_equal(plain.decompress(data), ugaq.decompress(data))
    assert ugaq.fingerprint != plain.fingerprint
    latent = ugaq._request(data).model.latent
    pixels = torch.from_numpy(photo[:256]).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        y = latent.g_a(2 * pixels - 1)
        m = latent.uncertainty(y, latent.h_a(y))
        modulated, z = latent.analyse(pixels)
    assert m.shape == (1, 1, 4, 12)
    assert m.min() >= 1 and m.std() > 0
    torch.testing.assert_close(modulated, y / m)
    torch.testing.assert_close(z, latent.h_a(y))


@pytest.fixture
def trained_otherwise(backbone, tmp_path):
    """A function that makes weights of lambda 2 with options of the compressor, and their folder; they record these options."""

    def make(**options):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            latent, unet = CadcCompressor(**CADC_PROFILES["tiny"], **options), adapted.adapt_unet(backbone.unet, 32)
            torch.nn.init.normal_(latent.g_a[-2].dense[-1].weight, std=1.0)
            for net in latent.context.adapters_out:
                torch.nn.init.constant_(net.light.bias[32:], 1.5)
        models.save_model(CadcModel(backbone, latent, unet), tmp_path / "cadc-lambda2.safetensors", options)
        models.save_backbone(backbone, tmp_path / "backbone.safetensors")
        return tmp_path

    return make


@pytest.mark.parametrize("mode", ["default", "portable"])
def test_rounding_step_is_that_of_equation_5(tiny, folder, photo, mode, tmp_path):
    """y_hat is the latent rounded in steps of delta around the predicted means, and l_T is made from it in its own unit."""
    options = bind(Cadc, {"delta": 0.5}, "set", tmp_path)
    with pytest.warns(UserWarning, match=r"lambda=2 is coded with delta: 0\.5, but its weights were trained with delta: 1, so"):
        fine = tiny(mode=mode, **options)
    plain = tiny(mode=mode)
    image = photo[:256, :256]
    data = fine.compress(image)
    request = fine._request(data)
    model = request.model
    y_hat, z_hat = model.latents(request.container, data)
    y, _ = model.latent.analyse(model.pixels(image), None)
    unrounded = plain._request(plain.compress(image)).model.latent.analyse(model.pixels(image), None)[0]
    torch.testing.assert_close(0.5 * y, unrounded)
    assert ((0.5 * y_hat - unrounded).abs() <= 0.25 + 1e-3).all()  # Half a step, and what the grid of mode portable rounds off.
    assert (0.5 * y_hat - unrounded).abs().max() > 0.2
    torch.testing.assert_close(model.hint(y_hat, z_hat), model.latent.g_s(0.5 * y_hat))
    assert fine.rate_breakdown(data)["y"] > plain.rate_breakdown(plain.compress(image))["y"]
    assert fine.fingerprint != plain.fingerprint == tiny(mode=mode, delta=1.0, uncertainty_channels=1).fingerprint
    for codec, stream in ((plain, data), (fine, plain.compress(image))):  # Pixels of another step would look right.
        with pytest.raises(BitstreamError, match=r"not the encoded ones"):
            codec.decompress(stream)


@pytest.mark.parametrize(("options", "channels"), [({"delta": 2.0}, 1), ({"uncertainty_channels": 32}, 32)])
def test_a_codec_quantises_as_its_weights_were_trained(trained_otherwise, photo, options, channels):
    folder, common = trained_otherwise(**options), {"profile": "tiny", "device": "cpu"}
    codec = Cadc(2, weights=folder, **common)
    data = codec.compress(photo[:256, :256])
    latent = codec._request(data).model.latent
    assert (latent.delta, latent.f_u[-1].out_channels) == (options.get("delta", 1.0), channels)
    assert codec.decompress(data).shape == (256, 256, 3)
    assert codec.fingerprint == Cadc(2, weights=folder, **common, **options).fingerprint
    with torch.no_grad():
        y = latent.g_a(2 * torch.rand(1, 3, 256, 256) - 1)
        assert latent.uncertainty(y, latent.h_a(y)).shape == (1, channels, 4, 4)


def test_uncertainty_channels_have_to_fit_profile_and_weights(tiny, picture):
    for options in ({"uncertainty_channels": 2}, {"uncertainty_channels": 320}, {"delta": 0.0}, {"delta": float("nan")}):
        with pytest.raises(CodecError, match=next(iter(options))):
            tiny(**options)
        with pytest.raises(CodecError, match=next(iter(options))):
            CadcCompressor(**CADC_PROFILES["tiny"], **options)
    with pytest.raises(CodecError, match=r"f_u.*of another shape|of another shape.*f_u"):
        tiny(uncertainty_channels=32).compress(picture(64, 64))
    assert CadcCompressor(**CADC_PROFILES["tiny"]).context.channels == CHANNELS["tiny"]


def test_the_caption_keeps_its_last_word():
    """Joined to the letter, as equation 12 prints it, "door" and "A" would become one word of other tokens."""
    caption, prompt, whole = map(clip_tokens.tokenize, ("a red door", PROMPT, "a red door" + SEPARATOR + PROMPT))
    assert whole[: len(caption)] == caption and whole[-len(prompt) :] == prompt and len(whole) == len(caption) + len(prompt) + 1
    literal = clip_tokens.tokenize("a red door" + PROMPT)
    assert caption[-1] not in literal and literal[-len(prompt) :] != prompt


@pytest.mark.filterwarnings("ignore:.*random")
def test_bad_bytes(tiny, picture):
    codec = tiny()
    data = codec.compress(picture(64, 64))
    parsed = Container.from_bytes(data)
    with pytest.raises(BitstreamError):
        Cadc(2, profile="tiny", weights="random", device="cpu").decompress(data)
    foreign = [
        b"",
        data[:-1],
        data[:-1] + bytes([data[-1] ^ 1]),
        replace(parsed, codec="slim", checksum=0).to_bytes(),
        replace(parsed, model=15, checksum=0).to_bytes(),
        replace(parsed, model=1, checksum=0).to_bytes(),  # Another profile.
        replace(parsed, checksum=0).to_bytes(),
        replace(parsed, text=Text(2, 0, 8, b"a"), checksum=0).to_bytes(),
        replace(parsed, width=700, checksum=0).to_bytes(),
    ]
    for bad in foreign:
        with pytest.raises(BitstreamError):
            codec.decompress(bad)


def test_mutated_streams(tiny, fuzz, picture):
    originals = [tiny(mode=mode).compress(picture(*size)) for size in ((1, 1), (200, 90)) for mode in ("default", "portable")]
    fuzz(tiny(), originals, count=60, seconds=20.0, memory=1 << 30)


def test_fresh_process_decodes_the_same(tiny, folder, picture, tmp_path):
    streams = [tiny(mode=mode).compress(picture(200, 300)) for mode in ("default", "portable")]
    for index, data in enumerate(streams):
        (tmp_path / str(index)).write_bytes(data)
    code = (
        "import sys, torch, numpy as np, pathlib; torch.set_num_threads(1)\n"
        "from icmbench.codecs.cadc import Cadc\n"
        "weights, folder = map(pathlib.Path, sys.argv[1:])\n"
        "codec = Cadc(32, profile='tiny', weights=weights, device='cpu')\n"
        "np.save(folder / 'images.npy', codec.decompress_batch([(folder / name).read_bytes() for name in '01']))"
    )
    subprocess.run([sys.executable, "-c", code, folder, tmp_path], check=True)
    for image, data in zip(np.load(tmp_path / "images.npy"), streams):
        assert np.abs(image.astype(int) - tiny().decompress(data)).max() <= 1


def test_points_share_the_backbone(tiny, picture):
    """In memory, two points share all parameters of the UNet except conv_in, the only layer that these files replace."""
    first, second = (tiny(point)._request(tiny(point).compress(picture(64, 64))).model.backbone for point in (2, 32))
    shared = {id(p) for p in first.unet.parameters()} & {id(p) for p in second.unet.parameters()}
    assert len(shared) == len(list(first.unet.parameters())) - 2
    assert first.vae is second.vae


def test_lora_is_trained_as_factors_and_decodes_merged(backbone, tmp_path):
    pytest.importorskip("peft")
    t, context = torch.tensor([999]), backbone.embed(["a door"])
    x = torch.randn(1, 32, 16, 16)

    def predict(unet):
        return backbone.with_unet(unet).eps(x, t, context)

    unet = adapted.adapt_unet(backbone.unet, 32)
    torch.testing.assert_close(predict(unet), backbone.eps(x[:, :4], t, context))
    adapted.add_lora(unet, rank=4)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    trained = predict(unet)
    trained.square().mean().backward()
    trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trainable)
    state = adapted.adapted_state(unet, backbone.unet)
    assert sum(value.numel() for value in state.values()) == sum(parameter.numel() for parameter in trainable)
    merged = adapted.adapt_unet(backbone.unet, 32)
    adapted.fill_adapted(merged, state, "file")
    torch.testing.assert_close(predict(merged), trained, atol=1e-4, rtol=1e-4)
    assert (trained - backbone.eps(x[:, :4], t, context)).abs().max() > 0.1
    for damaged in (
        {key: value for key, value in state.items() if "conv_in" not in key},
        state | {"nowhere.weight": torch.ones(1)},
        state | {"conv_out.lora_A.weight": torch.ones(2, 2)},
    ):
        with pytest.raises(CodecError, match=r"does not fit"):
            adapted.fill_adapted(adapted.adapt_unet(backbone.unet, 32), damaged, "file")


def test_training_reaches_all_parameters():
    latent = CadcCompressor(**CADC_PROFILES["tiny"]).train()
    hint, likelihoods = latent(torch.rand(2, 3, 256, 256), None)
    assert hint.shape == (2, 32, 32, 32)
    assert likelihoods["y"].shape == (2, 32, 4, 4) and likelihoods["z"].shape == (2, 32, 1, 1)
    auxiliary = latent.auxiliary(hint)
    assert auxiliary.shape == (2, 3, 256, 256)
    (hint.mean() + auxiliary.mean() + sum(p.log().mean() for p in likelihoods.values())).backward()
    idle = [name for name, p in latent.named_parameters() if p.grad is None]
    assert idle == ["entropy_bottleneck.quantiles"]  # The auxiliary loss trains these.


def test_sizes_of_the_full_profile():
    """866.82M parameters in the UNet, as in the paper; the other networks have the sizes of StableCodec's blocks."""
    from icmbench.codecs.diffusion.backbone.stable_diffusion import PROFILES, DiffusionBackbone

    with init_empty_weights():
        base = DiffusionBackbone(PROFILES["sd21"])
        unet, latent = adapted.adapt_unet(base.unet, 320), CadcCompressor()

    def millions(*modules):
        return sum(p.numel() for module in modules for p in module.parameters()) / 1e6

    assert round(millions(unet), 2) == 866.82
    assert (latent.pad, latent.context.channels, unet.conv_in.in_channels) == (256, CHANNELS["sd21"], 320)
    print({name: round(millions(part), 2) for name, part in latent.named_children()}, round(millions(latent), 2))


def test_bad_options():
    for options in ({"point": 5}, {"profile": "huge"}, {"tile": 20}, {"batch": 0}, {"device": "gpu9"}):
        with pytest.raises(CodecError):
            Cadc(**{"point": 2, "profile": "tiny", "weights": "random", "device": "cpu"} | options)


def test_importing_the_codec_is_cheap():
    code = "import sys, icmbench.codecs.cadc; print({'torch', 'diffusers', 'transformers', 'constriction'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_one_step_draws_no_noise():
    sampler = samplers.OneStepSampler()
    abar = torch.linspace(0.999, 0.005, 1000, dtype=torch.float64)
    hint = torch.randn(2, 8, 4, 4)
    noise = samplers.draw_noise([1, 2], sampler.draws, 4, 4)
    assert noise.numel() == 0
    clean = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    eps = (hint[:, :4] - abar[999].sqrt() * clean) / (1 - abar[999]).sqrt()
    torch.testing.assert_close(sampler(lambda x, t: eps, abar, hint, noise), clean)


@pytest.mark.skipif(not os.environ.get("ICMBENCH_SLOW"), reason="8 GB and minutes; set ICMBENCH_SLOW=1")
def test_full_size_model_runs(picture):
    """The paper's sizes with random weights code an image of 1x300 pixels, padded to 256x512, on the CPU."""
    codec, image = Cadc(2, weights="random", device="cpu", dtype="float32"), picture(1, 300)
    start = time.perf_counter()
    with pytest.warns(UserWarning, match=r"random"):
        data = codec.compress(image)
    encoded = time.perf_counter()
    assert codec.decompress(data).shape == image.shape
    print(f"sd21, 1x300: load and encode {encoded - start:.1f} s, decode {time.perf_counter() - encoded:.1f} s, {len(data)} bytes")
