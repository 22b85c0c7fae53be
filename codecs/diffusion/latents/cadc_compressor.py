"""CADC's latent compressor (Sheng et al., section 4 and supplement 7.1): an image in, no VAE latent; 320 channels out for the UNet.

    pixels --g_a--> y --h_a--> z           y at 1/64, z at 1/256 of the image's sides
    y, z_hat --f_u--> m >= 1,  y / m       UGAQ: coarser where z_hat says little of y; the decoder never needs m
    y / m -> y_hat <--Quadtree4-- hyper_dec(z_hat)
    y_hat --g_s--> l_T (1/8)               the UNet reads all of it; only its first four channels are denoised
    l_T[:4] --g_aux--> x_aux               for the loss that concentrates information there (ADGIC), and for captions

The text at hand lacks the paper's figures of the networks (8 and 9). Blocks, and widths of g_s, hyper_dec and the context model
are those of the public code of its base, StableCodec; widths of g_a, g_aux and f_u are guesses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icmbench.codecs.diffusion.latents.compressor import LatentCompressor
from icmbench.codecs.entropy.integer import Product
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional
from icmbench.codecs.entropy.quadtree import Quadtree4

PRIMARY = 4  # leading channels of l_T that are denoised: as many as the VAE latent has

CADC: Mapping[str, Mapping[str, Any]] = {
    "sd21": {},
    "tiny": {"channels": 32, "widths": (8, 12, 16, 24, 32), "context": 48, "auxiliary_widths": (24, 16, 12)},
}


class _InceptionNeXt(nn.Module):
    """Yu et al., "InceptionNeXt" (CVPR 2024): depthwise 3x3, 1x11 and 11x1 on an eighth of the channels each, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        part = width // 8
        self.parts = (width - 3 * part, part, part, part)
        self.square = nn.Conv2d(part, part, 3, padding=1, groups=part)
        self.row = nn.Conv2d(part, part, (1, 11), padding=(0, 5), groups=part)
        self.column = nn.Conv2d(part, part, (11, 1), padding=(5, 0), groups=part)
        self.mlp = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        same, square, row, column = x.split(self.parts, 1)
        return x + self.mlp(torch.cat([same, self.square(square), self.row(row), self.column(column)], 1))


class _GatedCnn(nn.Module):
    """Yu and Wang, "MambaOut" (CVPR 2025): a depthwise 3x3 of one half, gated by the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Conv2d(width, 4 * width, 1)
        self.act, self.gate = nn.GELU(), Product()  # a product needs a grid form, see entropy.integer
        self.conv = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.fc2 = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).chunk(2, 1)
        return x + self.fc2(self.gate(self.act(gate), self.conv(value)))


def _star(width: int) -> nn.Sequential:
    """The paper's StarBlock."""
    return nn.Sequential(_InceptionNeXt(width), _GatedCnn(width))


class _Branches(nn.Module):
    """The sum of two branches. At the start it keeps the variance: a stack of a dozen would lose the image, and nothing train."""

    def __init__(self, dense: nn.Module, light: nn.Module) -> None:
        super().__init__()
        self.dense, self.light = dense, light
        for branch in (dense, light):
            convolutions = [layer for layer in branch.modules() if isinstance(layer, nn.Conv2d)]
            gains = [1.0] + [2.0**0.5] * (len(convolutions) - 1)  # of linear layers, and after GELU
            gains[-1] *= 0.5**0.5  # two branches are added
            for layer, gain in zip(convolutions, gains):
                nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5)
                nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + self.light(x)


def _down(inside: int, outside: int) -> _Branches:
    """Halves the resolution, by a dense 3x3 and a depthwise 5x5."""
    return _Branches(
        nn.Sequential(nn.Conv2d(inside, outside, 1), nn.GELU(), nn.Conv2d(outside, outside, 3, 2, 1)),
        nn.Sequential(nn.Conv2d(inside, outside, 1), nn.GELU(), nn.Conv2d(outside, outside, 5, 2, 2, groups=outside)),
    )


def _shuffle(inside: int, outside: int) -> list[nn.Module]:
    return [nn.Conv2d(inside, 4 * outside, 1), nn.PixelShuffle(2)]


def _up(inside: int, outside: int) -> _Branches:
    """Doubles the resolution, after a dense 3x3 and a depthwise 5x5."""
    return _Branches(
        nn.Sequential(nn.Conv2d(inside, inside, 3, padding=1), nn.GELU(), *_shuffle(inside, outside)),
        nn.Sequential(nn.Conv2d(inside, inside, 5, padding=2, groups=inside), nn.GELU(), *_shuffle(inside, outside)),
    )


