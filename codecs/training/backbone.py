"""A backbone from scratch, for the tiny profile: first the VAE, then UNet and text encoder on its latents."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.backbone import stable_diffusion as backbones
from icmbench.codecs.diffusion.backbone.files import BACKBONE
from icmbench.codecs.perceptual import perceptual_distance
from icmbench.codecs.training.latents import LatentObjective
from icmbench.codecs.training.objective import Objective

_DECAY = 0.98  # of the running moments of latents


class VaeObjective(Objective):
    """The autoencoder: L1 + perceptual + KL (Rombach et al. 2022, appendix G, without its discriminator).

    profile: whose sizes. l1, mse, kl: weights of the means over values; chroma: of the L1 of pixels less their grey, without which
    small networks learn colours late. perceptual: a network of `perceptual.py`, or None; perceptual_weight, perceptual_crop: its
    weight, and the side of the part of each crop that it sees, 0 for all.
    decoder_only: keep the encoder and the latents' moments, so that what was trained on the latents stays valid.
    The export has latents of mean 0 and variance 1 a channel on the training data after the profile's scaling: the last encoder
    and first decoder convolution take the measured moments in. Its UNet and text encoder are random.
    """

    mean: Tensor
    square: Tensor

    def __init__(
        self,
        point: float | None = None,
        *,
        profile: str = "tiny",
        l1: float = 1.0,
        mse: float = 0.0,
        chroma: float = 0.0,
        kl: float = 1e-4,
        perceptual: str | None = None,
        perceptual_weight: float = 0.5,
        perceptual_crop: int = 64,
        decoder_only: bool = False,
        device: str = "cpu",
    ) -> None:
        super().__init__(point, device)
        whole = self.freeze("whole", backbones.DiffusionBackbone(backbones.PROFILES[profile]))
        self.vae: Any = whole.vae.to(device).requires_grad_(True)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("square", torch.ones(4))
        self._crop, self._decoder_only = perceptual_crop, decoder_only
        if decoder_only:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self.weights = {"l1": l1, "mse": mse, "chroma": chroma, "kl": kl}
        if perceptual is not None:
            self.freeze("distance", perceptual_distance(perceptual, device))
            self.weights["perceptual"] = perceptual_weight

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        pixels = self.pixels(batch)
        posterior = self.vae.encode(2 * pixels - 1).latent_dist
        z = posterior.sample()
        decoded = (self.vae.decode(z).sample.float() + 1) / 2
        if self.training and not self._decoder_only:
            with torch.no_grad():
                self.mean.lerp_(z.float().mean((0, 2, 3)), 1 - _DECAY)
                self.square.lerp_(z.float().square().mean((0, 2, 3)), 1 - _DECAY)
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        error = decoded - pixels
        chroma = (error - error.mean(1, keepdim=True)).abs().mean()
        terms = {"l1": error.abs().mean(), "mse": error.square().mean(), "chroma": chroma, "kl": kl}
        if "distance" in self._frozen:
            terms["perceptual"] = self._frozen["distance"](*corner((decoded, pixels), self._crop))
        return terms

    def export(self, folder: Path) -> None:
        whole = self._frozen["whole"]
        kept = whole.vae
        whole.vae = copy.deepcopy(self.vae).cpu()
        try:
            normalise(whole.vae, self.mean.cpu(), (self.square - self.mean**2).clamp(min=1e-6).sqrt().cpu(), whole.profile.scaling)
            models.save_backbone(whole, folder / BACKBONE)
        finally:
            whole.vae = kept


def corner(images: tuple[Tensor, ...], side: int) -> list[Tensor]:
    """The same square of `side` pixels of each image, at a place drawn anew; 0 for the whole images."""
    height, width = images[0].shape[-2:]
    if not 0 < side < min(height, width):
        return list(images)
    top, left = int(torch.randint(height - side + 1, ())), int(torch.randint(width - side + 1, ()))
    return [image[..., top : top + side, left : left + side] for image in images]


@torch.no_grad()
def normalise(vae: Any, mean: Tensor, deviation: Tensor, scaling: float) -> None:
    """Have a VAE's latents, times `scaling`, mean 0 and variance 1 a channel, given their moments (4,); its images stay."""
    gain = 1 / (scaling * deviation)
    channels = len(mean)
    encoder, decoder = vae.quant_conv, vae.post_quant_conv
    decoder.bias += decoder.weight[:, :, 0, 0] @ mean  # decoder(z) = decoder(z' / gain + mean)
    decoder.weight /= gain.view(1, -1, 1, 1)
    encoder.weight[:channels] *= gain.view(-1, 1, 1, 1)
    encoder.bias[:channels] = (encoder.bias[:channels] - mean) * gain
    encoder.bias[channels:] += 2 * gain.log()  # logarithms of variances


class UnetObjective(LatentObjective):
    """UNet and text encoder on a trained VAE: predict the noise (Ho et al. 2020, eq. 14), with words dropped for guidance.

    backbone: where the VAE is. text_dropout: share of samples whose text is emptied. restart: begin with a random UNet and text
    encoder instead of the backbone's.
    """

    def __init__(
        self,
        point: float | None = None,
        *,
        profile: str = "tiny",
        backbone: Path | str | None = None,
        text_dropout: float = 0.1,
        restart: bool = False,
        device: str = "cpu",
    ) -> None:
        if profile != "tiny":
            raise CodecError("only the tiny profile is trained from scratch: set profile: tiny")
        super().__init__(point, profile=profile, backbone=backbone, device=device)
        self._dropout = text_dropout
        trained = backbones.DiffusionBackbone(self.base.profile) if restart else copy.deepcopy(self.base)
        self.unet = trained.unet.to(device).requires_grad_(True)
        self.text = trained.text.to(device).requires_grad_(True)
        self.weights = {"eps": 1.0}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        x, t, eps = self.noised(self.latents(batch))
        ids = self.base.tokenize(self.prompts(batch, self._dropout)).to(self.device)
        context = self.text(input_ids=ids).last_hidden_state
        return {"eps": F.mse_loss(self.unet(x, t, context, return_dict=False)[0].float(), eps)}

    def export(self, folder: Path) -> None:
        whole = backbones.DiffusionBackbone(self.base.profile)
        for part, network in (("vae", self.base.vae), ("unet", self.unet), ("text", self.text)):
            getattr(whole, part).load_state_dict(network.state_dict())
        models.save_backbone(whole, folder / BACKBONE)
