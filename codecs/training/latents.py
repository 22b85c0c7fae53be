"""What objectives on a frozen Stable Diffusion share: latents of photographs, contexts of their texts, noised latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.backbone import stable_diffusion as backbones
from icmbench.codecs.diffusion.backbone.files import Files
from icmbench.codecs.diffusion.backbone.stable_diffusion import DiffusionBackbone
from icmbench.codecs.training.objective import Objective


class LatentObjective(Objective):
    """Base of the objectives that start from a trained backbone.

    profile, backbone: as of the codecs; without `backbone` the default places are searched.
    """

    def __init__(self, point: float | None, *, profile: str, backbone: Path | str | None, device: str = "cpu") -> None:
        super().__init__(point, device)
        files = Files(self.codec or "training", profile, None, None if backbone is None else str(backbone))
        source = files.base()
        if source is None:
            raise CodecError("training needs a trained backbone: set `backbone` to one of this project or Stable Diffusion")
        self.profile, self.source = profile, source
        base = self.freeze("base", backbones.load(profile, source, torch.float32, device))
        self._abar = base.abar.to(self.device)
        self._moments: dict[int, Tensor] = {}

    @property
    def base(self) -> DiffusionBackbone:
        return self._frozen["base"]

    @torch.no_grad()
    def moments(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posteriors, scaled, (B, 4, h, w) float32; those of a pool are computed once."""
        slots = batch["slot"].tolist()
        if any(slot not in self._moments for slot in slots):
            pixels = (2 * self.pixels(batch) - 1).to(self.base.dtype)
            posterior = self.base.vae.encode(pixels).latent_dist
            found = torch.cat([posterior.mean, posterior.std], 1).float() * self.base.profile.scaling
            if min(slots) < 0:
                mean, std = found.chunk(2, 1)
                return mean, std
            self._moments.update(zip(slots, found))
        mean, std = torch.stack([self._moments[slot] for slot in slots]).chunk(2, 1)
        return mean, std

    def latents(self, batch: Mapping[str, Any], sample: bool = True) -> Tensor:
        """z0 (B, 4, h, w) float32: a sample of the VAE's posterior, or its mode, which is what the codecs see."""
        mean, std = self.moments(batch)
        return (mean + std * torch.randn_like(std)) if sample and self.training else mean

    def prompts(self, batch: Mapping[str, Any], dropout: float) -> list[str]:
        """The batch's texts, some of them emptied in training."""
        kept = (torch.rand(len(batch["text"])) >= dropout).tolist() if self.training else [True] * len(batch["text"])
        return [text if keep else "" for text, keep in zip(batch["text"], kept)]

    def cleaned(self, x: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The estimate of z0 (B, 4, h, w) from noise at times t (B,), and what it multiplies errors of the noise by (B,)."""
        abar = self._abar[t].view(-1, 1, 1, 1)
        gain = ((1 - abar) / abar).sqrt()
        return (x / abar.sqrt() - gain * eps).float(), gain.flatten().float()

    def noised(self, z0: Tensor, low: int = 0, high: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, t, eps) at times drawn from low to high - 1 (DDPM, Ho et al. 2020, eq. 4)."""
        t = torch.randint(low, high, (len(z0),)).to(z0.device)
        eps = torch.randn(z0.shape).to(z0)  # of the CPU's generator, as the times: the same trace on any device
        abar = self._abar[t].view(-1, 1, 1, 1)
        return (abar.sqrt() * z0 + (1 - abar).sqrt() * eps).float(), t, eps
