"""ResULIC: rate, latent distance and noise prediction of compression-aware diffusion; then MSE and LPIPS of its estimate (Ke et
al., ICML 2025, eqs. 17 and 18 and appendix C)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from icmbench.codecs import resulic
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.sampling.compression_aware import CompressionAware
from icmbench.codecs.perceptual import perceptual_distance
from icmbench.codecs.training.controlled import ControlledObjective

# By lambda_R of the second stage, the point: lambda_R of the first, lambda_p of the second.
STAGES = {36: (24.0, 0.4), 16: (14.0, 0.6), 6: (4.0, 0.8), 3: (2.0, 1.0), 1.5: (1.0, 1.0)}


class ResulicObjective(ControlledObjective):
    """L = eps + MSE(z_c, z0) + lambda_R bpp, and in stage 2 + lambda_d MSE(x, x~) + lambda_p LPIPS(x, x~).

    stage: 1 or 2. rate, mse, lpips: weights in place of the paper's; latent: of MSE(z_c, z0). noise_levels: N_r to draw from; by
    default the codec's of the point. cdm: False trains plain diffusion, for sampling from pure noise. perceptual: LPIPS's network
    (which one is open). gain_limit: leaves samples out of the pixel losses whose estimate multiplies errors of the predicted noise
    by more (hundreds, next to N_r); 0 for none, as the authors. text, text_dropout: captions, and the share of samples without.
    """

    codec = resulic.Resulic.name
    default_points = resulic.Resulic.points

    def __init__(
        self,
        point: float,
        *,
        profile: Literal["sd21", "tiny"] = "sd21",
        backbone: Path | str | None = None,
        stage: Literal[1, 2] = 2,
        rate: float | None = None,
        latent: float = 1.0,
        mse: float = 1.0,
        lpips: float | None = None,
        noise_levels: list[int] | None = None,
        cdm: bool = True,
        perceptual: str = "lpips-alex",
        gain_limit: float = 0.0,
        text: bool = True,
        text_dropout: float = 0.3,
        device: str = "cpu",
    ) -> None:
        super().__init__(point, models.RESULIC, profile=profile, backbone=backbone, device=device)
        first, pixels = STAGES.get(point, (point, 1.0))
        self.needs = {"text"} if text else set()
        self.weights = {"eps": 1.0, "latent": latent, "auxiliary": 1.0}
        self.weights["bpp"] = rate if rate is not None else first if stage == 1 else point
        if stage == 2:
            self.weights |= {"mse": mse, "lpips": pixels if lpips is None else lpips}
            self.freeze("lpips", perceptual_distance(perceptual, device))
        levels = noise_levels or [resulic.NOISE_LEVELS.get(point, 300)]
        self._processes = [CompressionAware(level, 1) for level in levels] if cdm else []
        self._gain_limit, self._text, self._dropout = gain_limit, text, text_dropout

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        z0, pixels = self.latents(batch), self.pixels(batch)
        hint, bpp = self.code(pixels, z0)
        context = self.context(batch, self._dropout, self._text)
        eps, predicted, clean, gain = self._diffused(z0, hint, context) if self._processes else self._plain(z0, hint, context)
        counts = (gain > 0).float()  # at N_r itself the noise does not matter
        error = (predicted - eps).square().mean((1, 2, 3))
        terms = {
            "eps": (error * counts).sum() / counts.sum().clamp(min=1),
            "bpp": bpp,
            "latent": F.mse_loss(hint, z0),
            "auxiliary": self.auxiliary(),
        }
        if "lpips" in self.weights:
            kept = gain <= (self._gain_limit or float("inf"))
            terms |= self.pixel_terms(clean[kept], pixels[kept])
        return terms

    def pixel_terms(self, clean: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """MSE and LPIPS of decoded latents; zero where there are none."""
        if not len(clean):
            return {"mse": clean.sum(), "lpips": clean.sum()}
        decoded = self.decode(clean)
        return {"mse": F.mse_loss(decoded, pixels), "lpips": self._frozen["lpips"](decoded, pixels)}

    def _diffused(self, z0: Tensor, hint: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """eps, its prediction, the estimate of z0 and what it multiplies errors by (0: it is z_c), at n from 0 to N_r."""
        abar, eps = self.base.abar, torch.randn(z0.shape).to(z0)
        process = self._processes[int(torch.randint(len(self._processes), ()))]
        times = torch.randint(process.noise_level + 1, (len(z0),)).tolist()
        rows = [slice(i, i + 1) for i in range(len(z0))]
        x = torch.cat([process.diffuse(abar, n, z0[i], hint[i], eps[i]) for n, i in zip(times, rows)]).float()
        predicted = self.predict(x, torch.tensor(times, device=x.device), context, hint)
        clean = torch.cat([process.estimate(abar, n, x[i], hint[i], predicted[i]) for n, i in zip(times, rows)]).float()
        gains = []
        for n in times:
            signal, noise = float(abar[n]) ** 0.5, (1 - float(abar[n])) ** 0.5
            gains.append(0.0 if n == process.noise_level else noise / (signal - noise * process.gamma(abar, n)))
        return eps, predicted, clean, torch.tensor(gains, device=x.device)

    def _plain(self, z0: Tensor, hint: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same for plain diffusion."""
        x, t, eps = self.noised(z0)
        predicted = self.predict(x, t, context, hint)
        clean, gain = self.cleaned(x, t, predicted)
        return eps, predicted, clean, gain
