"""SLIM: the compressor is told by masks where to be faithful; then so is the picture, by pixels and by a classifier (Lee et al.,
section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from icmbench.codecs import slim
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.prompts import roi
from icmbench.codecs.training.controlled import ControlledObjective
from icmbench.codecs.training.networks import frozen_terms


class SlimObjective(ControlledObjective):
    """Stage 1: lambda_r bpp + lambda_g MSE(M z0, M z_hat) + lambda_d eps (eq. 4); stage 2: + lambda_roi (MSE + LPIPS)(M x, M x~) +
    lambda_t CE (eq. 7). The paper gives no weight; what it leaves open is marked (open).

    stage: 1 or 2. The point is lambda_r. guide, eps, roi, task: the other weights (open: 1, 1, 1 and 0.1; 0 leaves a term out).
    roi: the masks of the data are applied; False is the paper's ablation, whole images. mask_mean: divide squared errors by the
    masked values instead of by all (open: all, as the equations say). classifier: of the cross-entropy: "resnet50", a file of its
    weights or "efficientnet-lite0". perceptual: LPIPS's network (open). control: as of the codec. gain_limit: leaves samples out of
    the pixel losses whose estimate of z0, at their time, multiplies errors of the predicted noise by more (open: 4); 0 for none.
    text, text_dropout: captions of the masked images, and the share of samples without (open: 0.1).
    """

    codec = slim.Slim.name
    default_points = slim.Slim.points

    def __init__(
        self,
        point: float,
        *,
        profile: Literal["sd21", "tiny"] = "sd21",
        backbone: Path | str | None = None,
        control: Literal["light", "full"] = "light",
        stage: Literal[1, 2] = 2,
        guide: float = 1.0,
        eps: float = 1.0,
        roi_weight: float = 1.0,
        task: float = 0.1,
        roi: bool = True,
        mask_mean: bool = False,
        classifier: str = "resnet50",
        perceptual: str = "lpips-alex",
        gain_limit: float = 4.0,
        text: bool = True,
        text_dropout: float = 0.1,
        device: str = "cpu",
    ) -> None:
        recipe = {"light": models.SLIM, "full": models.SLIM_FULL}[control]
        super().__init__(point, recipe, profile=profile, backbone=backbone, device=device)
        self.weights = {"bpp": point, "guide": guide, "eps": eps, "auxiliary": 1.0}
        sources: dict[str, str | None] = {}
        if stage == 2:
            self.weights |= {"mse": roi_weight, "lpips": roi_weight, "task": task}
            sources = {"lpips": perceptual if roi_weight else None, "task": classifier if task else None}
        for term, network in frozen_terms(sources, device).items():
            self.freeze(term, network)
        self.needs = ({"text"} if text else set()) | ({"mask"} if roi else set()) | ({"label"} if "task" in self._frozen else set())
        self._pixels, self._roi, self._mask_mean, self._gain_limit = stage == 2, roi, mask_mean, gain_limit
        self._text, self._dropout = text, text_dropout

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        z0, pixels = self.latents(batch), self.pixels(batch)
        mask = batch["mask"].to(self.device).float() / 255 if self._roi else torch.ones_like(pixels[:, :1])
        hint, bpp = self.code(pixels, z0)
        context = self.context(batch, self._dropout, self._text)
        x, t, eps = self.noised(z0)
        predicted = self.predict(x, t, context, hint)
        terms = {
            "bpp": bpp,
            "guide": self._distance(hint, z0, roi.to_latent(mask[:, 0], *z0.shape[-2:])),
            "eps": F.mse_loss(predicted, eps),
            "auxiliary": self.auxiliary(),
        }
        if self._pixels:
            clean, gain = self.cleaned(x, t, predicted)
            kept = gain <= (self._gain_limit or float("inf"))
            labels = batch["label"].to(self.device)[kept] if "task" in self._frozen else None
            terms |= self._pixel_terms(clean[kept], pixels[kept], mask[kept], labels)
        return terms

    def _pixel_terms(self, clean: Tensor, pixels: Tensor, mask: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        names = [name for name in ("mse", *self._frozen) if name in self.weights]
        if not len(clean):
            return dict.fromkeys(names, clean.sum())
        decoded = self.decode(clean)
        terms = {"mse": self._distance(decoded, pixels, mask)}
        if "lpips" in self._frozen:
            terms["lpips"] = self._frozen["lpips"](mask * decoded, mask * pixels)
        if labels is not None:
            terms["task"] = self._frozen["task"](decoded, labels)
        return terms

    def _distance(self, a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        """MSE(M a, M b)."""
        squared = (mask * (a - b)).square()
        return squared.sum() / (mask.expand_as(a).sum().clamp(min=1) if self._mask_mean else a.numel())
