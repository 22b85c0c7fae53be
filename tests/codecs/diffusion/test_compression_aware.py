"""ResULIC's sampler against its forward process (equation 11 of the paper) at noise levels of its rate points."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.sampling.compression_aware import CompressionAwareSampler
from icmbench.codecs.diffusion.sampling.samplers import GuidedPredictor, draw_noise

LEVELS = (100, 300, 405, 600, 795)
SHAPE = (2, 4, 8, 8)


def normal(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gamma(abar: torch.Tensor, level: int, n: int, eta: int) -> float:
    """gamma_n as the paper prints it below equations 30 and 34, with the missing bars restored."""
    a_n, a_level = float(abar[n]), float(abar[level])
    return ((1 - a_n) / a_n) ** 0.5 * a_level / (1 - a_level) if eta else (a_level / (1 - a_level)) ** 0.5


def equation_11(abar, level: int, n: int, eta: int, z_0, z_c, eps) -> torch.Tensor:
    a_n = float(abar[n])
    return a_n**0.5 * z_0 + (1 - a_n) ** 0.5 * (gamma(abar, level, n, eta) * (z_c - z_0) + eps)


@pytest.mark.parametrize(("eta", "share"), [(0, 0.1186), (1, 0.0175)])
def test_the_share_of_the_residual_depends_on_eta(backbone, eta, share):
    """z_n with z_c = 1, z_0 = 0 and no noise is sqrt(1 - abar_n) gamma_n, by equations 30 and 34, at a third of N = 795."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # The schedule of Stable Diffusion.
    a_n, a_level = (float(np.prod(1 - betas[: time + 1])) for time in (265, 795))
    by_hand = (1 - a_n) / a_n**0.5 * a_level / (1 - a_level) if eta else ((1 - a_n) * a_level / (1 - a_level)) ** 0.5
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    z_n = float(CompressionAwareSampler(795, 3, eta).diffuse(backbone.abar, 265, zero, one, zero))
    assert z_n == pytest.approx(by_hand, rel=1e-5)
    assert round(z_n, 4) == share


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("level", LEVELS)
def test_estimate_is_exact_at_every_time(backbone, level, eta):
    sampler, abar, (z_0, z_c, eps) = CompressionAwareSampler(level, 3, eta), backbone.abar, map(normal, range(3))
    worst = 0.0
    for n in range(level):
        z_n = equation_11(abar, level, n, eta, z_0, z_c, eps)
        assert sampler.gamma(abar, n) == pytest.approx(gamma(abar, level, n, eta), rel=1e-12)
        worst = max(worst, (sampler.estimate(abar, n, z_n, z_c, eps) - z_0).abs().max().item())
    print(f"N = {level}, eta = {eta}: the estimate is off by at most {worst:.1e}")
    assert worst < 1e-4
    torch.testing.assert_close(sampler.estimate(abar, level, z_n, z_c, eps), z_c)


@pytest.mark.parametrize("steps", [2, 3, 7, 50])
@pytest.mark.parametrize("level", LEVELS)
def test_deterministic_step_lands_on_equation_11(backbone, level, steps):
    """With the true noise, a step from any time leads to the latent with the same noise at the next time."""
    sampler, abar, (z_0, z_c, eps) = CompressionAwareSampler(level, steps), backbone.abar, map(normal, range(3))
    for n, p in pairwise(sampler.times):
        z_n = equation_11(abar, level, n, 0, z_0, z_c, eps)
        z_p = sampler.step(abar, n, p, z_n, sampler.estimate(abar, n, z_n, z_c, eps) if n < level else z_0)
        torch.testing.assert_close(z_p, equation_11(abar, level, p, 0, z_0, z_c, eps), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [2, 3, 50])
