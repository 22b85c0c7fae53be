"""CADC: MSE, LPIPS and CLIP of the picture; in stage 2, also the auxiliary picture and a discriminator on DINOv2.

Sheng et al., section 4.4 and eq. 13. Where the paper is silent, this follows StableCodec, on which CADC builds.
"""

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
from icmbench.codecs.diffusion.prompts.captioners import Captioner, build_captioner
from icmbench.codecs.diffusion.sampling.samplers import OneStepSampler
from icmbench.codecs.training.controlled import CodecObjective
from icmbench.codecs.training.loss_networks import Discriminator, hinge_loss, load_loss_networks

BASE_RATE = 0.5  # lambda_base, the weight of the rate in stage 1; StableCodec's value.
PICTURE_TERMS = ("mse", "lpips", "clip", "adversarial")  # If none of these has a weight, the picture is not decoded.


class CadcObjective(CodecObjective):
    """CADC's loss: lambda bpp + 2 MSE + LPIPS + 0.1 CLIP; in stage 2 also L_aux (eq. 10) + 0.1 GAN.

    Only L_aux trains the auxiliary decoder, and the paper activates it in stage 2 (section 7.2). Until then x_aux shows nothing
    that could be described, so the UNet is trained under the fixed prompt alone.

    The default weights are StableCodec's, because the available text of the paper does not contain CADC's (open).

    Args:
        point: lambda of stage 2, the weight of the rate.
        profile: size of the networks; "sd21" is the paper's, "tiny" trains on a CPU.
        backbone: file, folder or hub repository of SD-Turbo; by default it is looked for where the codec looks for it.
        stage: 1 or 2.
        rate: weight of the rate; by default 0.5 in stage 1 and the point in stage 2.
        mse: weight of the picture's MSE.
        lpips: weight of LPIPS; 0 leaves it and its network out.
        clip: weight of the l2 distance of CLIP embeddings (section 7.2); 0 leaves it and its network out.
        auxiliary: weight of L_aux in stage 2; 0 is the ablation without ADGIC.
        adversarial: weight of the GAN's loss in stage 2; 0 leaves it and its network out.
        ugaq: modulate the latent by its uncertainty map; False is the ablation without UGAQ.
        uncertainty_channels: channels of that map, 1 or as many as the latent has, 320 for sd21 and 32 for tiny.
        delta: rounding step of the latent (equation 5). The exported weights record it and the channels of the map for the codec.
        captions: what precedes the fixed prompt (BFATC). With "decoder", `captioner` describes the auxiliary picture, as in the
            codec, if the stage trains that picture (stage 2 with a weight `auxiliary`); "data" takes the captions of the data
            instead, which spares the captioner; "none" is the ablation, the fixed prompt alone.
        captioner: hub repository or folder of the captioner; the default is the paper's.
        prompt: the fixed prompt.
        unet: "lora" trains low-rank factors and the input convolution, as StableCodec does; "all" trains the whole UNet.
        rank_lora: rank of the factors; their product is scaled by 1/4.
        perceptual: the network of LPIPS, a name for `perceptual_distance`.
        clip_source: folder or hub repository of CLIP, see loss_networks.py.
        discriminator: folder or hub repository of the DINOv2 below the discriminator, see loss_networks.py.
        discriminator_lr: learning rate of the discriminator's heads.
        device: PyTorch device.
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
        uncertainty_channels: int = 1,
        delta: float = 1.0,
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
        networks = cadc_model.architecture(ugaq, uncertainty_channels, delta)
        super().__init__(point, networks, profile=profile, backbone=backbone, device=device)
        self.trained_with = {"uncertainty_channels": uncertainty_channels, "delta": delta}
        if unet == "lora":
            adapted.add_lora(self.get_submodule("unet"), rank_lora, rank_lora / 4)
        else:
            self.unet = copy.deepcopy(self.get_submodule("unet")).requires_grad_(True)
        self.weights = {"bpp": rate if rate is not None else point if stage == 2 else BASE_RATE, "mse": mse, "quantiles": 1.0}
        self.weights |= {"lpips": lpips, "clip": clip}
        sources = {"lpips": perceptual if lpips else None, "clip": clip_source if clip else None}
        for term, network in load_loss_networks(sources, device).items():
            self.add_frozen(term, network)
        if stage == 2 and auxiliary:
            self.weights["auxiliary"] = auxiliary
        self.discriminator: Discriminator | None = None
        self._discriminator_lr = discriminator_lr
        if stage == 2 and adversarial:
            self.discriminator = Discriminator(discriminator, device)
            self.weights |= {"adversarial": adversarial, "discriminator": 1.0}
        self.needs = {"text"} if captions == "data" else set()
        describes = captions == "decoder" and "auxiliary" in self.weights
        self._captioner: Captioner | None = build_captioner(captioner, device) if describes else None
        self._captions, self._prompt = captions, prompt

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        groups = super().parameter_groups(lr)
        if self.discriminator is not None:
            discriminator_ids = {id(parameter) for parameter in self.discriminator.parameters()}
            groups[0]["params"] = [parameter for parameter in groups[0]["params"] if id(parameter) not in discriminator_ids]
            groups.append({"params": list(self.discriminator.parameters()), "lr": self._discriminator_lr})
        return groups

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        pixels = self.pixels(batch)
        hint, bpp = self.run_compressor(pixels, None)
        latent: Any = self.get_submodule("latent")
        auxiliary_picture = latent.auxiliary(hint)
        terms = {"bpp": bpp, "quantiles": self.quantile_loss(), "auxiliary": F.mse_loss(auxiliary_picture, pixels)}
        if not any(self.weights.get(term) for term in PICTURE_TERMS):
            return terms
        with torch.no_grad():
            context = self.base.embed(self._caption_prompts(batch, auxiliary_picture))
        base = self.base.with_unet(self.unet)

        def predict(x: Tensor, t: int) -> Tensor:
            return base.eps(x, torch.full((len(x),), t, device=x.device), context).float()

        decoded = self.decode(OneStepSampler()(predict, self.base.abar, hint, hint))
        terms["mse"] = F.mse_loss(decoded, pixels)
        terms |= {name: self.frozen_networks[name](decoded, pixels) for name in ("lpips", "clip") if name in self.frozen_networks}
        if self.discriminator is not None:
            discriminator = self.discriminator
            with torch.no_grad():
                real = discriminator.tokens(pixels)
            fake = discriminator.tokens(decoded)
            terms["adversarial"] = -discriminator(fake, train_heads=False).mean()
            terms["discriminator"] = hinge_loss(discriminator(real), discriminator([tokens.detach() for tokens in fake]))
        return terms

    def _caption_prompts(self, batch: Mapping[str, Any], auxiliary_picture: Tensor) -> list[str]:
        """One prompt per image: a caption, if the options ask for one, and the fixed prompt."""
        if self._captioner is not None:
            captions = [self._captioner.caption(picture) for picture in to_uint8(auxiliary_picture.detach().clamp(0, 1))]
        else:
            captions = batch["text"] if self._captions == "data" else [""] * len(auxiliary_picture)
        return [cadc_model.SEPARATOR.join(filter(None, [caption, self._prompt])) for caption in captions]
