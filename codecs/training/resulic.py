"""ResULIC: rate, latent distance and noise prediction of compression-aware diffusion; then MSE and LPIPS of the estimated picture.

Ke et al., ICML 2025, eqs. 17 and 18 and appendix C.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from icmbench.codecs import resulic
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.sampling.compression_aware import CompressionAwareSampler
from icmbench.codecs.perceptual import perceptual_distance
from icmbench.codecs.training.controlled import ControlledObjective

# lambda_R of stage 2, which is the point: (lambda_R of stage 1, lambda_p of stage 2).
STAGE_WEIGHTS = {36: (24.0, 0.4), 16: (14.0, 0.6), 6: (4.0, 0.8), 3: (2.0, 1.0), 1.5: (1.0, 1.0)}


class ResulicObjective(ControlledObjective):
    """ResULIC's loss: eps + MSE(z_c, z_0) + lambda_R bpp; in stage 2 also lambda_d MSE(x, x~) + lambda_p LPIPS(x, x~).

    Args:
        point: lambda_R of stage 2, the weight of the rate.
        profile: size of the networks; "sd21" is the paper's, "tiny" trains on a CPU.
        backbone: file, folder or hub repository of Stable Diffusion; by default it is looked for where the codec looks for it.
        stage: 1 or 2.
        rate: lambda_R; by default the paper's of the stage and point.
        latent: weight of MSE(z_c, z_0).
        mse: lambda_d, the weight of the pixels' MSE in stage 2.
        lpips: lambda_p, the weight of LPIPS in stage 2; by default the paper's of the point.
        noise_levels: noise levels N_r to draw from, times from 1 to 999; by default the one that the codec uses at this point.
        cdm: False trains plain diffusion, for sampling from pure noise.
        eta: the eta that the codec will sample with, on which gamma_n depends (eqs. 30 and 34); of no effect if `cdm` is False. The
            exported weights record both, and the codec says so if it samples otherwise.
        perceptual: the network of LPIPS, a name for `perceptual_distance`; the paper does not name it.
        gain_limit: the losses of the picture ignore samples whose estimate of z_0 multiplies errors of the predicted noise by more
            than this factor, which is in the hundreds near N_r; 0 ignores none, as the authors do.
        text: False trains without captions.
        text_dropout: share of the samples that are trained without captions.
        device: PyTorch device.
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
        eta: Literal[0, 1] = 0,
        perceptual: str = "lpips-alex",
        gain_limit: float = 0.0,
        text: bool = True,
        text_dropout: float = 0.3,
        device: str = "cpu",
    ) -> None:
        super().__init__(point, models.RESULIC, profile=profile, backbone=backbone, device=device)
        stage1_rate, stage2_lpips = STAGE_WEIGHTS.get(point, (point, 1.0))
        self.needs = {"text"} if text else set()
        self.weights = {"eps": 1.0, "latent": latent, "auxiliary": 1.0}
        self.weights["bpp"] = rate if rate is not None else stage1_rate if stage == 1 else point
        if stage == 2:
            self.weights |= {"mse": mse, "lpips": stage2_lpips if lpips is None else lpips}
            self.add_frozen("lpips", perceptual_distance(perceptual, device))
        levels = noise_levels or [resulic.NOISE_LEVELS.get(point, 300)]
        self._processes = [CompressionAwareSampler(level, 1, eta) for level in levels] if cdm else []
        self.trained_with = {"cdm": cdm} | ({"eta": eta} if cdm else {})
        self._gain_limit, self._text, self._dropout = gain_limit, text, text_dropout

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        z0, pixels = self.latents(batch), self.pixels(batch)
        hint, bpp = self.run_compressor(pixels, z0)
        context = self.embed_texts(batch, self._dropout, self._text)
        denoise = self._denoise_compression_aware if self._processes else self._denoise_plain
        eps, predicted, clean, gain = denoise(z0, hint, context)
        counts = (
            gain > 0
        ).float()  # At N_r the estimate does not depend on the predicted noise, so the prediction is not trained there.
        error = (predicted - eps).square().mean((1, 2, 3))
        terms = {
            "eps": (error * counts).sum() / counts.sum().clamp(min=1),
            "bpp": bpp,
            "latent": F.mse_loss(hint, z0),
            "auxiliary": self.quantile_loss(),
        }
        if "lpips" in self.weights:
            kept = gain <= (self._gain_limit or float("inf"))
            terms |= self.picture_terms(clean[kept], pixels[kept])
        return terms

    def picture_terms(self, clean: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """MSE and LPIPS of decoded latents (B, 4, h, w) against pixels (B, 3, H, W) in [0, 1]; zeros if the batch is empty."""
        if not len(clean):
            return {"mse": clean.sum(), "lpips": clean.sum()}
        decoded = self.decode(clean)
        return {"mse": F.mse_loss(decoded, pixels), "lpips": self.frozen_networks["lpips"](decoded, pixels)}

    def _denoise_compression_aware(self, z0: Tensor, hint: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Diffuse latents at times drawn from 0 to N_r, and predict the noise.

        Returns eps, the predicted eps, the estimate of z_0, each (B, 4, h, w), and the estimate's gain (B,), the factor by which it
        multiplies errors of the prediction. The gain is 0 at N_r, where the estimate is z_c.
        """
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

    def _denoise_plain(self, z0: Tensor, hint: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Diffuse latents without the residual, at times from 0 to 999, and predict the noise; returns what
        `_denoise_compression_aware` does."""
        x, t, eps = self.diffuse(z0)
        predicted = self.predict(x, t, context, hint)
        clean, gain = self.estimate_z0(x, t, predicted)
        return eps, predicted, clean, gain