@pytest.mark.parametrize("level", LEVELS)
def test_stochastic_step_lands_on_equation_11(backbone, level, steps):
    """With eta 1, mean and variance after a step are those of equation 11.

    The step is linear in the noise of z_n and in the fresh noise, so both coefficients can be measured one at a time.
    """
    sampler, abar, (z_0, z_c) = CompressionAwareSampler(level, steps, 1), backbone.abar, map(normal, range(2))
    zeros, ones = torch.zeros(SHAPE, dtype=torch.float64), torch.ones(SHAPE, dtype=torch.float64)

    def take_step(n: int, p: int, eps: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
        z_n = equation_11(abar, level, n, 1, z_0, z_c, eps)
        return sampler.step(abar, n, p, z_n, sampler.estimate(abar, n, z_n, z_c, eps) if n < level else z_0, fresh)

    for n, p in pairwise(sampler.times):
        mean = take_step(n, p, zeros, zeros)
        torch.testing.assert_close(mean, equation_11(abar, level, p, 1, z_0, z_c, zeros), rtol=0, atol=1e-6)
        variance = (take_step(n, p, ones, zeros) - mean) ** 2 + (take_step(n, p, zeros, ones) - mean) ** 2
        torch.testing.assert_close(variance, (1 - abar[p]) * ones, rtol=1e-6, atol=0)


@pytest.mark.parametrize("eta", [0, 1])
def test_random_steps_have_the_variance_of_equation_11(backbone, eta):
    """Mean and variance of 200,000 values after a step from 200 to 100 with random noise, at N = 300."""
    sampler, abar = CompressionAwareSampler(300, 3, eta), backbone.abar
    generator = torch.Generator().manual_seed(0)
    eps, fresh = (torch.randn(2, 4, 160, 160, generator=generator, dtype=torch.float64) for _ in range(2))
    z_0, z_c = torch.full_like(eps, 0.7), torch.full_like(eps, 0.2)
    z_n = equation_11(abar, 300, 200, eta, z_0, z_c, eps)
    z_p = sampler.step(abar, 200, 100, z_n, sampler.estimate(abar, 200, z_n, z_c, eps), fresh)
    expected = equation_11(abar, 300, 100, eta, z_0, z_c, torch.zeros_like(eps))
    assert abs((z_p - expected).mean()) < 0.005
    assert abs(z_p.var() / (1 - abar[100]) - 1) < 0.01


@pytest.mark.parametrize("level", [*LEVELS, 1, 999])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 50])
def test_times(level, steps):
    if steps > level:
        with pytest.raises(CodecError, match=r"noise level"):
            CompressionAwareSampler(level, steps)
        return
    times = CompressionAwareSampler(level, steps).times
    assert times == np.round(np.linspace(0, level, steps + 1)).astype(int)[::-1].tolist()
    assert len(set(times)) == steps + 1


@pytest.mark.parametrize(("steps", "calls"), [(1, 0), (2, 1), (3, 2), (10, 9)])
@pytest.mark.parametrize("eta", [0, 1])
def test_useless_calls_are_skipped(backbone, steps, calls, eta):
    """There are S - 1 evaluations and none at the noise level or at 0; guidance evaluates both prompts in one batch."""
    evaluations: list[tuple[int, int]] = []
    sampler = CompressionAwareSampler(405, steps, eta)

    def run(backbone, control, x, t, context, prepared):
        evaluations.append((len(x), int(t[0])))
        return torch.zeros_like(x)

    hint, context = normal(0).float(), torch.zeros(1, 77, 32)
    predict = GuidedPredictor(backbone, None, hint, context, context, 2.5, run=run)
    noise = draw_noise([0, 1], sampler.draws, 8, 8)
    assert sampler(predict, backbone.abar, hint, noise).dtype == torch.float32
    assert evaluations == [(4, n) for n in sampler.times[1:-1]]
    assert len(evaluations) == calls


@pytest.mark.parametrize("eta", [0, 1])
def test_times_of_a_batch_may_differ(backbone, eta):
    """A batch with several times, as in training, equals its images one by one, and gradients are finite at the noise level."""
    sampler, abar, (z_0, z_c, eps) = CompressionAwareSampler(300, 3, eta), backbone.abar, map(normal, range(3))
    times = torch.tensor([300, 120])
    z_c.requires_grad_()
    z_n = sampler.diffuse(abar, times, z_0, z_c, eps)
    estimate = sampler.estimate(abar, times, z_n, z_c, eps + 0.1)
    for index, n in enumerate(times.tolist()):
        item = slice(index, index + 1)
        torch.testing.assert_close(z_n[item], sampler.diffuse(abar, n, z_0[item], z_c[item], eps[item]))
        torch.testing.assert_close(estimate[item], sampler.estimate(abar, n, z_n[item], z_c[item], eps[item] + 0.1))
    (gradient,) = torch.autograd.grad(estimate.sum(), z_c)
    torch.testing.assert_close(gradient[0], torch.ones_like(gradient[0]))  # At the noise level the estimate is z_c itself.
    assert gradient.isfinite().all()


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("level", LEVELS)
def test_an_oracle_recovers_the_latent(backbone, level, eta):
    """A network that predicts the noise of equation 11 exactly leads to z_0, except for the little noise of time 0."""
    z_0, z_c = normal(0).float(), normal(1).float()
    sampler = CompressionAwareSampler(level, 10, eta)

    def oracle(x: torch.Tensor, n: int) -> torch.Tensor:
        a_n = float(backbone.abar[n])
        eps = (x.double() - a_n**0.5 * z_0) / (1 - a_n) ** 0.5 - gamma(backbone.abar, level, n, eta) * (z_c - z_0).double()
        return eps.float()

    noise = draw_noise([0, 1], sampler.draws, 8, 8)
    z = sampler(oracle, backbone.abar, z_c, noise)
    if eta == 0:  # The first step aims at z_c. After it, the difference from z_0 shrinks in proportion to the noise.
        a_0, a_1 = (float(backbone.abar[n]) for n in (0, sampler.times[1]))
        z_1 = a_1**0.5 * z_c + (1 - a_1) ** 0.5 * noise[:, 0]
        torch.testing.assert_close(z, a_0**0.5 * z_0 + ((1 - a_0) / (1 - a_1)) ** 0.5 * (z_1 - a_1**0.5 * z_0), rtol=0, atol=1e-5)
    assert (z - z_0).abs().mean() < 0.1 * (z_c - z_0).abs().mean()
