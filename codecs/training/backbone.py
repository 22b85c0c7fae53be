"""A diffusion backbone from scratch, for the tiny profile: first the VAE, then UNet and text encoder on its latents."""

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

_MOMENTS_DECAY = 0.98  # Decay per step of the running mean and mean square of the latents.


class VaeObjective(Objective):
    """The autoencoder's loss: L1 + perceptual + KL (Rombach et al. 2022, appendix G, without its discriminator).

    The exported latents, times the profile's scaling, have mean 0 and variance 1 per channel on the training data: the measured
    moments are folded into the encoder's last and the decoder's first convolution. The exported UNet and text encoder are random.

    Args:
        point: unused; a backbone has no rate points.
        profile: which profile's network sizes to train.
        l1: weight of the pixels' mean absolute error.
        mse: weight of the pixels' mean squared error.
        chroma: weight of the mean absolute error after subtracting each pixel's mean over its channels. Without this term, small
            networks learn colours late.
        kl: weight of the KL divergence from a standard normal distribution, a mean over the latent's elements.
        perceptual: a name for `perceptual_distance`; None for no perceptual term.
        perceptual_weight: weight of the perceptual term.
        perceptual_crop: side in pixels of the random part of each crop that the perceptual term sees; 0 for whole crops.
        decoder_only: keep the encoder and the latents' moments, so that networks trained on the latents remain valid.
        device: PyTorch device.
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
        backbone = self.add_frozen("backbone", backbones.DiffusionBackbone(backbones.PROFILES[profile]))
        self.vae: Any = backbone.vae.to(device).requires_grad_(True)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("square", torch.ones(4))
        self._crop, self._decoder_only = perceptual_crop, decoder_only
        if decoder_only:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self.weights = {"l1": l1, "mse": mse, "chroma": chroma, "kl": kl}
        if perceptual is not None:
            self.add_frozen("distance", perceptual_distance(perceptual, device))
            self.weights["perceptual"] = perceptual_weight

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        pixels = self.pixels(batch)
        posterior = self.vae.encode(2 * pixels - 1).latent_dist
        z = posterior.sample()
        decoded = (self.vae.decode(z).sample.float() + 1) / 2
        if self.training and not self._decoder_only:
            with torch.no_grad():
                self.mean.lerp_(z.float().mean((0, 2, 3)), 1 - _MOMENTS_DECAY)
                self.square.lerp_(z.float().square().mean((0, 2, 3)), 1 - _MOMENTS_DECAY)
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        error = decoded - pixels
        chroma = (error - error.mean(1, keepdim=True)).abs().mean()
        terms = {"l1": error.abs().mean(), "mse": error.square().mean(), "chroma": chroma, "kl": kl}
        if "distance" in self.frozen_networks:
            terms["perceptual"] = self.frozen_networks["distance"](*random_squares((decoded, pixels), self._crop))
        return terms

    def export(self, folder: Path) -> None:
        backbone = self.frozen_networks["backbone"]
        trained_vae = backbone.vae
        backbone.vae = copy.deepcopy(self.vae).cpu()
        std = (self.square - self.mean**2).clamp(min=1e-6).sqrt()
        try:
            standardise_latents(backbone.vae, self.mean.cpu(), std.cpu(), backbone.profile.scaling)
            models.save_backbone(backbone, folder / BACKBONE)
        finally:
            backbone.vae = trained_vae


def random_squares(images: tuple[Tensor, ...], side: int) -> list[Tensor]:
    """Cut the same square at a random position from each image.

    Args:
        images: tensors (..., H, W) of one size.
        side: side of the square in pixels; 0, or at least H or W, returns whole images.
    """
    height, width = images[0].shape[-2:]
    if not 0 < side < min(height, width):
        return list(images)
    top, left = int(torch.randint(height - side + 1, ())), int(torch.randint(width - side + 1, ()))
    return [image[..., top : top + side, left : left + side] for image in images]


@torch.no_grad()
def standardise_latents(vae: Any, mean: Tensor, std: Tensor, scaling: float) -> None:
    """Change a VAE in place so that its latents, times `scaling`, have mean 0 and variance 1; its decoded images stay the same.

    Args:
        vae: the autoencoder (diffusers' AutoencoderKL).
        mean: the latents' mean per channel, (4,).
        std: the latents' standard deviation per channel, (4,).
        scaling: the factor that the profile applies to latents.
    """
    gain = 1 / (scaling * std)
    channels = len(mean)
    encoder, decoder = vae.quant_conv, vae.post_quant_conv
    decoder.bias += decoder.weight[:, :, 0, 0] @ mean  # decoder(z) = decoder(z' / gain + mean)
    decoder.weight /= gain.view(1, -1, 1, 1)
    encoder.weight[:channels] *= gain.view(-1, 1, 1, 1)
    encoder.bias[:channels] = (encoder.bias[:channels] - mean) * gain
    encoder.bias[channels:] += 2 * gain.log()  # These channels are logarithms of variances.


class UnetObjective(LatentObjective):
    """Noise prediction by UNet and text encoder on the latents of a trained VAE (Ho et al. 2020, eq. 14).

    Args:
        point: unused; a backbone has no rate points.
        profile: must be "tiny", because the full networks are not trained from scratch here.
        backbone: file or folder of the backbone that holds the VAE.
        text_dropout: share of the samples that are trained without text, which classifier-free guidance needs.
        restart: start from a random UNet and text encoder instead of the backbone's.
        device: PyTorch device.

    Raises:
        CodecError: the profile is another, or no trained backbone is found.
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
        start = backbones.DiffusionBackbone(self.base.profile) if restart else copy.deepcopy(self.base)
        self.unet = start.unet.to(device).requires_grad_(True)
        self.text = start.text.to(device).requires_grad_(True)
        self.weights = {"eps": 1.0}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        x, t, eps = self.diffuse(self.latents(batch))
        ids = self.base.tokenize(self.prompts(batch, self._dropout)).to(self.device)
        context = self.text(input_ids=ids).last_hidden_state
        return {"eps": F.mse_loss(self.unet(x, t, context, return_dict=False)[0].float(), eps)}

    def export(self, folder: Path) -> None:
        backbone = backbones.DiffusionBackbone(self.base.profile)
        for part, network in (("vae", self.base.vae), ("unet", self.unet), ("text", self.text)):
            getattr(backbone, part).load_state_dict(network.state_dict())
        models.save_backbone(backbone, folder / BACKBONE)
