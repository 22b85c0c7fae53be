"""CompressAI's zoo models with generated weights, compared with CompressAI's own forward pass. Skips where it is not installed."""

import json
import random
from typing import Any

import numpy as np
import pytest

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import codec_name
from icmbench.codecs.compressai_zoo import QUALITIES, CompressAiZoo

from .helpers import smooth_image

torch = pytest.importorskip("torch")
compressai = pytest.importorskip("compressai", reason="needs the extra compressai")

FAST = ["bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "bmshj2018-hyperprior-vbr", "mbt2018-mean-vbr"]


def network(model: str, seed: int = 0, quality: int = 2) -> Any:
    """A network whose latents are not all zero, as they would be with fresh weights."""
    torch.manual_seed(seed)
    variable_z = {"vr_entbttlnck": True} if model in ("bmshj2018-hyperprior-vbr", "mbt2018-mean-vbr") else {}
    net = compressai.zoo.image_models[model](quality=quality, pretrained=False, **variable_z).eval()
    last = list(net.g_a.children())[-1]
    layer = last if isinstance(last, torch.nn.Conv2d) else list(last.modules())[-1]
    with torch.no_grad():
        layer.weight *= 60
    if not variable_z:  # CompressAI makes tables of variable-rate models for each level, and cannot load them.
        net.update(force=True)
    return net


@pytest.fixture(scope="module")
def make_network(tmp_path_factory):
    """Makes the network of a model once. Returns it and the path of its state dict, in which {point} stands for the quality."""
    folder, networks = tmp_path_factory.mktemp("weights"), {}

    def make(model: str):
        if model not in networks:
            networks[model] = network(model)
            torch.save(networks[model].state_dict(), folder / f"{model}-2.pth.tar")
            networks[model].update()
        return networks[model], folder / f"{model}-{{point}}.pth.tar"

    return make


@pytest.fixture
def codec(make_network):
    return CompressAiZoo(2, model="bmshj2018-hyperprior", weights=make_network("bmshj2018-hyperprior")[1])


def forward(net: Any, image: np.ndarray, **level: int) -> np.ndarray:
    """The reconstruction of CompressAI's forward pass, without a stream. The image's sides are multiples of 64."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        x_hat = net(x, **level)["x_hat"]
    return (x_hat[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("model", FAST)
def test_reconstructions_are_those_of_the_forward_pass(make_network, model):
    net, weights = make_network(model)
    image = smooth_image(128, 192)
    codec = CompressAiZoo(2, model=model, weights=weights)
    stream = codec.compress(image)
    level = {"s": 1} if model.endswith("-vbr") else {}
    difference = codec.decompress(stream).astype(int) - forward(net, image, **level)
    assert np.abs(difference).max() <= 1 and np.mean(difference != 0) < 1e-3
    with torch.no_grad():
        strings = net.compress(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255, **level)["strings"]
    parts = codec.rate_breakdown(stream)
    assert sum(parts.values()) == 8 * len(stream)
    assert parts["y"] == 8 * len(strings[0][0]) > 8 * 100
    assert parts["z"] == (8 * len(strings[1][0]) if len(strings) > 1 else 0)


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
@pytest.mark.parametrize("model", list(QUALITIES))
def test_every_model_codes_sizes_that_are_no_multiples(make_network, model):
    codec = CompressAiZoo(2, model=model, weights=make_network(model)[1])
    for shape in [(1, 1), (65, 70)] if model in FAST else [(33, 47)]:
        image = smooth_image(*shape)
        image.flags.writeable = False  # as in the images that the harness passes
        stream = codec.compress(image)
        assert stream == codec.compress(image) and codec_name(stream) == "compressai"
        reconstruction = codec.decompress(stream)
        assert (reconstruction.shape, reconstruction.dtype) == (image.shape, np.uint8)
        assert reconstruction.flags.c_contiguous and np.array_equal(reconstruction, codec.decompress(stream))


def test_padding_is_centred_and_black(make_network, codec):
    net, _ = make_network("bmshj2018-hyperprior")
    image = smooth_image(50, 61)
    padded = torch.nn.functional.pad(torch.from_numpy(image), (0, 0, 1, 2, 7, 7)).numpy()
    difference = codec.decompress(codec.compress(image)).astype(int) - forward(net, padded)[7:57, 1:62]
    assert np.abs(difference).max() <= 1


def test_levels_of_a_variable_rate_model_differ(make_network):
    _, weights = make_network("mbt2018-mean-vbr")
    path = str(weights).replace("{point}", "2")
    low, high = (CompressAiZoo(quality, model="mbt2018-mean-vbr", weights=path) for quality in (1, 8))
    image = smooth_image(64, 64)
    assert len(low.compress(image)) < len(high.compress(image))
    assert low.fingerprint != high.fingerprint


def test_the_callers_threads_do_not_matter(codec):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        stream = codec.compress(smooth_image(128, 192))
        torch.set_num_threads(1)
        image = codec.decompress(stream)
        torch.set_num_threads(3)
        assert np.array_equal(codec.decompress(stream), image) and codec.compress(smooth_image(128, 192)) == stream
    finally:
        torch.set_num_threads(before)


def test_a_training_checkpoint_is_read(make_network, tmp_path):
    net, weights = make_network("bmshj2018-hyperprior")
    path = tmp_path / "checkpoint.pth.tar"
    state = {f"module.{key}": value for key, value in net.state_dict().items()}  # as saved from a DataParallel model
    torch.save({"epoch": 3, "state_dict": state, "loss": torch.tensor(0.5)}, path)
    trained, plain = CompressAiZoo(2, weights=path), CompressAiZoo(2, weights=weights)
    assert trained.fingerprint == plain.fingerprint
    stream = plain.compress(smooth_image(64, 64))
    assert np.array_equal(trained.decompress(stream), plain.decompress(stream))


def test_tables_that_a_checkpoint_lacks_are_made(make_network, tmp_path):
    net, weights = make_network("bmshj2018-hyperprior")
    state = dict(net.state_dict())
    for key in list(state):
        if key.rpartition(".")[2] in ("_quantized_cdf", "_cdf_length", "_offset"):
            state[key] = torch.empty(0, dtype=torch.int32)
    torch.save(state, tmp_path / "early.pth")
    codec = CompressAiZoo(2, weights=tmp_path / "early.pth")
    image = smooth_image(64, 64)
    assert np.array_equal(
        codec.decompress(codec.compress(image)), CompressAiZoo(2, weights=weights).decompress(codec.compress(image))
    )


def test_streams_of_other_weights_are_refused(codec, tmp_path):
    torch.save(network("bmshj2018-hyperprior", seed=1).state_dict(), tmp_path / "other.pth")
    other = CompressAiZoo(2, weights=tmp_path / "other.pth")
    with pytest.raises(BitstreamError, match="made with other weights"):
        other.decompress(codec.compress(smooth_image(64, 64)))
    assert other.fingerprint != codec.fingerprint


def test_bad_bytes_are_refused(codec):
    stream = codec.compress(smooth_image(33, 47))
    generator = random.Random(0)
    cuts = [stream[:length] for length in range(len(stream))]
    altered = []
    for _ in range(500):
        data = bytearray(stream)
        data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        altered.append(bytes(data))
    for data in [*cuts, *altered, stream + b"\0", bytes(100), generator.randbytes(1000)]:
        with pytest.raises(BitstreamError):
            codec.decompress(data)


def test_the_fingerprint_names_model_weights_and_versions(codec):
    facts = json.loads(codec.fingerprint)
    assert facts["model"] == "bmshj2018-hyperprior" and facts["quality"] == 2 and len(facts["weights"]) == 64
    assert facts["compressai"] == compressai.__version__ and facts["torch"] == torch.__version__
    assert (codec.point.label, codec.point.order) == ("quality=2", 2)


@pytest.mark.parametrize(
    ("point", "options", "message"),
    [
        (9, {}, "quality is a number from 1 to 8"),
        (7, {"model": "cheng2020-attn"}, "quality is a number from 1 to 6"),
        (1, {"model": "bmshj2018"}, "model is one of bmshj2018-factorized"),
        (1, {"metric": "ssim"}, "there are no weights of bmshj2018-hyperprior for 'ssim'"),
        (1, {"metric": "ms-ssim", "model": "mbt2018-vbr"}, "there are no weights of mbt2018-vbr"),
        (1, {"weights": "nowhere-{point}.pth"}, "no such checkpoint: nowhere-1.pth"),
    ],
)
def test_bad_settings_are_refused(point, options, message):
    with pytest.raises(CodecError, match=message):
        CompressAiZoo(point, **options)


def test_what_is_no_checkpoint_is_refused(make_network, tmp_path):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save({"state_dict": {"g_a.0.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    whole_module = make_network("bmshj2018-hyperprior")[0]  # Loading it would need code, not only tensors.
    torch.save(whole_module, tmp_path / "pickled.pth")
    for name, message in {
        "text": "no checkpoint of tensors alone",
        "other": "no state dict of bmshj2018-hyperprior",
        "tensor": "holds no state dict",
        "pickled": "no checkpoint of tensors alone",
    }.items():
        with pytest.raises(CodecError, match=message):
            CompressAiZoo(1, weights=tmp_path / f"{name}.pth")
    with pytest.raises(CodecError, match="no state dict of cheng2020-anchor"):
        CompressAiZoo(2, model="cheng2020-anchor", weights=make_network("bmshj2018-hyperprior")[1])


def test_an_unreachable_hub_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # Nothing answers at this address.
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(
        CodecError, match=r"^compressai: the weights of mbt2018 \(mse, quality 3\) are not in torch's cache and cannot"
    ):
        CompressAiZoo(3, model="mbt2018")


def test_only_rgb_arrays_are_compressed(codec):
    with pytest.raises(CodecError, match="uint8 array of shape"):
        codec.compress(np.zeros((8, 8), np.uint8))
