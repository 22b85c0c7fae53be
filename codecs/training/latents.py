"""What objectives over a frozen Stable Diffusion share: latents of photographs, prompts, and the forward diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.backbone import stable_diffusion as backbones
from icmbench.codecs.diffusion.backbone.files import WeightFiles
from icmbench.codecs.diffusion.backbone.stable_diffusion import DiffusionBackbone
from icmbench.codecs.training.objective import Objective


class LatentObjective(Objective):
    """Base class of the objectives that need a trained backbone. A latent z is (B, 4, h, w), with h = H / 8 and w = W / 8.

    Args:
        point: the rate point, or None.
        profile: size of the backbone's networks, "sd21" or "tiny".
        backbone: file, folder or hub repository of the backbone, as the codecs take it; by default it is looked for where the
            codecs look for it.
        device: PyTorch device.

    Attributes:
        source: file or folder that the backbone was loaded from.

    Raises:
        CodecError: no trained backbone is found, or it does not fit the profile.
    """

    def __init__(self, point: float | None, *, profile: str, backbone: Path | str | None, device: str = "cpu") -> None:
        super().__init__(point, device)
        files = WeightFiles(self.codec or "training", profile, None, None if backbone is None else str(backbone))
        source = files.backbone_source()
        if source is None:
            raise CodecError("training needs a trained backbone: set `backbone` to one of this project or Stable Diffusion")
        self.profile, self.source = profile, source
        base = self.add_frozen("base", backbones.load_backbone(profile, source, torch.float32, device))
        self._abar = base.abar.to(self.device)
        self._pool_moments: dict[int, Tensor] = {}

    @property
    def base(self) -> DiffusionBackbone:
        """The frozen backbone."""
        return self.frozen_networks["base"]

    @torch.no_grad()
    def posterior_moments(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Encode a batch with the VAE; the result for a crop of the data's pool is computed once and kept.

        Returns:
            Mean and standard deviation of the posteriors, times the profile's scaling, each (B, 4, h, w) float32.
        """
        slots = batch["slot"].tolist()
        if any(slot not in self._pool_moments for slot in slots):
            pixels = (2 * self.pixels(batch) - 1).to(self.base.dtype)
            posterior = self.base.vae.encode(pixels).latent_dist
            moments = torch.cat([posterior.mean, posterior.std], 1).float() * self.base.profile.scaling
            if min(slots) < 0:  # Without a pool, each crop is seen only once.
                mean, std = moments.chunk(2, 1)
                return mean, std
            self._pool_moments.update(zip(slots, moments))
        mean, std = torch.stack([self._pool_moments[slot] for slot in slots]).chunk(2, 1)
        return mean, std

    def latents(self, batch: Mapping[str, Any], sample: bool = True) -> Tensor:
        """Encode a batch to z_0 (B, 4, h, w) float32.

        Args:
            batch: a batch of `data.CropDataset`.
            sample: in training mode, draw from the VAE's posterior; otherwise take its mode, which is what the codecs encode.
        """
        mean, std = self.posterior_moments(batch)
        return (mean + std * torch.randn_like(std)) if sample and self.training else mean

    def prompts(self, batch: Mapping[str, Any], dropout: float) -> list[str]:
        """The batch's texts; in training mode, each is replaced by an empty one with probability `dropout`."""
        kept = (torch.rand(len(batch["text"])) >= dropout).tolist() if self.training else [True] * len(batch["text"])
        return [text if keep else "" for text, keep in zip(batch["text"], kept)]

    def estimate_z0(self, x: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate z_0 from a noisy latent and its predicted noise.

        Args:
            x: noisy latents x_t (B, 4, h, w).
            t: times (B,), integers from 0 to 999.
            eps: predicted noise (B, 4, h, w).

        Returns:
            The estimate (B, 4, h, w) float32; and its gain (B,) float32, the factor by which it multiplies errors of `eps`.
        """
        abar = self._abar[t].view(-1, 1, 1, 1)
        gain = ((1 - abar) / abar).sqrt()
        return (x / abar.sqrt() - gain * eps).float(), gain.flatten().float()

    def diffuse(self, z0: Tensor, low: int = 0, high: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
        """Add noise to latents at random times (DDPM, Ho et al. 2020, eq. 4).

        Args:
            z0: latents (B, 4, h, w).
            low: smallest time.
            high: one more than the largest time.

        Returns:
            Noisy latents x_t (B, 4, h, w) float32, times t (B,) int64, and the noise eps (B, 4, h, w).
        """
        # The CPU's generator draws times and noise, so that they are the same on any device.
        t = torch.randint(low, high, (len(z0),)).to(z0.device)
        eps = torch.randn(z0.shape).to(z0)
        abar = self._abar[t].view(-1, 1, 1, 1)
        return (abar.sqrt() * z0 + (1 - abar).sqrt() * eps).float(), t, eps
