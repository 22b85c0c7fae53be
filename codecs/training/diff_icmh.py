"""Diff-ICMH: rate, latent distance, noise prediction and semantic consistency (Feng et al., NeurIPS 2025, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from icmbench.codecs import diff_icmh
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.backbone import unet
from icmbench.codecs.training.controlled import ControlledObjective

ENCODER, DECODER = 11, 6  # the last sub-block of one, the middle of the other


class DiffIcmhObjective(ControlledObjective):
    """L = eps + lambda bpp + MSE(z_hat, z0) + 2 (1 - cos), lambda the point (specification, section 4).

    eps, latent, semantic: weights of the terms; semantic 0 trains without the semantic consistency loss. semantic_location: which
    features of the frozen UNet it compares: after the "encoder", the "middle" block (the paper's choice) or amid the "decoder".
    semantic_noise: 0, or the share of the 1000 steps up to which the same noise is added to both (0 is the paper's choice).
    text: False trains without tags. text_dropout: share of samples without. sample: train on samples of the VAE's posterior, not on
    its mode.
    """

    codec = diff_icmh.DiffIcmh.name
    default_points = diff_icmh.DiffIcmh.points

    def __init__(
        self,
        point: float,
        *,
        profile: Literal["sd21", "tiny"] = "sd21",
        backbone: Path | str | None = None,
        eps: float = 1.0,
        latent: float = 1.0,
        semantic: float = 2.0,
        semantic_location: Literal["encoder", "middle", "decoder"] = "middle",
        semantic_noise: float = 0.0,
        text: bool = True,
        text_dropout: float = 0.1,
        sample: bool = True,
        device: str = "cpu",
    ) -> None:
        super().__init__(point, models.DIFF_ICMH, profile=profile, backbone=backbone, device=device)
        self.needs = {"text"} if text else set()
        self.weights = {"eps": eps, "bpp": point, "latent": latent, "semantic": semantic, "auxiliary": 1.0}
        self._location, self._noise = semantic_location, semantic_noise
        self._text, self._dropout, self._sample = text, text_dropout, sample

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        z0 = self.latents(batch, self._sample)
        hint, bpp = self.code(self.pixels(batch), z0)
        context = self.context(batch, self._dropout, self._text)
        x, t, eps = self.noised(z0)
        terms = {
            "eps": F.mse_loss(self.predict(x, t, context, hint), eps),
            "bpp": bpp,
            "latent": F.mse_loss(hint, z0),
            "auxiliary": self.auxiliary(),
        }
        if self.weights["semantic"]:
            terms["semantic"] = self.semantic(z0, hint, context)
        return terms

    def semantic(self, z0: Tensor, hint: Tensor, context: Tensor) -> Tensor:
        """Mean of 1 - cosine, over positions, of features of the latent and the decoded latent (eq. 5)."""
        t = torch.zeros(len(z0), dtype=torch.int64, device=z0.device)
        if self._noise:
            seen, t, noise = self.noised(z0, 0, max(1, round(1000 * self._noise)))
            abar = self._abar[t].view(-1, 1, 1, 1)
            decoded = (abar.sqrt() * hint + (1 - abar).sqrt() * noise).float()
        else:
            seen, decoded = z0, hint
        with torch.no_grad():
            target = self.features(seen, t, context)
        return 1 - F.cosine_similarity(self.features(decoded, t, context).float(), target.float(), dim=1).mean()

    def features(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Of the frozen UNet alone, (B, C, h, w)."""
        if self._location == "middle":
            return self.base.mid_features(x, t, context)
        seen = _Recorder()
        self.base.eps(x, t, context, seen)
        return seen.encoded[ENCODER] if self._location == "encoder" else seen.decoded[DECODER]


class _Recorder(unet.Injector):
    """Adds nothing, keeps all."""

    def __init__(self) -> None:
        self.encoded: list[Tensor] = []
        self.decoded: list[Tensor] = []

    def encoder(self, index: int, h: Tensor) -> Tensor:
        self.encoded.append(h)
        return h

    def middle(self, h: Tensor) -> Tensor:
        return h

    def decoder(self, index: int, h: Tensor) -> Tensor:
        self.decoded.append(h)
        return h