def _adapter(inside: int, outside: int) -> _Branches:
    """Changes the number of channels around the context network."""
    middle = (inside + outside) // 2
    mixing = nn.Conv2d(middle, middle, 5, padding=2, groups=middle)
    deep = nn.Sequential(nn.Conv2d(inside, middle, 1), nn.GELU(), mixing, nn.GELU(), nn.Conv2d(middle, outside, 1))
    return _Branches(deep, nn.Conv2d(inside, outside, 1))


class CadcCompressor(LatentCompressor):
    """The latent compressor, with the sizes of the paper by default.

    channels: of y, z and l_T. widths: of g_a at 1/2 to 1/32. context: width of the context network, of context_blocks StarBlocks.
    auxiliary_widths: of g_aux at 1/8 to 1/2. ugaq: the paper's ablation; without it y is quantised as it is. uncertainty_channels:
    of m: 1 (a guess from its indices i, j) or `channels`.

    Training (section 7.2) needs `forward` for the rate and l_T, `auxiliary(l_T)` against the image for L_aux, and the UNet's
    `adapted` copy for the rest; all parts take gradients.
    """

    pad = z_stride = 256
    y_stride = 64
    padding = "reflect"
    needs_latent = False

    def __init__(
        self,
        *,
        channels: int = 320,
        widths: Sequence[int] = (64, 96, 128, 192, 256),
        context: int = 960,
        context_blocks: int = 4,
        auxiliary_widths: Sequence[int] = (128, 96, 64),
        ugaq: bool = True,
        uncertainty_channels: int = 1,
    ) -> None:
        super().__init__()
        self.ugaq = ugaq
        stages = pairwise((3, *widths, channels))
        self.g_a = nn.Sequential(*(layer for a, b in stages for layer in (_down(a, b), _star(b))))
        self.h_a = nn.Sequential(nn.Conv2d(channels, channels, 3, 2, 1), _star(channels), nn.Conv2d(channels, channels, 3, 2, 1))
        last = nn.Conv2d(channels // 4, uncertainty_channels, 1)
        nn.init.constant_(last.get_parameter("bias"), -3.0)  # m starts near 1, the isotropic quantiser
        self.f_u = nn.Sequential(
            nn.Conv2d(channels, channels // 4, 1),
            nn.GELU(),
            nn.Conv2d(channels // 4, channels // 4, 3, padding=1),
            nn.GELU(),
            last,
        )
        self.g_s = nn.Sequential(*(layer for _ in range(3) for layer in (_star(channels), _up(channels, channels))))
        steps = pairwise((*auxiliary_widths, 3))
        self.g_aux = nn.Sequential(
            nn.Conv2d(PRIMARY, auxiliary_widths[0], 3, padding=1), *(layer for a, b in steps for layer in (_star(a), _up(a, b)))
        )
        self.hyper_dec = nn.Sequential(*_shuffle(channels, channels), _star(channels), *_shuffle(channels, channels))
        self.context = Quadtree4(
            channels,
            [_adapter(channels, context) for _ in range(4)],
            nn.Sequential(*(_star(context) for _ in range(context_blocks))),
            [_adapter(context, 2 * channels) for _ in range(4)],
        )
        self.entropy_bottleneck = EntropyBottleneck(channels)
        self.gaussian_conditional = GaussianConditional()

    def analyse(self, pixels: Tensor, ref: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, H, W) in [0, 1], H and W multiples of 256 -> y (B, C, H/64, W/64), modulated if `ugaq`, and z (B, C, H/256,
        W/256), which is made of the y before modulation. ref is not read."""
        y = self.g_a(2 * pixels - 1)
        z = self.h_a(y)
        return (y / self.uncertainty(y, z) if self.ugaq else y), z

    def uncertainty(self, y: Tensor, z: Tensor) -> Tensor:
        """The map m >= 1 (B, 1, H/64, W/64) of y before modulation (equations 1 to 3)."""
        expected = F.interpolate(self.entropy_bottleneck.quantise(z), scale_factor=4, mode="bilinear", align_corners=False)
        return 1 + F.softplus(self.f_u(y - expected))

    def hint(self, y_hat: Tensor, z_hat: Tensor) -> Tensor:
        """l_T (B, C, H/8, W/8). z_hat is not read."""
        return self.g_s(y_hat)

    def auxiliary(self, hint: Tensor) -> Tensor:
        """l_T (B, C, H/8, W/8) -> the auxiliary reconstruction x_aux (B, 3, H, W), about [0, 1], of its first four channels
        (equation 9)."""
        return self.g_aux(hint[:, :PRIMARY])
