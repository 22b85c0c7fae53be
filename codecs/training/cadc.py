"""CADC: MSE, LPIPS and CLIP of the picture; then the auxiliary picture too, and a discriminator on DINOv2 (Sheng et al., section
4.4 and eq. 13, with what its base StableCodec does)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from icmbench.codecs import cadc
from icmbench.codecs.diffusion import cadc_model
from icmbench.codecs.diffusion.backbone import adapted
from icmbench.codecs.diffusion.engine import to_uint8
from icmbench.codecs.diffusion.prompts.captioners import Captioner, captioner_of
from icmbench.codecs.diffusion.sampling.samplers import OneStep
from icmbench.codecs.training.controlled import CodecObjective
from icmbench.codecs.training.networks import Discriminator, frozen_terms, hinge

BASE_RATE = 0.5  # lambda of the first stage; with the weights below, StableCodec's
SHOWN = ("mse", "lpips", "clip", "adversarial")  # terms of the decoded picture: without them it is not decoded


class CadcObjective(CodecObjective):
    """Stage 1: lambda_base bpp + 2 MSE + LPIPS + 0.1 CLIP; stage 2, with the point as lambda: + L_aux (eq. 10) + 0.1 GAN.

    The weights are StableCodec's, as the text at hand lacks CADC's (open). rate: in place of the stage's lambda. mse, lpips, clip,
    auxiliary, adversarial: weights; 0 leaves a term and its network out. auxiliary 0 is the ablation without ADGIC, ugaq False
    the one without UGAQ. captions: BFATC: "decoder" captions x_aux by `captioner` as the codec does; "data" takes the data's
    captions in their place, which costs no captioner; "none", the ablation, has the fixed prompt alone. prompt: that one.
    discriminator_lr: of the heads on DINOv2. unet: "lora" trains factors of `rank_lora` and conv_in, as StableCodec; "all" the
    whole UNet. perceptual, clip_source, discriminator: the networks of LPIPS, CLIP and the GAN, see perceptual.py and networks.py.
    """

    codec = cadc.Cadc.name
    default_points = cadc.Cadc.points

    def __init__(
        self,
        point: float,
        *,
        profile: Literal["sd21", "tiny"] = "sd21",
        backbone: Path | str | None = None,
        stage: Literal[1, 2] = 2,
        rate: float | None = None,
        mse: float = 2.0,
        lpips: float = 1.0,
        clip: float = 0.1,
        auxiliary: float = 1.0,
        adversarial: float = 0.1,
        ugaq: bool = True,
        captions: Literal["decoder", "data", "none"] = "decoder",
        captioner: str = "Salesforce/blip-image-captioning-base",
        prompt: str = cadc.PROMPT,
        unet: Literal["lora", "all"] = "lora",
        rank_lora: int = 32,
        perceptual: str = "lpips-vgg",
        clip_source: str = "openai/clip-vit-base-patch32",
        discriminator: str = "facebook/dinov2-with-registers-base",
        discriminator_lr: float = 2e-5,
        device: str = "cpu",
    ) -> None:
        super().__init__(point, cadc_model.architecture(ugaq), profile=profile, backbone=backbone, device=device)
        if unet == "lora":
            adapted.add_lora(self.get_submodule("unet"), rank_lora, rank_lora / 4)
        else:
            self.unet = copy.deepcopy(self.get_submodule("unet")).requires_grad_(True)
        self.weights = {"bpp": rate if rate is not None else point if stage == 2 else BASE_RATE, "mse": mse, "quantiles": 1.0}
        self.weights |= {"lpips": lpips, "clip": clip}
        sources = {"lpips": perceptual if lpips else None, "clip": clip_source if clip else None}
        for term, network in frozen_terms(sources, device).items():
            self.freeze(term, network)
        if stage == 2 and auxiliary:
            self.weights["auxiliary"] = auxiliary
        self.discriminator: Discriminator | None = None
        self._discriminator_lr = discriminator_lr
        if stage == 2 and adversarial:
            self.discriminator = Discriminator(discriminator, device)
            self.weights |= {"adversarial": adversarial, "discriminator": 1.0}
        self.needs = {"text"} if captions == "data" else set()
        self._captioner: Captioner | None = captioner_of(captioner, device) if captions == "decoder" else None
        self._captions, self._prompt = captions, prompt

    def groups(self, lr: float) -> list[dict[str, Any]]:
        groups = super().groups(lr)
        if self.discriminator is not None:
            judged = {id(parameter) for parameter in self.discriminator.parameters()}
            groups[0]["params"] = [parameter for parameter in groups[0]["params"] if id(parameter) not in judged]
            groups.append({"params": list(self.discriminator.parameters()), "lr": self._discriminator_lr})
        return groups

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        pixels = self.pixels(batch)
        hint, bpp = self.code(pixels, None)
        latent: Any = self.get_submodule("latent")
        seen = latent.auxiliary(hint)
        terms = {"bpp": bpp, "quantiles": self.auxiliary(), "auxiliary": F.mse_loss(seen, pixels)}
        if not any(self.weights.get(term) for term in SHOWN):
            return terms
        with torch.no_grad():
            context = self.base.embed(self._prompts(batch, seen))
        base = self.base.with_unet(self.unet)

        def predict(x: Tensor, t: int) -> Tensor:
            return base.eps(x, torch.full((len(x),), t, device=x.device), context).float()

        decoded = self.decode(OneStep()(predict, self.base.abar, hint, hint))
        terms["mse"] = F.mse_loss(decoded, pixels)
        terms |= {name: self._frozen[name](decoded, pixels) for name in ("lpips", "clip") if name in self._frozen}
        if self.discriminator is not None:
            judge = self.discriminator
            with torch.no_grad():
                real = judge.tokens(pixels)
            fake = judge.tokens(decoded)
            terms["adversarial"] = -judge(fake, trained=False).mean()
            terms["discriminator"] = hinge(judge(real), judge([token.detach() for token in fake]))
        return terms

    def _prompts(self, batch: Mapping[str, Any], seen: Tensor) -> list[str]:
        if self._captioner is not None:
            captions = [self._captioner.caption(picture) for picture in to_uint8(seen.detach().clamp(0, 1))]
        else:
            captions = batch["text"] if self._captions == "data" else [""] * len(seen)
        return [cadc_model.JOINT.join(filter(None, [caption, self._prompt])) for caption in captions]
