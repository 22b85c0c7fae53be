"""Compressor and control over a frozen Stable Diffusion: what Diff-ICMH, ResULIC and SLIM share."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.backbone.files import BACKBONE, PRETRAINED
from icmbench.codecs.diffusion.backbone.unet import embed_time
from icmbench.codecs.training.latents import LatentObjective
from icmbench.codecs.training.objective import bits_per_pixel


class CodecObjective(LatentObjective):
    """Trains the parts of a codec's architecture; they bear the names that they have in its weight files."""

    def __init__(
        self, point: float, architecture: models.Architecture, *, profile: str, backbone: Path | str | None, device: str
    ) -> None:
        super().__init__(point, profile=profile, backbone=backbone, device=device)
        self._recipe = architecture
        parts: dict[str, Any] = architecture.parts(self.base, profile)
        self._names = list(parts)
        self.pad = max(self.pad, parts["latent"].pad)
        for name, part in parts.items():
            self.add_module(name, part.to(device))

    def code(self, pixels: Tensor, z0: Tensor | None) -> tuple[Tensor, Tensor]:
        """The hint, and the estimated bits a pixel, in float32: probabilities need it."""
        with torch.autocast(self.device.type, enabled=False):
            hint, likelihoods = self.get_submodule("latent")(pixels, z0)
        return hint, bits_per_pixel(likelihoods, pixels)

    def decode(self, z: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) float32 of latents, not clamped, so that gradients pass."""
        base = self.base
        return (base.vae.decode((z.float() / base.profile.scaling).to(base.dtype)).sample.float() + 1) / 2

    def export(self, folder: Path) -> None:
        """<codec>-lambda<point>.safetensors, and the backbone beside it where that is this project's own file."""
        shared = {id(tensor): tensor for tensor in (*self.base.parameters(), *self.base.buffers())}
        parts: Any = {name: copy.deepcopy(self.get_submodule(name), dict(shared)) for name in self._names}
        parts["latent"].update()
        models.save(self._recipe.model(self.base, **parts), folder / f"{self.codec}-lambda{self.point:g}.safetensors")
        if self.source.name == BACKBONE and PRETRAINED not in self.source.parents and not (folder / BACKBONE).exists():
            shutil.copyfile(self.source, folder / BACKBONE)


class ControlledObjective(CodecObjective):
    """... of a latent compressor and a control module, which starts from the UNet's weights."""

    def __init__(
        self, point: float, architecture: models.Architecture, *, profile: str, backbone: Path | str | None, device: str
    ) -> None:
        super().__init__(point, architecture, profile=profile, backbone=backbone, device=device)
        control: Any = self.get_submodule("control")
        control.copy_base(self.base.unet)

    def predict(self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> Tensor:
        """The controlled noise prediction (B, 4, h, w) in float32."""
        control: Any = self.get_submodule("control")
        x = x.to(self.base.dtype)
        walk = control.start(x, embed_time(self.base.unet, t), context, control.prepare(hint))
        return self.base.eps(x, t, context, walk).float()

    def context(self, batch: Mapping[str, Any], dropout: float, said: bool = True) -> Tensor:
        """Contexts (B, 77, D) of the batch's texts, or of no words."""
        prompts = self.prompts(batch, dropout) if said else [""] * len(batch["text"])
        with torch.no_grad():
            return self.base.embed(prompts)
