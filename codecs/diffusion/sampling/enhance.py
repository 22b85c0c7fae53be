"""SLIM's denoising, and the baseline ANS of ResULIC's table 4: noise is added to the decoded latent, which is then denoised.

    z_N = sqrt(abar_N) hint + sqrt(1 - abar_N) eps --step--> ... --step--> z        N: the noise level

The start is eq. 8 of ResULIC's paper. ANS, of PASD (Yang et al. 2024), then goes on as if the hint were the original; only
compression-aware diffusion knows of the residual between the two, and trains for it.

SLIM's paper (section 3.3) says "enhanced by denoising steps" and gives neither their start nor their number nor their kind. The
cost of decoding that it prints (table 3, 1082 GFLOPs) fits three evaluations with the narrow control module and without guidance,
so three steps are the default here. The default start is a guess from the paper's words: at N = 999 the latent is nearly pure
noise, of which the hint keeps 7%.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.sampling.samplers import NoisePredictor


@dataclass(frozen=True)
class EnhancementSampler:
    """DDIM (Song et al. 2021, eqs. 12 and 16) that starts from the hint with noise added.

    Args:
        steps: S, the evaluations of the noise predictor. Their times are round(N (S - i) / S) for i = 0 .. S - 1.
        noise_level: N, the time of the start, S to 999.
        eta: 0 for DDIM; 1 for DDPM, which adds fresh noise at every step but the last.

    Raises:
        CodecError: an argument is out of range.
    """

    steps: int = 3
    noise_level: int = 999
    eta: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.noise_level <= 999 or self.eta not in (0, 1):
            raise CodecError(f"{self} needs a noise level of 1 to 999, at most as many steps, and eta 0 or 1")

    @property
    def draws(self) -> int:
        """One latent for the start and, if eta is 1, one for each step but the last."""
        return 1 + (self.steps - 1) * self.eta

    @property
    def times(self) -> list[int]:
        """Times of the evaluations, from the noise level down; the clean latent that follows is not among them."""
        return [round(self.noise_level * (self.steps - index) / self.steps) for index in range(self.steps)]

    def __call__(self, predict: NoisePredictor, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        """Sample latents; see `samplers.Sampler`."""
        values = [*(float(abar[t]) for t in self.times), 1.0]
        x = values[0] ** 0.5 * hint + (1 - values[0]) ** 0.5 * noise[:, 0]
        for step, (t, (now, after)) in enumerate(zip(self.times, pairwise(values)), 1):
            eps = predict(x, t)
            clean = (x - (1 - now) ** 0.5 * eps) / now**0.5
            sigma = self.eta * ((1 - after) / (1 - now) * (1 - now / after)) ** 0.5
            x = after**0.5 * clean + (1 - after - sigma**2) ** 0.5 * eps
            if sigma:
                x = x + sigma * noise[:, step]
        return x


@dataclass(frozen=True)
class IdentitySampler:
    """Returns the hint itself: SLIM without its diffusion model (paper, section 4.4, figure 5).

    Args:
        draws: Standard-normal latents per image; none of them is read.
    """

    draws: int = 1

    def __call__(self, predict: NoisePredictor, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        """Return the hints (N, 4, H, W)."""
        return hint
