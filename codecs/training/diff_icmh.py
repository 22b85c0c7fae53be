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

ENCODER, DECODER = 11, 6  # Sub-blocks whose output is compared: the encoder's last one, and the middle one of the decoder.


class DiffIcmhObjective(ControlledObjective):
    """Diff-ICMH's loss: eps + lambda bpp + MSE(z_hat, z_0) + 2 (1 - cos), where the point is lambda (section 4).

    Args:
        point: lambda, the weight of the rate.
        profile: size of the networks; "sd21" is the paper's, "tiny" trains on a CPU.
        backbone: file, folder or hub repository of Stable Diffusion; by default it is looked for where the codec looks for it.
        eps: weight of the noise prediction.
        latent: weight of the latent distance.
        semantic: weight of the semantic consistency; 0 leaves it out, which is one of the paper's ablations.
        semantic_location: which features of the frozen UNet the semantic consistency compares: after the "encoder", after the
            "middle" block (the paper's choice), or halfway through the "decoder".
        semantic_noise: share of the 1000 times, from 0 to 1, up to which the same noise is added to both latents before they are
            compared; 0, the paper's choice, adds none.
        text: False trains without tags.
        text_dropout: share of the samples that are trained without tags.
        sample: train on samples of the VAE's posterior; False takes its mode.
        device: PyTorch device.
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
        self._location, self._noise_share = semantic_location, semantic_noise
        self._text, self._dropout, self._sample = text, text_dropout, sample

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        z0 = self.latents(batch, self._sample)
        hint, bpp = self.run_compressor(self.pixels(batch), z0)
        context = self.embed_texts(batch, self._dropout, self._text)
        x, t, eps = self.diffuse(z0)
        terms = {
            "eps": F.mse_loss(self.predict(x, t, context, hint), eps),
            "bpp": bpp,
            "latent": F.mse_loss(hint, z0),
            "auxiliary": self.quantile_loss(),
        }
        if self.weights["semantic"]:
            terms["semantic"] = self.semantic_loss(z0, hint, context)
        return terms

    def semantic_loss(self, z0: Tensor, hint: Tensor, context: Tensor) -> Tensor:
        """Compare UNet features of the latent and of the decoded latent (eq. 5).

        Args:
            z0: latents (B, 4, h, w).
            hint: decoded latents (B, 4, h, w).
            context: embedded prompts (B, 77, D).

        Returns:
            The mean over all positions of 1 - cosine similarity, a scalar.
        """
        t = torch.zeros(len(z0), dtype=torch.int64, device=z0.device)
        if self._noise_share:
            original, t, noise = self.diffuse(z0, 0, max(1, round(1000 * self._noise_share)))
            abar = self._abar[t].view(-1, 1, 1, 1)
            decoded = (abar.sqrt() * hint + (1 - abar).sqrt() * noise).float()
        else:
            original, decoded = z0, hint
        with torch.no_grad():
            target = self.unet_features(original, t, context)
        return 1 - F.cosine_similarity(self.unet_features(decoded, t, context).float(), target.float(), dim=1).mean()

    def unet_features(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Features (B, C, h', w') of the frozen UNet without control, at the location that the options name.

        Args:
            x: latents (B, 4, h, w), noisy or not.
            t: times (B,), integers from 0 to 999.
            context: embedded prompts (B, 77, D).
        """
        if self._location == "middle":
            return self.base.mid_features(x, t, context)
        recorder = _FeatureRecorder()
        self.base.eps(x, t, context, recorder)
        return recorder.encoded[ENCODER] if self._location == "encoder" else recorder.decoded[DECODER]


class _FeatureRecorder(unet.Injector):
    """Adds nothing to the UNet's features, but keeps them."""

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
