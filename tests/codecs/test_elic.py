"""ELIC as a codec: any size, exact decoding, sizes as predicted, clear errors. Networks are narrow; benchmarks take wide ones."""

import hashlib
import json
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("constriction")
pytest.importorskip("safetensors")

from icmbench.codecs import bitstream, elic_model  # noqa: E402
from icmbench.codecs.base import BitstreamError, CodecError  # noqa: E402
from icmbench.codecs.bitstream import Container  # noqa: E402
from icmbench.codecs.elic import LAMBDAS, Elic  # noqa: E402
from icmbench.codecs.elic_model import ElicNetwork  # noqa: E402

NARROW = {"n": 16, "m": 24, "slices": (2, 2, 4, 8, 8), "context_widths": (20, 12), "parameter_width": 30}
SIZES = [(1, 1), (1, 64), (64, 1), (63, 65), (64, 64), (65, 130), (128, 192), (577, 33)]
GOLDEN = (
    "2103011711ced20b122595db832f96c1100f7a02d1f8eabdd71d8a52e4e2a7ba40db6e7fa21f88dad299654ce5cb793d2b8e"
    "3c76f0583ebdcc963a2bd39e40654df94d"
)
GOLDEN_LATENTS = 1817352198


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with weight files of both variants, with tables."""
    folder = tmp_path_factory.mktemp("elic")
    for variant in ("official", "chandelier"):
        elic_model.save_network(elic_model.fill_synthetic(ElicNetwork(variant, **NARROW)), folder / f"{variant}.safetensors")
    return folder


@pytest.fixture(scope="module")
def codec(weights):
    return Elic(0.016, weights=weights / "official.safetensors")


@pytest.fixture(scope="module")
def portable(weights):
    return Elic(0.016, weights=weights / "official.safetensors", mode="portable")


def picture(height, width, seed=0):
    """An image of structure and noise that is the same on every machine."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = 60 * np.stack([(x + y) % 97 > 48, (x * y) % 89 > 40, y % 61 > 30], -1)
    return (smooth + rng.integers(0, 150, (height, width, 3))).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ["official", "chandelier"])
def test_any_size_round_trips(weights, variant, size):
    codec = Elic(0.016, weights=weights / f"{variant}.safetensors")
    image = picture(*size)
    data = codec.compress(image)
    out = codec.decompress(data)
    assert out.shape == image.shape and out.dtype == np.uint8
    np.testing.assert_array_equal(codec.decompress(data), out)
    assert codec.compress(image) == data
    rates = codec.rate_breakdown(data)
    assert sum(rates.values()) == 8 * len(data) and rates["z"] > 0 and rates["y"] > 0 and rates["text"] == 0
    assert rates["header"] <= 8 * 13


def test_the_reconstruction_is_what_the_network_computes(codec, weights):
    network = elic_model.load_network(weights / "official.safetensors")
    image = picture(128, 192)
    with torch.no_grad():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)["x_hat"][0].permute(1, 2, 0).clamp(0, 1) * 255
    difference = np.abs(codec.decompress(codec.compress(image)).astype(float) - expected.numpy())
    assert np.quantile(difference, 0.99) <= 0.5 + 1e-3


def test_the_size_is_what_the_likelihoods_say(codec, weights):
    network = elic_model.load_network(weights / "official.safetensors")
    image = picture(256, 320)
    with torch.no_grad():
        likelihoods = network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)["likelihoods"]
    rates = codec.rate_breakdown(codec.compress(image))
    for part in "yz":
        assert rates[part] == pytest.approx(-torch.log2(likelihoods[part]).sum().item(), rel=0.02, abs=80)


def test_threads_do_not_matter(codec):
    image = picture(200, 130)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        data = codec.compress(image)
        torch.set_num_threads(1)
        one_thread = codec._engine.coder("default").decompress(Container.from_bytes(data).payload, 4, 3)
        codec.decompress(data)
        torch.set_num_threads(2)
        two_threads = codec._engine.coder("default").decompress(Container.from_bytes(data).payload, 4, 3)
        assert torch.equal(one_thread.y_hat, two_threads.y_hat)
    finally:
        torch.set_num_threads(threads)


FRESH_PROCESS = """
import sys, json, hashlib
from icmbench.codecs.elic import Elic
weights, *paths = sys.argv[1:]
codec = Elic(0.016, weights=weights)
print(json.dumps([hashlib.sha256(codec.decompress(open(path, "rb").read()).tobytes()).hexdigest() for path in paths]))
"""


