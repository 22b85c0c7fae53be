"""SLIM's sampler with an oracle instead of a network."""

import pytest
import torch

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.sampling.enhance import EnhancementSampler, IdentitySampler

ABAR = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)


def latents(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize(("steps", "level"), [(1, 999), (3, 999), (4, 300), (7, 7)])
def test_knowing_the_noise_gives_the_clean_latent(steps, level, eta):
    """The exact noise leads to the clean latent for any hint, steps and fresh noise, in `steps` evaluations."""
    clean, hint, noise = latents(0, 2, 4, 8, 8), latents(1, 2, 4, 8, 8), latents(2, 2, steps, 4, 8, 8)
    times = []

    def oracle(x: torch.Tensor, t: int) -> torch.Tensor:
        times.append(t)
        return (x - ABAR[t] ** 0.5 * clean) / (1 - ABAR[t]) ** 0.5

    sampler = EnhancementSampler(steps, level, eta)
    result = sampler(oracle, ABAR, hint, noise[:, : sampler.draws])
    assert torch.allclose(result, clean, atol=1e-9)
    assert times == sampler.times
    assert (len(times), times[0]) == (steps, level)
    assert min(times) >= 1


def test_it_starts_from_the_noised_hint():
    hint, noise = latents(1, 1, 4, 8, 8), latents(2, 1, 1, 4, 8, 8)
    start = {}
    EnhancementSampler(1, 400)(lambda x, t: start.setdefault(t, x), ABAR, hint, noise)
    assert torch.allclose(start[400], ABAR[400] ** 0.5 * hint + (1 - ABAR[400]) ** 0.5 * noise[:, 0])
    assert EnhancementSampler(3).times == [999, 666, 333]


def test_fresh_noise_keeps_the_forward_process():
    """With eta 1 and the clean latent as hint, x is sqrt(abar) z0 plus noise of variance 1 - abar at every time (DDPM, eq. 7)."""
    clean, noise = latents(0, 1, 4, 128, 128), latents(2, 1, 3, 4, 128, 128)
    noise_at = {}

    def oracle(x: torch.Tensor, t: int) -> torch.Tensor:
        noise_at[t] = x - ABAR[t] ** 0.5 * clean
        return noise_at[t] / (1 - ABAR[t]) ** 0.5

    EnhancementSampler(3, 900, eta=1)(oracle, ABAR, clean, noise)
    for t, x_noise in noise_at.items():
        assert float(x_noise.var()) == pytest.approx(float(1 - ABAR[t]), rel=0.02)
    correlation = torch.corrcoef(torch.stack([noise_at[900].flatten(), noise_at[600].flatten()]))[0, 1]
    assert abs(correlation) < 0.9  # Part of the noise is fresh.


def test_no_denoising_is_the_hint():
    hint = latents(1, 1, 4, 8, 8)
    assert IdentitySampler()(lambda x, t: pytest.fail("called"), ABAR, hint, latents(2, 1, 1, 4, 8, 8)) is hint


@pytest.mark.parametrize("arguments", [(0, 999), (3, 2), (3, 1000), (3, 999, 2)])
def test_bounds(arguments):
    with pytest.raises(CodecError):
        EnhancementSampler(*arguments)
