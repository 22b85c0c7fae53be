"""Compression-aware diffusion: noise and compression residual shrink together (Ke et al., ResULIC, ICML 2025, section 5).

    z_n = sqrt(abar_n) z_0 + sqrt(1 - abar_n) (gamma_n (z_c - z_0) + eps)        eq. 11; z_c: the decoded latent, N: the noise level
    z_N = sqrt(abar_N) z_c + sqrt(1 - abar_N) eps                                eq. 8: what a decoder starts from
    z_p = iota z_n + zeta z_0~ + sigma xi                                        eq. 12; p < n: the next time, z_0~: the estimate

gamma_n follows from eq. 11 holding at every time. The paper's algorithm 2 (line 7's factor of z_n, line 9's iota and zeta) and the
bars missing in eqs. 15 and 16 contradict its own derivation in appendix B, which is followed here: eqs. 28-30; 32-34 with eta 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.sampling.samplers import Predict


@dataclass(frozen=True)
class CompressionAware:
    """The sampler, and the forward process that training and prompt search need. Coefficients and latents are float64 within: just
    below the noise level, the estimate multiplies errors by hundreds (1,100 at n = 794 of N = 795).

    noise_level: N, 1 to 999, the larger the fewer bits the latent took. steps: S, 1 to N; the times: round(linspace(0, N, S + 1)).
    eta: 0, deterministic, or 1, with fresh noise at every step. S - 1 evaluations: at N the estimate is z_c whatever the network
    says, and at 0, the last, nothing is left to do; the paper counts both, so that its 4 and 3 steps are S = 3 and 2.
    """

    noise_level: int = 300
    steps: int = 3
    eta: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.noise_level <= 999 or self.eta not in (0, 1):
            raise CodecError(f"{self} needs a noise level of 1 to 999, at most as many steps, and eta 0 or 1")

    @property
    def draws(self) -> int:
        return 1 + self.steps * self.eta

    @property
    def times(self) -> list[int]:
        """From the noise level down to 0."""
        return [round(index * self.noise_level / self.steps) for index in range(self.steps, -1, -1)]

    def diffuse(self, abar: Tensor, n: int | Tensor, z_0: Tensor, z_c: Tensor, eps: Tensor) -> Tensor:
        """z_n of eq. 11 in float64, all (N, 4, H, W). n: a time for all, or (N,) integers."""
        signal, noise, residual = self._shares(abar, n, z_0.device)
        z_0, z_c = z_0.double(), z_c.double()
        return signal * z_0 + residual * (z_c - z_0) + noise * eps.double()

    def estimate(self, abar: Tensor, n: int | Tensor, z_n: Tensor, z_c: Tensor, eps: Tensor) -> Tensor:
        """z_0~ in float64 from the noise at time n (eq. 36), which is z_c at the noise level itself. Arguments as for `diffuse`."""
        signal, noise, residual = self._shares(abar, n, z_n.device)
        at_level = torch.as_tensor(n, device=z_n.device).view(-1, 1, 1, 1) == self.noise_level
        left = torch.where(at_level, 1.0, signal - residual)  # of z_0; not 0, which would spoil gradients even where unused
        z_c = z_c.double()
        return torch.where(at_level, z_c, (z_n.double() - residual * z_c - noise * eps.double()) / left)

    def gamma(self, abar: Tensor, n: int) -> float:
        """The residual's share beside unit noise at time n (below eqs. 30 and 34)."""
        _, noise, residual = self._shares(abar, n, torch.device("cpu"))
        return float(residual / noise)

    def _shares(self, abar: Tensor, n: int | Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """What z_n has of z_0, of eps and of the residual: sqrt(abar_n), sqrt(1 - abar_n), sqrt(1 - abar_n) gamma_n.

        Each (1 or N, 1, 1, 1); gamma_n in closed form, eqs. 30 and 34.
        """
        now, start = abar[torch.as_tensor(n).to(abar.device)].to(device).view(-1, 1, 1, 1), float(abar[self.noise_level])
        odds = start / (1 - start)
        residual = (1 - now) / now**0.5 * odds if self.eta else ((1 - now) * odds) ** 0.5
        return now**0.5, (1 - now) ** 0.5, residual

    def step(self, abar: Tensor, n: int, p: int, z_n: Tensor, estimate: Tensor, noise: Tensor | None = None) -> Tensor:
        """z_p in float64, p < n, from z_n and the estimate of z_0. noise: standard normal, needed where eta is 1."""
        now, after = float(abar[n]), float(abar[p])
        sigma = self.eta * ((1 - after) / (1 - now) * (1 - now / after)) ** 0.5
        iota = ((1 - after - sigma**2) / (1 - now)) ** 0.5
        z_p = iota * z_n.double() + (after**0.5 - now**0.5 * iota) * estimate.double()
        return z_p if noise is None else z_p + sigma * noise.double()

    def __call__(self, predict: Predict, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        """hint: z_c. As in `sampling.Sampler`; the result is z at time 0, where abar is 0.99915, not the estimate."""
        z = self.diffuse(abar, self.noise_level, hint, hint, noise[:, 0])
        for index, (n, p) in enumerate(pairwise(self.times), 1):
            eps = hint if n == self.noise_level else predict(z.float(), n)
            z = self.step(abar, n, p, z, self.estimate(abar, n, z, hint, eps), noise[:, index] if self.eta else None)
        return z.to(torch.float32)