def test_fresh_processes_decode_from_bytes_alone(codec, portable, weights, tmp_path):
    expected, paths = [], []
    for i, size in enumerate([(65, 130), (1, 1), (192, 64)]):
        for writer in (codec, portable):
            data = writer.compress(picture(*size, seed=i))
            paths.append(tmp_path / f"{len(paths)}.bin")
            paths[-1].write_bytes(data)
            expected.append(hashlib.sha256(codec.decompress(data).tobytes()).hexdigest())
    command = [sys.executable, "-c", FRESH_PROCESS, str(weights / "official.safetensors"), *map(str, paths)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == expected


def test_the_stream_says_its_mode_and_either_codec_decodes_it(codec, portable):
    image = picture(65, 130)
    for writer, reader in ((codec, portable), (portable, codec)):
        data = writer.compress(image)
        assert Container.from_bytes(data).portable == (writer is portable)
        assert reader.decompress(data).shape == image.shape
        np.testing.assert_array_equal(reader.decompress(data), writer.decompress(data))


def test_portable_costs_next_to_nothing_in_bytes(codec, portable):
    image = picture(192, 256)
    assert len(portable.compress(image)) == pytest.approx(len(codec.compress(image)), rel=0.01)


def test_bfloat16_transforms_decode_the_same_latents(weights, codec):
    half = Elic(0.016, weights=weights / "official.safetensors", dtype="bfloat16")
    image = picture(128, 130)
    data = half.compress(image)
    assert len(data) == pytest.approx(len(codec.compress(image)), rel=0.05)
    difference = half.decompress(data).astype(int) - codec.decompress(data)
    assert np.abs(difference).mean() < 2
    assert half.fingerprint != codec.fingerprint


def test_other_weights_never_decode_a_stream(codec, weights, tmp_path):
    data = codec.compress(picture(64, 64))
    with pytest.raises(BitstreamError):
        Elic(0.016, weights=weights / "chandelier.safetensors").decompress(data)
    network = elic_model.load_network(weights / "official.safetensors")
    network.g_s[-1].bias.data += 0.1  # Symbols do not depend on g_s, so they would still decode.
    elic_model.save_network(network, tmp_path / "other.safetensors")
    with pytest.raises(BitstreamError, match="other weights"):
        Elic(0.016, weights=tmp_path / "other.safetensors").decompress(data)


def test_the_same_weights_in_another_file_decode_a_stream(codec, weights, tmp_path):
    state = elic_model.load_network(weights / "official.safetensors").state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "w.pth.tar")
    data = codec.compress(picture(64, 70))
    np.testing.assert_array_equal(Elic(0.016, weights=tmp_path / "w.pth.tar").decompress(data), codec.decompress(data))


def test_truncated_altered_and_foreign_streams_are_refused(codec):
    data = codec.compress(picture(65, 70))
    body = data[:-2]
    rng = np.random.default_rng(0)
    bad = [data[:-1], data + b"\0", b"", b"\xff\xd8\xff" * 20, Container("cadc", 0, 5, 5, b"payload", checksum=0).to_bytes()]
    bad += [bitstream.seal(body[:cut]) for cut in (9, 20, len(body) // 2, len(body) - 1)]
    for position in rng.integers(14, len(body), 30):
        altered = bytearray(body)
        altered[position] ^= 0x10
        bad.append(bitstream.seal(bytes(altered)))
    for stream in bad:
        with pytest.raises(BitstreamError):
            codec.decompress(stream)


def test_a_container_finds_its_codec(codec):
    data = codec.compress(picture(10, 10))
    assert bitstream.codec_name(data) == Elic.name == "elic"
    assert LAMBDAS[Container.from_bytes(data).model - 1] == 0.016


def test_large_plain_images_code_to_a_few_bytes_more_than_the_floor(weights):
    network = elic_model.fill_synthetic(ElicNetwork("official", **NARROW))
    for name, parameter in network.named_parameters():
        if name.startswith(("g_a", "h_a")):
            parameter.data.zero_()
    elic_model.save_network(network, weights / "flat.safetensors")
    flat = Elic("flat", weights=weights / "flat.safetensors")
    image = np.zeros((1088, 1024, 3), np.uint8)
    data = flat.compress(image)
    assert len(data) >= (1088 * 1024 - bitstream.FREE_PIXELS) // bitstream.PIXELS_PER_BYTE
    assert flat.decompress(data).shape == image.shape


@pytest.mark.parametrize("shape, dtype", [((4, 4), "u1"), ((0, 4, 3), "u1"), ((4, 4, 3), "f4"), ((4, 4, 4), "u1")])
def test_what_is_no_image_is_refused(codec, shape, dtype):
    with pytest.raises(CodecError, match="uint8 array of shape"):
        codec.compress(np.zeros(shape, dtype))


def test_missing_damaged_and_foreign_weights_are_named(weights, tmp_path):
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save({"g_a.0.weight": torch.zeros(4, 3, 5, 5)}, tmp_path / "foreign.pth")
    state = elic_model.load_network(weights / "official.safetensors").state_dict()
    torch.save({**state, "g_a.0.bias": torch.zeros(3)}, tmp_path / "misfit.pth")
    for path, message in (
        (None, "needs weights"),
        (tmp_path / "none.pth", "no ELIC weights at"),
        (tmp_path / "junk.safetensors", "no safetensors"),
        (tmp_path / "junk.pth", "no checkpoint"),
        (tmp_path / "foreign.pth", "no ELIC"),
        (tmp_path / "misfit.pth", "do not fit"),
    ):
        with pytest.raises(CodecError, match=message):
            Elic(0.016, weights=path)
    with pytest.raises(CodecError, match="variant: official"):
        Elic(0.016, weights=weights / "official.safetensors", variant="chandelier")
    with pytest.raises(CodecError, match="float32 or bfloat16"):
        Elic(0.016, weights=weights / "official.safetensors", dtype="float16")
    with pytest.raises(CodecError, match="default or portable"):
        Elic(0.016, weights=weights / "official.safetensors", mode="exact")


def test_points_find_their_weights_and_their_label(weights):
    codec = Elic("official", weights=str(weights / "{point}.safetensors"))
    assert codec.point.label == "official"
    assert Elic(0.15, weights=weights / "official.safetensors").point.label == "lambda=0.15"
    assert len(Elic.default_points) == 6


def test_the_fingerprint_names_what_decides_the_bytes(codec, portable):
    facts = json.loads(codec.fingerprint)
    assert facts["codec"] == "elic" and facts["mode"] == "default" and len(facts["weights"]) == 64
    assert portable.fingerprint != codec.fingerprint


def test_importing_the_codec_imports_no_network():
    script = "import sys, icmbench.codecs.elic as m; print([x for x in ('torch', 'constriction', 'scipy') if x in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_strips_compute_what_the_whole_map_does(monkeypatch):
    torch.manual_seed(0)
    bottleneck = elic_model.ResidualBottleneck(8).eval()
    attention = elic_model.Attention(8).eval()
    x = torch.randn(1, 8, 45, 20).contiguous(memory_format=torch.channels_last)
    expected = bottleneck(x), attention(x)  # With gradients, whole maps are computed.
    monkeypatch.setattr(elic_model, "_STRIP_BYTES", 1)
    with torch.no_grad():
        torch.testing.assert_close(attention(x.clone()), expected[1])
        torch.testing.assert_close(bottleneck(x.clone()), expected[0])


def test_the_last_layer_equals_its_transposed_convolution():
    torch.manual_seed(0)
    layer, x = elic_model._ToPixels(7, 3, 5, 2, 2, 1), torch.randn(2, 7, 5, 9)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), torch.nn.ConvTranspose2d.forward(layer, x), atol=1e-5, rtol=1e-5)


