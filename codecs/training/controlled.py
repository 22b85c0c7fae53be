"""Objectives of codecs over a frozen Stable Diffusion: a latent compressor and, for all but CADC, a control module."""

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
    """Base class of the objectives that train the parts of a diffusion codec, which are named as in the codec's weight files.

    Args:
        point: the rate point.
        architecture: which parts the codec consists of.
        profile: size of the networks, "sd21" or "tiny".
        backbone: file, folder or hub repository of the backbone; by default it is looked for where the codecs look for it.
        device: PyTorch device.

    Attributes:
        trained_with: options of training that the codec must repeat; the weight file records them, see `WeightFiles.trained_with`.
    """

    def __init__(
        self, point: float, architecture: models.Architecture, *, profile: str, backbone: Path | str | None, device: str
    ) -> None:
        super().__init__(point, profile=profile, backbone=backbone, device=device)
        self.trained_with: dict[str, Any] = {}
        self._architecture = architecture
        parts: dict[str, Any] = architecture.build_parts(self.base, profile)
        self._names = list(parts)
        self.pad = max(self.pad, parts["latent"].pad)
        for name, part in parts.items():
            self.add_module(name, part.to(device))

    def run_compressor(self, pixels: Tensor, z0: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the latent compressor in float32, which the probabilities need.

        Args:
            pixels: (B, 3, H, W) in [0, 1].
            z0: latents of the pixels (B, 4, h, w); None for compressors that do not take them.

        Returns:
            The hint, which is the decoded latent (B, 4, h, w), and the estimated bits per pixel, a scalar.
        """
        with torch.autocast(self.device.type, enabled=False):
            hint, likelihoods = self.get_submodule("latent")(pixels, z0)
        return hint, bits_per_pixel(likelihoods, pixels)

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents (B, 4, h, w) to pixels (B, 3, H, W) float32, not clamped to [0, 1], so that gradients pass."""
        base = self.base
        return (base.vae.decode((z.float() / base.profile.scaling).to(base.dtype)).sample.float() + 1) / 2

    def export(self, folder: Path) -> None:
        """Write <codec>-lambda<point>.safetensors, and a copy of the backbone if it is this project's own file."""
        frozen = {id(tensor): tensor for tensor in (*self.base.parameters(), *self.base.buffers())}  # Not to be copied.
        parts: Any = {name: copy.deepcopy(self.get_submodule(name), dict(frozen)) for name in self._names}
        parts["latent"].update()
        model = self._architecture.build_model(self.base, **parts)
        models.save_model(model, folder / f"{self.codec}-lambda{self.point:g}.safetensors", self.trained_with)
        if self.source.name == BACKBONE and PRETRAINED not in self.source.parents and not (folder / BACKBONE).exists():
            shutil.copyfile(self.source, folder / BACKBONE)


class ControlledObjective(CodecObjective):
    """Base class for codecs with a control module, whose weights start from the UNet's (Diff-ICMH, ResULIC, SLIM)."""

    def __init__(
        self, point: float, architecture: models.Architecture, *, profile: str, backbone: Path | str | None, device: str
    ) -> None:
        super().__init__(point, architecture, profile=profile, backbone=backbone, device=device)
        control: Any = self.get_submodule("control")
        control.copy_base(self.base.unet)

    def predict(self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> Tensor:
        """Predict the noise with the controlled UNet.

        Args:
            x: noisy latents (B, 4, h, w).
            t: times (B,), integers from 0 to 999.
            context: embedded prompts (B, 77, D).
            hint: decoded latents (B, 4, h, w), which the control module sees.

        Returns:
            The predicted noise (B, 4, h, w) float32.
        """
        control: Any = self.get_submodule("control")
        x = x.to(self.base.dtype)
        injector = control.make_injector(x, embed_time(self.base.unet, t), context, control.prepare(hint))
        return self.base.eps(x, t, context, injector).float()

    def embed_texts(self, batch: Mapping[str, Any], dropout: float, with_text: bool = True) -> Tensor:
        """Embed the batch's texts as UNet contexts (B, 77, D).

        Args:
            batch: a batch of `data.CropDataset`.
            dropout: probability with which a text is replaced by an empty one in training.
            with_text: False embeds empty texts only.
        """
        prompts = self.prompts(batch, dropout) if with_text else [""] * len(batch["text"])
        with torch.no_grad():
            return self.base.embed(prompts)
