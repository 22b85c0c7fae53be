"""The factorised prior and the Gaussian conditional: probabilities, tables, state dicts of every CompressAI version."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from icmbench.codecs.base import CodecError  # noqa: E402
from icmbench.codecs.entropy import tables  # noqa: E402
from icmbench.codecs.entropy.models import (  # noqa: E402
    EntropyBottleneck,
    GaussianConditional,
    lower_bound,
    round_ste,
    to_symbols,
)

OLD_NAMES = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}


@pytest.fixture
def bottleneck():
    torch.manual_seed(0)
    model = EntropyBottleneck(5)
    for factor in model.factors:
        factor.data.uniform_(-0.5, 0.5)
    model.quantiles.data[:, 0, 1] = torch.tensor([0.3, -0.2, 0.0, 1.6, -4.4])
    model.quantiles.data[:, 0, 0] -= 20
    model.quantiles.data[:, 0, 2] += 20
    return model.eval()


def test_bottleneck_probabilities_sum_to_one_and_its_tables_hold_them(bottleneck):
    z = bottleneck.medians + torch.arange(-400, 401.0).view(1, 1, -1, 1)
    rounded, likelihood = bottleneck(z)
    torch.testing.assert_close(rounded, z)
    torch.testing.assert_close(likelihood.sum(2).flatten(), torch.ones(5), atol=1e-3, rtol=0)
    bottleneck.update()
    stored = bottleneck.tables
    for channel in range(5):
        counts = np.diff(stored.cdf[channel, : stored.length[channel]]) / (1 << tables.PRECISION)
        first = 400 + stored.offset[channel]
        expected = likelihood[0, channel, first : first + stored.escape[channel], 0].detach().numpy()
        np.testing.assert_allclose(counts[:-1], expected, atol=1e-5)


def test_rounding_is_around_the_median_and_its_gradient_is_straight(bottleneck):
    z = torch.full((1, 5, 1, 1), 0.7, requires_grad=True)
    z_hat = bottleneck.quantise(z)
    torch.testing.assert_close(z_hat.flatten().detach(), torch.tensor([0.3, 0.8, 1.0, 0.6, 0.6]))
    z_hat.sum().backward()
    assert (z.grad == 1).all()


def test_training_adds_noise_below_half(bottleneck):
    y = torch.zeros(2, 5, 8, 8)
    noisy, likelihood = bottleneck.train()(y)
    assert noisy.abs().max() <= 0.5 and noisy.std() > 0.2 and likelihood.shape == y.shape


def test_the_auxiliary_loss_finds_the_quantiles():
    torch.manual_seed(0)
    model = EntropyBottleneck(3)
    optimiser = torch.optim.Adam([model.quantiles])
    for step in range(600):
        optimiser.param_groups[0]["lr"] = 4 * 0.985**step
        optimiser.zero_grad()
        loss = model.auxiliary_loss()
        loss.backward()
        optimiser.step()
    assert loss < 0.2
    assert all(p.grad is None for name, p in model.named_parameters() if name != "quantiles")
    at_median = torch.sigmoid(model._logits(model.quantiles[:, :, 1:2]))
    torch.testing.assert_close(at_median.flatten().detach(), torch.full((3,), 0.5), atol=0.01, rtol=0)


@pytest.mark.parametrize("old", [False, True])
def test_state_dicts_of_every_compressai_version_load(bottleneck, old):
    stored = {"eb." + key: value for key, value in bottleneck.state_dict().items() if not key.startswith("_")}
    if old:
        for new, prefix in OLD_NAMES.items():
            for i in range(5):
                if f"eb.{new}.{i}" in stored:
                    stored[f"eb.{prefix}{i}"] = stored.pop(f"eb.{new}.{i}")
        assert "eb._matrix0" in stored and "eb.matrices.0" not in stored
    stored["eb.target"], stored["eb.likelihood_lower_bound.bound"] = torch.zeros(3), torch.zeros(1)
    holder = torch.nn.Module()
    holder.eb = EntropyBottleneck(5)
    holder.load_state_dict(stored)
    z = torch.randn(1, 5, 4, 4)
    torch.testing.assert_close(holder.eb.eval()(z)[1], bottleneck(z)[1], rtol=0, atol=0)
    assert not holder.eb.has_tables


def test_tables_travel_with_the_weights(bottleneck, monkeypatch):
    gaussian = GaussianConditional()
    for model, blank in ((bottleneck, EntropyBottleneck(5)), (gaussian, GaussianConditional())):
        with pytest.raises(CodecError, match=r"update\(\)"):
            _ = model.tables
        model.update()
        monkeypatch.setattr(tables, "build", None)  # Loading must not make the tables again.
        blank.load_state_dict(model.state_dict())
        for name in ("cdf", "length", "offset"):
            np.testing.assert_array_equal(getattr(blank.tables, name), getattr(model.tables, name))
        monkeypatch.undo()


def test_damaged_tables_and_quantiles_are_named(bottleneck):
    bottleneck.update()
    state = bottleneck.state_dict()
    state["_quantized_cdf"][2, 3] = 0
    with pytest.raises(CodecError, match="damaged"):
        bottleneck.load_state_dict(state)
        _ = bottleneck.tables
    for bad in (float("nan"), 1e9):
        bottleneck.quantiles.data[0, 0, 2] = bad
        with pytest.raises(CodecError, match="quantiles"):
            bottleneck.update()


def test_gaussian_rows_are_the_least_scale_that_is_no_smaller():
    gaussian = GaussianConditional()
    table = gaussian.scale_table
    assert len(table) == 64 and table[0] == torch.tensor(0.11) and table[-1] == torch.tensor(256.0)
    scales = torch.cat([table, table * 1.001, table * 0.999, torch.tensor([-1.0, 0.0, 1e9])])
    expected = [min(sum(bool(s > edge) for edge in table[:-1]), 63) for s in scales]
    assert gaussian.table_rows(scales).tolist() == gaussian.table_rows(scales.double()).tolist() == expected


def test_gaussian_likelihood_is_the_integral_over_the_bin():
    gaussian = GaussianConditional().eval()
    y, scales, means = torch.randn(3, 1, 400).double() * 3
    scales = scales.abs() + 0.2
    rounded, likelihood = gaussian(y, scales, means)
    torch.testing.assert_close(rounded, (y - means).round() + means)
    normal = torch.distributions.Normal(means, scales)
    exact = (normal.cdf(rounded + 0.5) - normal.cdf(rounded - 0.5)).clamp(min=1e-9)
    torch.testing.assert_close(likelihood, exact, atol=1e-12, rtol=1e-6)


def test_scales_below_the_table_are_raised_and_their_gradient_only_rises():
    scales = torch.tensor([0.05, 0.05, 1.0], requires_grad=True)
    out = lower_bound(scales, 0.11)
    (out * torch.tensor([1.0, -1.0, 1.0])).sum().backward()
    torch.testing.assert_close(out.detach(), torch.tensor([0.11, 0.11, 1.0]))
    assert scales.grad.tolist() == [0.0, -1.0, 1.0]


def test_rounding_has_a_straight_gradient():
    x = torch.tensor([0.4, 1.5, -2.6], requires_grad=True)
    out = round_ste(x)
    out.sum().backward()
    assert out.tolist() == [0.0, 2.0, -3.0] and x.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e8])
def test_latents_that_no_coder_takes_are_named(value):
    with pytest.raises(CodecError, match="latent"):
        to_symbols(torch.tensor([0.0, value]))