def test_chandelier_checkpoints_load(weights):
    """State dicts with Chandelier's key names, and CompressAI's older names of the entropy bottleneck, load."""
    network = elic_model.load_network(weights / "chandelier.safetensors")
    state = {}
    for key, value in network.state_dict().items():
        for own, chandelier in (
            ("context.spatial_context.", "context_prediction."),
            ("context.parameters_nonanchor.", "ParamAggregation."),
            ("entropy_bottleneck.matrices.", "entropy_bottleneck._matrix"),
            ("entropy_bottleneck.biases.", "entropy_bottleneck._bias"),
            ("entropy_bottleneck.factors.", "entropy_bottleneck._factor"),
        ):
            key = key.replace(own, chandelier)
        if key.startswith("context.channel_context."):
            k, name = key.removeprefix("context.channel_context.").split(".", 1)
            key = f"cc_transforms.{int(k) - 1}.{name}"
        state[key] = value
        if key.startswith("context_prediction") and key.endswith("weight"):
            state[key.replace("weight", "mask")] = torch.ones_like(value)
    assert "cc_transforms.0.0.weight" in state and "ParamAggregation.4.4.bias" in state
    loaded = ElicNetwork.from_state_dict(state)
    assert loaded.variant == "chandelier" and elic_model.weights_checksum(loaded) == elic_model.weights_checksum(network)


def test_golden_stream(portable):
    """Every later version must decode this stream to these latents, on any processor. The stream's own symbol check demands it."""
    data = bytes.fromhex(GOLDEN)
    latents = portable._engine.coder("portable").decompress(Container.from_bytes(data).payload, 1, 1)
    assert zlib.crc32(latents.y_hat.contiguous().numpy().tobytes()) == GOLDEN_LATENTS
    assert portable.decompress(data).shape == (17, 23, 3)
    assert portable.compress(picture(17, 23)) == data


OTHER_KERNELS = """
import sys, zlib
from icmbench.codecs.bitstream import Container
from icmbench.codecs.elic import Elic
codec = Elic(0.016, weights=sys.argv[1])
data = open(sys.argv[2], "rb").read()
height, width = (-(-side // 64) for side in codec.decompress(data).shape[:2])
latents = codec._engine.coder("portable").decompress(Container.from_bytes(data).payload, height, width)
print(zlib.crc32(latents.y_hat.contiguous().numpy().tobytes()))
"""


def test_portable_streams_decode_to_the_same_bits_with_the_kernels_of_an_older_processor(portable, weights, tmp_path):
    data = portable.compress(picture(130, 200))
    (tmp_path / "stream").write_bytes(data)
    expected = portable._engine.coder("portable").decompress(Container.from_bytes(data).payload, 3, 4).y_hat
    command = [sys.executable, "-c", OTHER_KERNELS, str(weights / "official.safetensors"), str(tmp_path / "stream")]
    older_processor = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
    run = subprocess.run(command, env={**os.environ, **older_processor}, capture_output=True, text=True, check=True)
    assert int(run.stdout) == zlib.crc32(expected.contiguous().numpy().tobytes())
