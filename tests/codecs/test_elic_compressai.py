"""Conformance with CompressAI 1.2.8: equal weights give equal numbers. Skips if it is not installed (it needs numpy < 2)."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressai", reason="compressai==1.2.8 is not installed; it needs an environment of its own with numpy<2")

from compressai.entropy_models import EntropyBottleneck as CompressAiBottleneck  # noqa: E402
from compressai.entropy_models import GaussianConditional as CompressAiGaussian  # noqa: E402
from compressai.models.sensetime import Elic2022Chandelier, Elic2022Official  # noqa: E402
from PIL import Image  # noqa: E402

from icmbench.codecs import elic_model  # noqa: E402
from icmbench.codecs.bitstream import Container  # noqa: E402
from icmbench.codecs.elic import Elic  # noqa: E402
from icmbench.codecs.elic_model import ElicNetwork  # noqa: E402
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional  # noqa: E402

NETWORKS = {"official": Elic2022Official, "chandelier": Elic2022Chandelier}


@pytest.fixture(params=NETWORKS)
def theirs(request):
    """CompressAI's network with n = 32 and m = 160, and with weights that spread latents and scales."""
    network = elic_model.fill_synthetic(ElicNetwork(request.param, n=32, m=160))
    twin = NETWORKS[request.param](32, 160).eval()
    our_state, their_state = network.state_dict(), twin.state_dict()
    for our_key, their_key in elic_model.rename_keys({key: key for key in their_state}).items():
        if our_key in our_state and our_state[our_key].shape == their_state[their_key].shape:
            their_state[their_key].copy_(our_state[our_key])
    twin.update(force=True)
    return twin


@pytest.fixture
def photo(shared):
    pixels = np.asarray(Image.open(shared / "data/kodak/kodim03.png").convert("RGB"))[:384, :512]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255


def distance(a, b):
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def test_forward_is_equal(theirs, photo):
    ours = ElicNetwork.from_state_dict(theirs.state_dict())
    with torch.no_grad():
        a, b = ours(photo), theirs(photo)
        assert distance(ours.g_a(photo), theirs.g_a(photo)) < 1e-5
    ties = sum(int(((a["likelihoods"][p] - b["likelihoods"][p]).abs() > 1e-3).sum()) for p in "yz")
    print(f"{ties} rounding ties")
    assert b["likelihoods"]["y"].std() > 0.1  # The latents are not all zero.
    assert ties or distance(a["x_hat"], b["x_hat"]) < 1e-5
    for part in "yz":
        differs = (a["likelihoods"][part] - b["likelihoods"][part]).abs() > 1e-5
        assert differs.float().mean() < 1e-3


def test_gradients_are_equal(theirs):
    torch.manual_seed(0)
    ours, x = ElicNetwork.from_state_dict(theirs.state_dict()), torch.rand(1, 3, 64, 64)
    results = []
    for network in (ours, theirs):
        network.eval().zero_grad()
        out = network(x)
        (out["x_hat"].square().mean() - sum(p.log().mean() for p in out["likelihoods"].values())).backward()
        results.append({"g_a": network.g_a[0].weight.grad, "g_s": network.g_s[1].weight.grad, "h_a": network_h_a(network).grad})
    for name, gradient in results[0].items():
        assert distance(gradient, results[1][name]) < 1e-3, name


def network_h_a(network):
    return (network.h_a if isinstance(network, ElicNetwork) else network.latent_codec["hyper"].h_a)[0].weight


def test_streams_are_as_small(theirs, photo, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    codec = Elic(0.016, weights=tmp_path / "w.pth")
    image = (photo[0].permute(1, 2, 0) * 255).round().byte().numpy()
    data = codec.compress(image)
    with torch.no_grad():
        size = sum(len(strings[0]) for strings in theirs.compress(photo)["strings"])
    assert len(Container.from_bytes(data).payload) == pytest.approx(size, rel=0.01)
    assert codec.decompress(data).shape == image.shape


def test_their_tables_are_used_as_they_are(theirs):
    ours = ElicNetwork.from_state_dict(theirs.state_dict())
    gaussian = theirs.latent_codec["y"].latent_codec["y0"].y.gaussian_conditional
    np.testing.assert_array_equal(ours.gaussian_conditional.tables.cdf, gaussian.quantized_cdf.numpy())
    bottleneck = theirs.latent_codec["hyper"].entropy_bottleneck
    np.testing.assert_array_equal(ours.entropy_bottleneck.tables.offset, bottleneck.offset.numpy())


def test_their_checkpoints_without_tables_load(theirs):
    blank = NETWORKS[ElicNetwork.from_state_dict(theirs.state_dict()).variant](32, 160)
    ours = ElicNetwork.from_state_dict(blank.state_dict())
    assert ours.gaussian_conditional.tables.length.max() > 3000 and ours.entropy_bottleneck.has_tables


def test_models_start_and_compute_like_theirs():
    ours, theirs = EntropyBottleneck(7), CompressAiBottleneck(7)
    assert all(torch.equal(a, b) for a, b in zip(ours.matrices, theirs.matrices)) and torch.equal(ours.quantiles, theirs.quantiles)
    ours.load_state_dict(theirs.state_dict())
    z = 5 * torch.randn(2, 7, 4, 6)
    for a, b in zip(ours.eval()(z), theirs.eval()(z)):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours.auxiliary_loss(), theirs.loss())
    y, scales, means = torch.randn(3, 2, 8, 5, 5) * 3
    their_gaussian = CompressAiGaussian([float(s) for s in GaussianConditional().scale_table]).eval()
    for a, b in zip(GaussianConditional().eval()(y, scales.abs(), means), their_gaussian(y, scales.abs(), means)):
        torch.testing.assert_close(a, b)
    assert GaussianConditional().table_rows(scales).tolist() == their_gaussian.build_indexes(scales).flatten().tolist()
