"""Compression-aware diffusion: noise and compression residual shrink together (Ke et al., ResULIC, ICML 2025, section 5).

    z_n = sqrt(abar_n) z_0 + sqrt(1 - abar_n) (gamma_n (z_c - z_0) + eps)        eq. 11; z_c: the decoded latent
    z_N = sqrt(abar_N) z_c + sqrt(1 - abar_N) eps                                eq. 8: the decoder's start; N: the noise level
    z_p = iota z_n + zeta z_0~ + sigma xi                                        eq. 12; p < n: the next time, z_0~: the estimate

gamma_n follows from the requirement that eq. 11 holds at every time. The paper's algorithm 2 (the factor of z_n in line 7, iota and
zeta in line 9) and the bars missing in eqs. 15 and 16 contradict the paper's own derivation in appendix B. The derivation is
followed here: eqs. 28-30, and with eta 1 eqs. 32-34.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.sampling.samplers import NoisePredictor


@dataclass(frozen=True)
class CompressionAwareSampler:
    """ResULIC's sampler, and the forward process for its training and prompt search.

    Coefficients and latents are float64 inside, because just below the noise level the estimate of z_0 amplifies errors by hundreds
    (1,100 at n = 794 of N = 795).

    There are S - 1 evaluations of the noise predictor: at the noise level the estimate is z_c for any prediction, and at time 0
    nothing remains to be done. Which S the paper's "4 and 3 steps" are is a guess, because it does not say what it counts:

    - Passes of the loop of algorithm 2, which begins at N without an evaluation (line 5): S = 4 and 3, with 3 and 2 evaluations.
      Table 6 speaks for this one. Its 0.54 s and 0.37 s for 4 and 3 steps differ by 0.17 s, the cost of one evaluation; 3 and 2 of
      them leave 0.03 s for all else, but 4 and 3 would leave less than nothing. So does algorithm 1, which draws its times from
      N / S, 2 N / S, ..., N and is said to take "the noise levels at these 4 steps" (appendix C.2).
    - Calls of the network in the authors' code, which is called S + 1 times, at N and at time 0 too: S = 3 and 2, with 2 and 1
      evaluations that have an effect.

    S = 3 is one of the paper's two settings by either count, so it is the default.

    Args:
        noise_level: N, 1 to 999; larger for latents with fewer bits.
        steps: S, 1 to N; the times are round(linspace(0, N, S + 1)).
        eta: 0 for deterministic steps, 1 for fresh noise at every step. gamma_n depends on it (eqs. 30 and 34): at n = 265 of
            N = 795 the residual has a share of 0.1186 in z_n if eta is 0, and of 0.0175 if it is 1. A network must therefore be
            trained with the eta that it samples with.

    Raises:
        CodecError: an argument is out of range.
    """

    noise_level: int = 300
    steps: int = 3
    eta: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.noise_level <= 999 or self.eta not in (0, 1):
            raise CodecError(f"{self} needs a noise level of 1 to 999, at most as many steps, and eta 0 or 1")

    @property
    def draws(self) -> int:
        """One latent for the start and, if eta is 1, one for each step."""
        return 1 + self.steps * self.eta

    @property
    def times(self) -> list[int]:
        """Times from the noise level down to 0."""
        return [round(index * self.noise_level / self.steps) for index in range(self.steps, -1, -1)]

    def diffuse(self, abar: Tensor, n: int | Tensor, z_0: Tensor, z_c: Tensor, eps: Tensor) -> Tensor:
        """Compute z_n (eq. 11).

        Args:
            abar: (1000,) float64, the cumulative product of 1 - beta.
            n: The time, or times (N,) int64 of the latents.
            z_0: VAE latents (N, 4, H, W).
            z_c: Decoded latents (N, 4, H, W).
            eps: Standard-normal noise (N, 4, H, W).

        Returns:
            z_n (N, 4, H, W) float64.
        """
        signal, noise, residual = self._coefficients(abar, n, z_0.device)
        z_0, z_c = z_0.double(), z_c.double()
        return signal * z_0 + residual * (z_c - z_0) + noise * eps.double()

    def estimate(self, abar: Tensor, n: int | Tensor, z_n: Tensor, z_c: Tensor, eps: Tensor) -> Tensor:
        """Estimate z_0 from the predicted noise at time n (eq. 36); at the noise level itself the estimate is z_c.

        Args:
            abar: As for `diffuse`.
            n: As for `diffuse`.
            z_n: Noisy latents (N, 4, H, W).
            z_c: Decoded latents (N, 4, H, W).
            eps: Predicted noise (N, 4, H, W).

        Returns:
            z_0~ (N, 4, H, W) float64.
        """
        signal, noise, residual = self._coefficients(abar, n, z_n.device)
        at_level = torch.as_tensor(n, device=z_n.device).view(-1, 1, 1, 1) == self.noise_level
        # Coefficient of z_0; 1 where unused, because torch.where still back-propagates through a division by 0.
        coefficient = torch.where(at_level, 1.0, signal - residual)
        z_c = z_c.double()
        return torch.where(at_level, z_c, (z_n.double() - residual * z_c - noise * eps.double()) / coefficient)

    def gamma(self, abar: Tensor, n: int) -> float:
        """Return gamma_n, the weight of the residual relative to the noise at time n (below eqs. 30 and 34)."""
        _, noise, residual = self._coefficients(abar, n, torch.device("cpu"))
        return float(residual / noise)

    def _coefficients(self, abar: Tensor, n: int | Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of z_0, eps and z_c - z_0 in z_n: sqrt(abar_n), sqrt(1 - abar_n), sqrt(1 - abar_n) gamma_n.

        Each is (1, 1, 1, 1) or (N, 1, 1, 1); gamma_n is in closed form, eqs. 30 and 34.
        """
        now, start = abar[torch.as_tensor(n).to(abar.device)].to(device).view(-1, 1, 1, 1), float(abar[self.noise_level])
        odds = start / (1 - start)
        residual = (1 - now) / now**0.5 * odds if self.eta else ((1 - now) * odds) ** 0.5
        return now**0.5, (1 - now) ** 0.5, residual

    def step(self, abar: Tensor, n: int, p: int, z_n: Tensor, estimate: Tensor, noise: Tensor | None = None) -> Tensor:
        """Compute z_p from z_n (eq. 12).

        Args:
            abar: As for `diffuse`.
            n: The time of z_n.
            p: The next time, smaller than n.
            z_n: Noisy latents (N, 4, H, W).
            estimate: Estimate of z_0 (N, 4, H, W).
            noise: Standard-normal noise (N, 4, H, W); required if eta is 1.

        Returns:
            z_p (N, 4, H, W) float64.
        """
        now, after = float(abar[n]), float(abar[p])
        sigma = self.eta * ((1 - after) / (1 - now) * (1 - now / after)) ** 0.5
        iota = ((1 - after - sigma**2) / (1 - now)) ** 0.5
        z_p = iota * z_n.double() + (after**0.5 - now**0.5 * iota) * estimate.double()
        return z_p if noise is None else z_p + sigma * noise.double()

    def __call__(self, predict: NoisePredictor, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        """Sample latents; see `samplers.Sampler`. The hint is z_c. The result is z at time 0, where abar is 0.99915."""
        z = self.diffuse(abar, self.noise_level, hint, hint, noise[:, 0])
        for index, (n, p) in enumerate(pairwise(self.times), 1):
            # The estimate ignores the prediction at the noise level, so the hint stands in for it.
            eps = hint if n == self.noise_level else predict(z.float(), n)
            z = self.step(abar, n, p, z, self.estimate(abar, n, z, hint, eps), noise[:, index] if self.eta else None)
        return z.to(torch.float32)
