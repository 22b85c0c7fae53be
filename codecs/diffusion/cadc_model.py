"""CADC's networks at work: one evaluation of a UNet that reads all of l_T, under a caption that costs no bits.

l_T --+--------------------------------------UNet, t = 999--> eps --+
      +--[:4]--g_aux--> x_aux --captioner--> caption + prompt --^   |
      +--[:4]---------------------------------------------------x0 = (l_T[:4] - sqrt(1 - abar) eps) / sqrt(abar) --VAE--> pixels
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from icmbench.codecs.diffusion.backbone import adapted, weights
from icmbench.codecs.diffusion.backbone.stable_diffusion import DiffusionBackbone, Prompt
from icmbench.codecs.diffusion.backbone.unet import UNet
from icmbench.codecs.diffusion.engine import CodecModel, Decoding, to_uint8
from icmbench.codecs.diffusion.latents.cadc_compressor import CADC, CadcCompressor
from icmbench.codecs.diffusion.models import Architecture, Parts
from icmbench.codecs.diffusion.prompts.captioners import Captioner
from icmbench.codecs.diffusion.sampling import samplers

JOINT = ", "  # between caption and prompt; the paper says "simple string concatenation"


@dataclass(frozen=True)
class CadcDecoding(Decoding):
    """captioner: of the auxiliary picture; None for the fixed prompt alone."""

    captioner: Captioner | None = None


class CadcModel(CodecModel):
    """One rate point: its compressor and its UNet, an `adapted` copy of the backbone's."""

    latent: CadcCompressor

    def __init__(self, backbone: DiffusionBackbone, latent: CadcCompressor, unet: UNet) -> None:
        super().__init__(backbone.with_unet(unet), latent)
        self._base = backbone.unet
        nn.utils.convert_conv2d_weight_memory_format(unet.eval().requires_grad_(False), torch.channels_last)

    @property
    def parts(self) -> Parts:
        return {"latent": self.latent, "unet": self.backbone.unet}

    def state(self) -> dict[str, Tensor]:
        own = {"unet." + key: value for key, value in adapted.own_state(self.backbone.unet, self._base).items()}
        return {"latent." + key: value for key, value in self.latent.state_dict().items()} | own

    @torch.no_grad()
    def preview(self, hint: Tensor, decoding: Decoding) -> Tensor:
        """The auxiliary reconstruction x_aux."""
        return self.latent.auxiliary(hint).clamp(0, 1)

    def predictor(self, hint: Tensor, decoding: Decoding, prompts: Sequence[Prompt]) -> samplers.Predict:
        """As the base's, each fixed prompt behind a caption of x_aux, padding included, where captions are wanted."""
        captioner = decoding.captioner if isinstance(decoding, CadcDecoding) else None
        if captioner is not None:
            captions = [captioner.caption(picture) for picture in to_uint8(self.preview(hint, decoding))]
            prompts = [JOINT.join(filter(None, [caption, str(prompt)])) for caption, prompt in zip(captions, prompts)]
        return super().predictor(hint, decoding, prompts)


def _parts(base: DiffusionBackbone, profile: str, ugaq: bool) -> Parts:
    latent = CadcCompressor(**CADC[profile], ugaq=ugaq)
    return {"latent": latent, "unet": adapted.adapted(base.unet, latent.context.channels)}


def _fill(parts: Parts, state: Mapping[str, Tensor], file: Path) -> None:
    """latent: all of it. unet: what the file holds, see `adapted`."""
    own = {key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")}
    weights.fill(nn.ModuleDict({"latent": parts["latent"]}), {key: state[key] for key in state if key[5:] not in own}, file)
    adapted.fill(parts["unet"], own, file)


@functools.cache
def architecture(ugaq: bool = True) -> Architecture:
    """The networks of CADC. ugaq: of the encoder."""
    return Architecture(functools.partial(_parts, ugaq=ugaq), model=CadcModel, fill=_fill)
