"""Samplers, from start noise and a hint to a latent; and noise prediction with classifier-free guidance and tiles.

    sampler(predict, abar, hint, noise) -> z        predict(x, t) -> eps, both (N, 4, H, W) float32

A sampler needs `draws` standard-normal latents per image. They come from a CPU generator that is seeded by the stream, so they do
not depend on the device. Time t runs from 999 (noise) to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from icmbench.codecs.diffusion.backbone.control import ControlModule
from icmbench.codecs.diffusion.backbone.stable_diffusion import DiffusionBackbone
from icmbench.codecs.diffusion.backbone.tiles import Tiles
from icmbench.codecs.diffusion.backbone.unet import embed_time

# From a noisy latent x (N, C, H, W) float32 and a time to the predicted noise eps (N, 4, H, W) float32.
NoisePredictor: TypeAlias = Callable[[Tensor, int], Tensor]


class Sampler(Protocol):
    """Turns start noise and a hint into a latent. Samplers are immutable and can be compared and hashed."""

    @property
    def draws(self) -> int:
        """Standard-normal latents per image, the start included."""

    def __call__(self, predict: NoisePredictor, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        """Sample latents.

        Args:
            predict: Predicts the noise in a latent.
            abar: (1000,) float64, the cumulative product of 1 - beta.
            hint: Hints (N, 4, H, W) float32.
            noise: Standard-normal values (N, draws, 4, H, W) float32.

        Returns:
            z (N, 4, H, W) float32.
        """


def space_timesteps(steps: int, total: int = 1000) -> list[int]:
    """Return evenly spaced times from total - 1 down to 0, rounded as in the published code; one step takes only the first."""
    return [round(index * (total - 1) / (steps - 1)) for index in range(steps - 1, -1, -1)] if steps > 1 else [total - 1]


def _transitions(abar: Tensor, steps: int) -> list[tuple[int, float, float]]:
    """(t, abar at t, abar at the next time) of each step; the last step leads to the clean latent, where abar is 1."""
    times = space_timesteps(steps)
    values = [*(float(abar[t]) for t in times), 1.0]
    return [(t, now, after) for t, (now, after) in zip(times, pairwise(values))]


@dataclass(frozen=True)
class DdpmSampler:
    """DDPM (Ho et al. 2020, eq. 7) with the posterior's variance, on evenly spaced times, as in Diff-ICMH's published code.

    Args:
        steps: Evaluations of the noise predictor.
    """

    steps: int = 50

    @property
    def draws(self) -> int:
        """One latent for the start and one for each step but the last."""
        return self.steps

    def __call__(self, predict: NoisePredictor, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        """Sample latents; see `Sampler`."""
        x = noise[:, 0]
        for step, (t, now, after) in enumerate(_transitions(abar, self.steps), 1):
            clean = (x - (1 - now) ** 0.5 * predict(x, t)) / now**0.5
            beta = 1 - now / after
            x = after**0.5 * beta / (1 - now) * clean + (now / after) ** 0.5 * (1 - after) / (1 - now) * x
            if step < self.steps:
                x = x + (beta * (1 - after) / (1 - now)) ** 0.5 * noise[:, step]
        return x


@dataclass(frozen=True)
class DdimSampler:
    """DDIM (Song et al. 2021, eq. 12) without noise, on the times of `DdpmSampler`; Diff-ICMH's paper names this sampler.

    Args:
        steps: Evaluations of the noise predictor.
    """

    steps: int = 50

    @property
    def draws(self) -> int:
        """One latent, for the start."""
        return 1

    def __call__(self, predict: NoisePredictor, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        """Sample latents; see `Sampler`."""
        x = noise[:, 0]
        for t, now, after in _transitions(abar, self.steps):
            eps = predict(x, t)
            clean = (x - (1 - now) ** 0.5 * eps) / now**0.5
            x = after**0.5 * clean + (1 - after) ** 0.5 * eps
        return x


@dataclass(frozen=True)
class OneStepSampler:
    """The clean latent by one evaluation at a noisy time, as distilled models allow (CADC, StableCodec).

    It starts from the hint instead of noise: the noise predictor reads all channels of the hint, and the first four are the noisy
    latent.

    Args:
        time: The time of the evaluation.
    """

    time: int = 999

    @property
    def draws(self) -> int:
        """No latent."""
        return 0

    def __call__(self, predict: NoisePredictor, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        """Estimate the clean latents of hints (N, C, H, W) with C >= 4; see `Sampler`."""
        now = float(abar[self.time])
        return (hint[:, :4] - (1 - now) ** 0.5 * predict(hint, self.time)) / now**0.5


SAMPLERS: dict[str, type[DdpmSampler | DdimSampler]] = {"ddpm": DdpmSampler, "ddim": DdimSampler}


def draw_noise(seeds: Sequence[int], draws: int, height: int, width: int) -> Tensor:
    """Draw standard-normal latents for several images.

    Args:
        seeds: One seed per image; the noise of an image depends only on its seed.
        draws: Latents per image.
        height: Height of the latents.
        width: Width of the latents.

    Returns:
        (N, draws, 4, height, width) float32 on the CPU.
    """
    return torch.stack([torch.randn(draws, 4, height, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def evaluate_unet(
    backbone: DiffusionBackbone, control: ControlModule | None, x: Tensor, t: Tensor, context: Tensor, prepared: Tensor | None
) -> Tensor:
    """Evaluate UNet and control module once. This function can be compiled, because its shapes are the same at every step.

    Args:
        backbone: Stable Diffusion.
        control: The control module; None for the UNet alone.
        x: Noisy latents (N, 4, H, W).
        t: Times (N,) int64.
        context: Text embeddings (N, T, D).
        prepared: What `control.prepare` returned for the hints.

    Returns:
        eps (N, 4, H, W) in the backbone's dtype.
    """
    x = x.to(backbone.dtype)
    if control is None or prepared is None:
        return backbone.eps(x, t, context)
    return backbone.eps(x, t, context, control.make_injector(x, embed_time(backbone.unet, t), context, prepared))


class GuidedPredictor:
    """Predicts noise with a control module and classifier-free guidance; a NoisePredictor.

    Everything that is the same at every step (the features of the hint, the text embeddings) is computed once, in the constructor.

    Args:
        backbone: Stable Diffusion.
        control: The control module; None for the UNet alone.
        hint: Hints (N, 4, H, W).
        positive: Text embeddings (N, T, D) of the prompts, or (1, T, D) for all images.
        negative: Text embeddings, shaped like `positive`, that guidance leads away from; None for no guidance.
        scale: Guidance scale; 1 for no guidance.
        tile: Latents with a longer side than this many positions are predicted in tiles and blended, while the noise and the
            sampler see the whole latent; 0 for never.
        overlap: Positions that neighbouring tiles share.
        batch_size: Latents per evaluation of the UNet, at most.
        run: Evaluates the UNet; `evaluate_unet` or a faster version of it.
    """

    def __init__(
        self,
        backbone: DiffusionBackbone,
        control: ControlModule | None,
        hint: Tensor,
        positive: Tensor,
        negative: Tensor | None = None,
        scale: float = 1.0,
        *,
        tile: int = 96,
        overlap: int = 32,
        batch_size: int = 16,
        run: Callable[..., Tensor] = evaluate_unet,
    ) -> None:
        self._backbone, self._control, self._scale, self._run = backbone, control, scale, run
        self._tiles = Tiles(hint.shape[-2], hint.shape[-1], tile, overlap)
        contexts = [positive] if negative is None or scale == 1 else [negative, positive]
        self._copies = len(contexts)
        # Order within a batch: tile by tile; for each tile first all negative, then all positive contexts; image by image.
        context = torch.cat([c.expand(len(hint), -1, -1) for c in contexts]).repeat(len(self._tiles), 1, 1)
        self._context = context.split(batch_size)
        self._prepared = [None if control is None else control.prepare(batch) for batch in self._cut(hint).split(batch_size)]

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """Predict the noise eps (N, 4, H, W) float32 in latents x (N, C, H, W) at time t."""
        batches = self._cut(x).split([len(context) for context in self._context])
        times = [torch.full((len(batch),), t, device=x.device) for batch in batches]
        arguments = zip(batches, times, self._context, self._prepared)
        eps = torch.cat([self._run(self._backbone, self._control, *args).float() for args in arguments])
        eps = eps.unflatten(0, (len(self._tiles), self._copies, len(x)))
        guided = eps[:, 0] if self._copies == 1 else torch.lerp(eps[:, 0], eps[:, 1], self._scale)
        return self._tiles.paste(guided.unbind())

    def _cut(self, x: Tensor) -> Tensor:
        return torch.cat([tile for tile in self._tiles.cut(x) for _ in range(self._copies)])
