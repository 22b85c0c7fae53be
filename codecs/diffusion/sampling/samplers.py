"""From start noise and a hint to a latent: samplers, classifier-free guidance, tiles.

    sampler(predict, hint, noise) -> z        predict(x, t) -> eps, both (N, 4, H, W) float32

A sampler says how many standard-normal latents an image needs (`draws`); they come from a CPU generator seeded by the stream, so
that the device does not matter to them. Time t runs from 999 (noise) to 0.
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

Predict: TypeAlias = Callable[[Tensor, int], Tensor]


class Sampler(Protocol):
    """One way from noise to a latent. Instances are small and immutable; they are named in fingerprints by their repr."""

    @property
    def draws(self) -> int:
        """Standard-normal latents used for an image, the start among them."""

    def __call__(self, predict: Predict, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        """hint (N, 4, H, W), noise (N, draws, 4, H, W), abar (1000,) -> z (N, 4, H, W), all float32 but abar."""


def respaced(steps: int, total: int = 1000) -> list[int]:
    """`steps` times from total - 1 down to 0, evenly spaced and rounded, as in the published code; a single one is the first."""
    return [round(index * (total - 1) / (steps - 1)) for index in range(steps - 1, -1, -1)] if steps > 1 else [total - 1]


def _transitions(abar: Tensor, steps: int) -> list[tuple[int, float, float]]:
    """(t, abar at t, abar at the next time) of each step; after the last comes the clean latent."""
    times = respaced(steps)
    values = [*(float(abar[t]) for t in times), 1.0]
    return [(t, now, after) for t, (now, after) in zip(times, pairwise(values))]


@dataclass(frozen=True)
class AncestralDdpm:
    """DDPM (Ho et al. 2020, eq. 7) on evenly respaced times, with the posterior's variance: the published code's sampler."""

    steps: int = 50

    @property
    def draws(self) -> int:
        return self.steps

    def __call__(self, predict: Predict, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        x = noise[:, 0]
        for step, (t, now, after) in enumerate(_transitions(abar, self.steps), 1):
            clean = (x - (1 - now) ** 0.5 * predict(x, t)) / now**0.5
            beta = 1 - now / after
            x = after**0.5 * beta / (1 - now) * clean + (now / after) ** 0.5 * (1 - after) / (1 - now) * x
            if step < self.steps:
                x = x + (beta * (1 - after) / (1 - now)) ** 0.5 * noise[:, step]
        return x


@dataclass(frozen=True)
class Ddim:
    """DDIM (Song et al. 2021, eq. 12) without noise, on the same times: what Diff-ICMH's paper names."""

    steps: int = 50

    @property
    def draws(self) -> int:
        return 1

    def __call__(self, predict: Predict, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        x = noise[:, 0]
        for t, now, after in _transitions(abar, self.steps):
            eps = predict(x, t)
            clean = (x - (1 - now) ** 0.5 * eps) / now**0.5
            x = after**0.5 * clean + (1 - after) ** 0.5 * eps
        return x


@dataclass(frozen=True)
class OneStep:
    """The clean latent by one evaluation at the noisiest time, as distilled models allow (CADC, StableCodec).

    Instead of noise it starts from the hint (N, C, H, W), C >= 4, which the prediction reads whole; its first four channels are the
    noisy latent.
    """

    time: int = 999

    @property
    def draws(self) -> int:
        return 0

    def __call__(self, predict: Predict, abar: Tensor, hint: Tensor, noise: Tensor) -> Tensor:
        now = float(abar[self.time])
        return (hint[:, :4] - (1 - now) ** 0.5 * predict(hint, self.time)) / now**0.5


SAMPLERS: dict[str, type[AncestralDdpm | Ddim]] = {"ddpm": AncestralDdpm, "ddim": Ddim}


def draw_noise(seeds: Sequence[int], draws: int, height: int, width: int) -> Tensor:
    """(N, draws, 4, height, width) float32 on the CPU; each image's from its own seed, whatever else is in the batch."""
    return torch.stack([torch.randn(draws, 4, height, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def evaluate(
    backbone: DiffusionBackbone, control: ControlModule | None, x: Tensor, t: Tensor, context: Tensor, prepared: Tensor | None
) -> Tensor:
    """One evaluation of UNet and control, to be compiled: its shapes stay the same over all steps. Arguments as in `Guided`."""
    x = x.to(backbone.dtype)
    if control is None or prepared is None:
        return backbone.eps(x, t, context)
    return backbone.eps(x, t, context, control.start(x, embed_time(backbone.unet, t), context, prepared))


class Guided:
    """Noise prediction with control and classifier-free guidance, one UNet evaluation a step; a Predict.

    hint: (N, 4, H, W). positive, negative: contexts (N, T, D), or (1, T, D) for all images; without negative, or at scale 1, there
    is no guidance. tile, overlap: latents with a side beyond `tile` are predicted tile by tile, blended by a Gaussian, while noise
    and sampler see the whole. at_once: latents in one evaluation. What does not change between steps (the hint's features, the
    text) is computed once, here.
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
        at_once: int = 16,
        run: Callable[..., Tensor] = evaluate,
    ) -> None:
        self._backbone, self._control, self._scale, self._run = backbone, control, scale, run
        self._tiles = Tiles(hint.shape[-2], hint.shape[-1], tile, overlap)
        contexts = [positive] if negative is None or scale == 1 else [negative, positive]
        self._copies = len(contexts)
        # Order of a batch: tile by tile; in each negative, then positive; in each image by image.
        context = torch.cat([c.expand(len(hint), -1, -1) for c in contexts]).repeat(len(self._tiles), 1, 1)
        self._context = context.split(at_once)
        self._prepared = [None if control is None else control.prepare(part) for part in self._cut(hint).split(at_once)]

    def __call__(self, x: Tensor, t: int) -> Tensor:
        parts = self._cut(x).split([len(context) for context in self._context])
        times = [torch.full((len(part),), t, device=x.device) for part in parts]
        arguments = zip(parts, times, self._context, self._prepared)
        eps = torch.cat([self._run(self._backbone, self._control, *one).float() for one in arguments])
        eps = eps.unflatten(0, (len(self._tiles), self._copies, len(x)))
        guided = eps[:, 0] if self._copies == 1 else torch.lerp(eps[:, 0], eps[:, 1], self._scale)
        return self._tiles.paste(guided.unbind())

    def _cut(self, x: Tensor) -> Tensor:
        return torch.cat([part for part in self._tiles.cut(x) for _ in range(self._copies)])
