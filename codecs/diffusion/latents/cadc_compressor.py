"""CADC's latent compressor (Sheng et al., section 4 and supplement 7.1): from an image, without its VAE latent, to 320 channels.

    pixels --g_a--> y --h_a--> z           y at 1/64, z at 1/256 of the image's sides
    y, z_hat --f_u--> m >= 1,  y / m       UGAQ: coarser where z_hat predicts y badly; the decoder never needs m
    y / m -> y_hat <--Quadtree4-- hyper_dec(z_hat)      in units of the rounding step delta
    y_hat --g_s--> l_T (1/8)               the UNet reads all of it; only its first four channels are denoised
    l_T[:4] --g_aux--> x_aux               for captions, and for the loss (ADGIC) that moves information into l_T[:4]

The paper's figures of the networks (8 and 9) were not available. The blocks, and the widths of g_s, hyper_dec and the context
model, are those of the public code of StableCodec, on which CADC builds; the widths of g_a, g_aux and f_u are guesses.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.latents.compressor import LatentCompressor
from icmbench.codecs.entropy.integer import Product
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional
from icmbench.codecs.entropy.quadtree import Quadtree4

PRIMARY = 4  # Leading channels of l_T that are denoised, as many as the VAE latent has.

# Constructor arguments of `CadcCompressor` for each profile.
CADC_PROFILES: Mapping[str, Mapping[str, Any]] = {
    "sd21": {},
    "tiny": {"channels": 32, "widths": (8, 12, 16, 24, 32), "context": 48, "auxiliary_widths": (24, 16, 12)},
}


class _InceptionNeXt(nn.Module):
    """Depthwise 3x3, 1x11 and 11x1 convolutions on an eighth of the channels each, then an MLP (Yu et al., CVPR 2024)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        branch = width // 8
        self.split_sizes = (width - 3 * branch, branch, branch, branch)
        self.square = nn.Conv2d(branch, branch, 3, padding=1, groups=branch)
        self.row = nn.Conv2d(branch, branch, (1, 11), padding=(0, 5), groups=branch)
        self.column = nn.Conv2d(branch, branch, (11, 1), padding=(5, 0), groups=branch)
        self.mlp = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        identity, square, row, column = x.split(self.split_sizes, 1)
        return x + self.mlp(torch.cat([identity, self.square(square), self.row(row), self.column(column)], 1))


class _GatedCnn(nn.Module):
    """Depthwise 3x3 convolution of one half of the channels, gated by the other half (Yu and Wang, MambaOut, CVPR 2025)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Conv2d(width, 4 * width, 1)
        self.act, self.gate = nn.GELU(), Product()  # entropy.integer replaces modules, so the product must be one.
        self.conv = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.fc2 = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).chunk(2, 1)
        return x + self.fc2(self.gate(self.act(gate), self.conv(value)))


def _star(width: int) -> nn.Sequential:
    """The paper's StarBlock."""
    return nn.Sequential(_InceptionNeXt(width), _GatedCnn(width))


class _Branches(nn.Module):
    """The sum of two branches, initialised to keep the variance of its input.

    With the usual initialisation, the image would fade out in a stack of a dozen of these and nothing would train.
    """

    def __init__(self, dense: nn.Module, light: nn.Module) -> None:
        super().__init__()
        self.dense, self.light = dense, light
        for branch in (dense, light):
            convolutions = [layer for layer in branch.modules() if isinstance(layer, nn.Conv2d)]
            gains = [1.0] + [2.0**0.5] * (len(convolutions) - 1)  # The input is linear; a GELU precedes the later ones.
            gains[-1] *= 0.5**0.5  # The sum of two branches has twice the variance of one.
            for layer, gain in zip(convolutions, gains):
                nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5)
                nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + self.light(x)


def _downsample(n_in: int, n_out: int) -> _Branches:
    """Halves the resolution with a dense 3x3 and a depthwise 5x5 convolution."""
    return _Branches(
        nn.Sequential(nn.Conv2d(n_in, n_out, 1), nn.GELU(), nn.Conv2d(n_out, n_out, 3, 2, 1)),
        nn.Sequential(nn.Conv2d(n_in, n_out, 1), nn.GELU(), nn.Conv2d(n_out, n_out, 5, 2, 2, groups=n_out)),
    )


def _shuffle(n_in: int, n_out: int) -> list[nn.Module]:
    """Doubles the resolution."""
    return [nn.Conv2d(n_in, 4 * n_out, 1), nn.PixelShuffle(2)]


def _upsample(n_in: int, n_out: int) -> _Branches:
    """Doubles the resolution after a dense 3x3 and a depthwise 5x5 convolution."""
    return _Branches(
        nn.Sequential(nn.Conv2d(n_in, n_in, 3, padding=1), nn.GELU(), *_shuffle(n_in, n_out)),
        nn.Sequential(nn.Conv2d(n_in, n_in, 5, padding=2, groups=n_in), nn.GELU(), *_shuffle(n_in, n_out)),
    )


