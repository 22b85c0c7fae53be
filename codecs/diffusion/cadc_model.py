"""CADC's decoder: one evaluation of a UNet that reads all channels of l_T, with a caption that costs no bits.

l_T --+--------------------------------------UNet, t = 999--> eps --+
      +--[:4]--g_aux--> x_aux --captioner--> caption + prompt --^   |
      +--[:4]---------------------------------------------------x0 = (l_T[:4] - sqrt(1 - abar) eps) / sqrt(abar) --VAE--> pixels
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icmbench.codecs.diffusion.backbone import adapted, weights
from icmbench.codecs.diffusion.backbone.stable_diffusion import DiffusionBackbone, Prompt
from icmbench.codecs.diffusion.backbone.unet import UNet
from icmbench.codecs.diffusion.engine import CodecModel, Decoding, to_uint8
from icmbench.codecs.diffusion.latents.cadc_compressor import CADC_PROFILES, CadcCompressor
from icmbench.codecs.diffusion.models import Architecture, Parts
from icmbench.codecs.diffusion.prompts.captioners import Captioner
from icmbench.codecs.diffusion.sampling import samplers

# Between caption and prompt. The paper's "simple string concatenation", c = c_aux + c_fix (equation 12), cannot be meant to the
# letter: captions of BLIP end without a stop, so "a red door" and "A high-resolution, ..." would give "a red doorA
# high-resolution", whose word "doora" CLIP cuts into other tokens, and the caption's last word, often what the picture shows, would
# be lost. The fixed prompt is itself a list with commas, so a comma joins the caption to it here. It costs one of the 77 tokens.
SEPARATOR = ", "


@dataclass(frozen=True)
class CadcDecoding(Decoding):
    """How a stream of CADC becomes pixels.

    Args:
        captioner: Describes the auxiliary reconstruction x_aux; None decodes with the fixed prompt alone.
    """

    captioner: Captioner | None = None


class CadcModel(CodecModel):
    """One rate point of CADC.

    Args:
        backbone: The backbone that all rate points share.
        latent: The latent compressor of this point.
        unet: The UNet of this point, made from the backbone's by `adapted.adapt_unet`.
    """

    latent: CadcCompressor

    def __init__(self, backbone: DiffusionBackbone, latent: CadcCompressor, unet: UNet) -> None:
        super().__init__(backbone.with_unet(unet), latent)
        self._shared_unet = backbone.unet
        nn.utils.convert_conv2d_weight_memory_format(unet.eval().requires_grad_(False), torch.channels_last)

    @property
    def parts(self) -> Parts:
        return {"latent": self.latent, "unet": self.backbone.unet}

    def state(self) -> dict[str, Tensor]:
        latent_state, unet_state = self.latent.state_dict(), adapted.adapted_state(self.backbone.unet, self._shared_unet)
        return {"latent." + key: value for key, value in latent_state.items()} | {
            "unet." + key: value for key, value in unet_state.items()
        }

    @torch.no_grad()
    def preview(self, hint: Tensor, decoding: Decoding) -> Tensor:
        """Return the auxiliary reconstruction x_aux, (N, 3, 8H, 8W) float32 in [0, 1], of hints l_T (N, C, H, W)."""
        return self.latent.auxiliary(hint).clamp(0, 1)

    def predictor(self, hint: Tensor, decoding: Decoding, prompts: Sequence[Prompt]) -> samplers.NoisePredictor:
        """Make the noise predictor for hints (N, C, H, W) and their fixed prompts.

        If `decoding` has a captioner, a caption of x_aux, whose padding is still on, precedes each prompt.
        """
        captioner = decoding.captioner if isinstance(decoding, CadcDecoding) else None
        if captioner is not None:
            captions = [captioner.caption(picture) for picture in to_uint8(self.preview(hint, decoding))]
            prompts = [SEPARATOR.join(filter(None, [caption, str(prompt)])) for caption, prompt in zip(captions, prompts)]
        return super().predictor(hint, decoding, prompts)


def _build_parts(base: DiffusionBackbone, profile: str, **options: Any) -> Parts:
    latent = CadcCompressor(**CADC_PROFILES[profile], **options)
    return {"latent": latent, "unet": adapted.adapt_unet(base.unet, latent.context.channels)}


def _fill_parts(parts: Parts, state: Mapping[str, Tensor], file: Path) -> None:
    """Fill the whole compressor, and the layers of the UNet that the file holds."""
    unet_state = {key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")}
    latent_state = {key: value for key, value in state.items() if not key.startswith("unet.")}
    weights.fill_module(nn.ModuleDict({"latent": parts["latent"]}), latent_state, file)
    adapted.fill_adapted(parts["unet"], unet_state, file)


@functools.cache
def architecture(ugaq: bool = True, uncertainty_channels: int = 1, delta: float = 1.0) -> Architecture:
    """Return the networks of CADC.

    Args:
        ugaq: Whether the encoder modulates y by its uncertainty map (equations 1 to 3); False is the paper's ablation.
        uncertainty_channels: Channels of that map, see `CadcCompressor`.
        delta: Rounding step of y (equation 5).
    """
    build_parts = functools.partial(_build_parts, ugaq=ugaq, uncertainty_channels=uncertainty_channels, delta=delta)
    return Architecture(build_parts, build_model=CadcModel, fill_parts=_fill_parts)
