"""SLIM: masks tell the compressor where to be faithful; in the second stage, pixels and a classifier do the same for the picture.

Lee et al., section 3.2.
"""

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
from icmbench.codecs.training.loss_networks import load_loss_networks


class SlimObjective(ControlledObjective):
    """SLIM's loss: lambda_r bpp + lambda_g MSE(M z_0, M z_hat) + lambda_d eps (eq. 4), and in stage 2 the terms of eq. 7.

    Stage 2 adds lambda_roi (MSE + LPIPS)(M x, M x~) + lambda_t CE. The paper gives neither weights nor the other settings marked
    (open); their defaults are guesses.

    Args:
        point: lambda_r, the weight of the rate.
        profile: size of the networks; "sd21" is the paper's, "tiny" trains on a CPU.
        backbone: file, folder or hub repository of Stable Diffusion; by default it is looked for where the codec looks for it.
        control: width of the control module, "light" or "full", as the codec's option of this name.
        stage: 1 or 2.
        guide: lambda_g, the weight of the latent distance (open).
        eps: lambda_d, the weight of the noise prediction (open).
        roi_weight: lambda_roi, the weight of the picture's MSE and LPIPS (open).
        task: lambda_t, the weight of the classifier's cross-entropy (open); 0 leaves it out.
        roi: apply the masks M of the data; False takes whole images, which is the paper's ablation.
        mask_mean: divide squared errors by the mask's sum instead of the number of all values (open; the equations say all).
        classifier: the network of the cross-entropy: "resnet50", a file of its weights, or "efficientnet-lite0".
        perceptual: the network of LPIPS, a name for `perceptual_distance` (open).
        gain_limit: the losses of the picture ignore samples whose estimate of z_0 multiplies errors of the predicted noise by more
            than this factor (open); 0 ignores none.
        text: False trains without captions.
        text_dropout: share of the samples that are trained without captions (open).
        device: PyTorch device.
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
        architecture = {"light": models.SLIM, "full": models.SLIM_FULL}[control]
        super().__init__(point, architecture, profile=profile, backbone=backbone, device=device)
        self.weights = {"bpp": point, "guide": guide, "eps": eps, "auxiliary": 1.0}
        sources: dict[str, str | None] = {}
        if stage == 2:
            self.weights |= {"mse": roi_weight, "lpips": roi_weight, "task": task}
            sources = {"lpips": perceptual if roi_weight else None, "task": classifier if task else None}
        for term, network in load_loss_networks(sources, device).items():
            self.add_frozen(term, network)
        needs = {"text": text, "mask": roi, "label": "task" in self.frozen_networks}
        self.needs = {name for name, needed in needs.items() if needed}
        self._with_picture, self._roi, self._mask_mean, self._gain_limit = stage == 2, roi, mask_mean, gain_limit
        self._text, self._dropout = text, text_dropout

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        z0, pixels = self.latents(batch), self.pixels(batch)
        mask = batch["mask"].to(self.device).float() / 255 if self._roi else torch.ones_like(pixels[:, :1])
        hint, bpp = self.run_compressor(pixels, z0)
        context = self.embed_texts(batch, self._dropout, self._text)
        x, t, eps = self.diffuse(z0)
        predicted = self.predict(x, t, context, hint)
        terms = {
            "bpp": bpp,
            "guide": self._masked_mse(hint, z0, roi.mask_to_latent(mask[:, 0], *z0.shape[-2:])),
            "eps": F.mse_loss(predicted, eps),
            "auxiliary": self.quantile_loss(),
        }
        if self._with_picture:
            clean, gain = self.estimate_z0(x, t, predicted)
            kept = gain <= (self._gain_limit or float("inf"))
            labels = batch["label"].to(self.device)[kept] if "task" in self.frozen_networks else None
            terms |= self._picture_terms(clean[kept], pixels[kept], mask[kept], labels)
        return terms

    def _picture_terms(self, clean: Tensor, pixels: Tensor, mask: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """The terms of decoded latents (B, 4, h, w) against pixels (B, 3, H, W) and class indices (B,); or zeros for no samples."""
        names = [name for name in ("mse", *self.frozen_networks) if name in self.weights]
        if not len(clean):
            return dict.fromkeys(names, clean.sum())
        decoded = self.decode(clean)
        terms = {"mse": self._masked_mse(decoded, pixels, mask)}
        if "lpips" in self.frozen_networks:
            terms["lpips"] = self.frozen_networks["lpips"](mask * decoded, mask * pixels)
        if labels is not None:
            terms["task"] = self.frozen_networks["task"](decoded, labels)
        return terms

    def _masked_mse(self, a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        """MSE(M a, M b) of a and b (B, C, H, W), with M (B, 1, H, W) in [0, 1]."""
        squared = (mask * (a - b)).square()
        return squared.sum() / (mask.expand_as(a).sum().clamp(min=1) if self._mask_mean else a.numel())