def _adapter(n_in: int, n_out: int) -> _Branches:
    """Changes the number of channels before or after the context network."""
    middle = (n_in + n_out) // 2
    mixing = nn.Conv2d(middle, middle, 5, padding=2, groups=middle)
    deep = nn.Sequential(nn.Conv2d(n_in, middle, 1), nn.GELU(), mixing, nn.GELU(), nn.Conv2d(middle, n_out, 1))
    return _Branches(deep, nn.Conv2d(n_in, n_out, 1))


class CadcCompressor(LatentCompressor):
    """CADC's latent compressor. The defaults are the paper's sizes, completed as the module's docstring says.

    Training (section 7.2) takes the rate and l_T from `forward`, the loss L_aux from comparing `auxiliary(l_T)` with the image, and
    the other losses from decoding l_T with an adapted UNet; all networks take gradients.

    Args:
        channels: Channels of y, z and l_T.
        widths: Channels of g_a at 1/2 to 1/32 of the image's sides.
        context: Channels of the context network.
        context_blocks: StarBlocks of the context network.
        auxiliary_widths: Channels of g_aux at 1/8 to 1/2 of the image's sides.
        ugaq: Whether y is divided by its uncertainty map; False is the paper's ablation, which quantises y itself.
        uncertainty_channels: Channels of the uncertainty map: 1 or `channels`. The paper indexes the map by i and j only, so the
            default 1 is a guess.
        delta: Rounding step of y (equation 5), above 0. y is divided by it before it is coded and multiplied by it afterwards, so
            hyper_dec and the context model predict in its units.

    Raises:
        CodecError: `uncertainty_channels` or `delta` is out of its range.
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
        delta: float = 1.0,
    ) -> None:
        super().__init__()
        if uncertainty_channels not in (1, channels):
            raise CodecError(f"cadc: uncertainty_channels is 1 or {channels}, the channels of y, not {uncertainty_channels}")
        if not (delta > 0 and math.isfinite(delta)):
            raise CodecError(f"cadc: delta, the rounding step, is a number above 0, not {delta:g}")
        self.ugaq, self.delta = ugaq, delta
        stages = pairwise((3, *widths, channels))
        self.g_a = nn.Sequential(*(layer for a, b in stages for layer in (_downsample(a, b), _star(b))))
        self.h_a = nn.Sequential(nn.Conv2d(channels, channels, 3, 2, 1), _star(channels), nn.Conv2d(channels, channels, 3, 2, 1))
        last = nn.Conv2d(channels // 4, uncertainty_channels, 1)
        nn.init.constant_(last.get_parameter("bias"), -3.0)  # m starts near 1, which is uniform quantisation.
        self.f_u = nn.Sequential(
            nn.Conv2d(channels, channels // 4, 1),
            nn.GELU(),
            nn.Conv2d(channels // 4, channels // 4, 3, padding=1),
            nn.GELU(),
            last,
        )
        self.g_s = nn.Sequential(*(layer for _ in range(3) for layer in (_star(channels), _upsample(channels, channels))))
        steps = pairwise((*auxiliary_widths, 3))
        self.g_aux = nn.Sequential(
            nn.Conv2d(PRIMARY, auxiliary_widths[0], 3, padding=1),
            *(layer for a, b in steps for layer in (_star(a), _upsample(a, b))),
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
        """Compute the latents before rounding.

        Args:
            pixels: (B, 3, H, W) float32 in [0, 1]; H and W are multiples of 256.
            ref: Not read.

        Returns:
            y (B, C, H/64, W/64), divided by its uncertainty map if `ugaq`, in units of delta; and z (B, C, H/256, W/256), computed
            from undivided y.
        """
        y = self.g_a(2 * pixels - 1)
        z = self.h_a(y)
        return (y / self.uncertainty(y, z) if self.ugaq else y) / self.delta, z

    def uncertainty(self, y: Tensor, z: Tensor) -> Tensor:
        """Compute the uncertainty map m >= 1 (equations 1 to 3).

        Args:
            y: (B, C, H/64, W/64), undivided and not rounded.
            z: (B, C, H/256, W/256), not rounded.

        Returns:
            m (B, 1, H/64, W/64), or with C channels if `uncertainty_channels` is C.
        """
        expected = F.interpolate(self.entropy_bottleneck.quantise(z), scale_factor=4, mode="bilinear", align_corners=False)
        return 1 + F.softplus(self.f_u(y - expected))

    def hint(self, y_hat: Tensor, z_hat: Tensor) -> Tensor:
        """Return l_T (B, C, H/8, W/8) from y_hat (B, C, H/64, W/64) in units of delta. z_hat is not read."""
        return self.g_s(y_hat * self.delta)

    def digest(self) -> int:
        """As of the base class; a rounding step other than 1 enters, so that a decoder with another one notices."""
        check = super().digest()
        return check if self.delta == 1 else zlib.crc32(struct.pack("<d", self.delta), check)

    def auxiliary(self, hint: Tensor) -> Tensor:
        """Return the auxiliary reconstruction x_aux (equation 9).

        Args:
            hint: l_T (B, C, H/8, W/8), of which the first four channels are read.

        Returns:
            Pixels (B, 3, H, W), roughly in [0, 1].
        """
        return self.g_aux(hint[:, :PRIMARY])
