"""Layers of the latent compressors, as in the authors' ELIC-like networks (He et al., ELIC, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from icmbench.codecs.entropy.checkerboard import SCCTX


def conv(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2)


def deconv(inside: int, outside: int, kernel: int = 5, stride: int = 2) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inside, outside, kernel, stride, kernel // 2, output_padding=stride - 1)


def gelus(*layers: nn.Module) -> nn.Sequential:
    """Layers with a GELU between each two."""
    return nn.Sequential(*[module for layer in layers for module in (nn.GELU(), layer)][1:])


def hyper_decoder(n: int, m: int) -> nn.Sequential:
    """z_hat (B, n, H, W) -> hyper parameters (B, 2m, 4H, 4W)."""
    return gelus(deconv(n, m), deconv(m, m * 3 // 2), deconv(m * 3 // 2, 2 * m, 3, stride=1))


def context(slices: Sequence[int], widths: tuple[int, int]) -> SCCTX:
    """The context model as the authors of Diff-ICMH and ResULIC have it. widths: of the channel contexts."""
    return SCCTX(
        slices,
        2 * sum(slices),
        parity="odd",
        order="scales_means",
        support="all",
        separate=True,
        context_widths=widths,
        activation=nn.GELU,
    )


class Down(nn.Module):
    """Residual block of stride 2."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = conv(inside, outside, stride=2)
        self.conv2 = conv(outside, outside)
        self.downsample = conv(inside, outside, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(nn.functional.leaky_relu(self.conv1(x), 0.01))
        if torch.is_grad_enabled():  # PyTorch 2.13 on a CPU corrupts memory in the gradient of a 1x1 convolution of stride 2
            shortcut = nn.functional.conv2d(x[:, :, ::2, ::2], self.downsample.weight, self.downsample.bias)
        else:
            shortcut = self.downsample(x)
        return nn.functional.leaky_relu(h, 0.1) + shortcut


class Up(nn.Module):
    """Residual block that doubles the resolution by sub-pixel convolution."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.subpel_conv = nn.Sequential(conv(inside, 4 * outside, 1), nn.PixelShuffle(2))
        self.conv = conv(outside, outside)
        self.upsample = nn.Sequential(conv(inside, 4 * outside, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(nn.functional.leaky_relu(self.subpel_conv(x), 0.01))
        return nn.functional.leaky_relu(h, 0.1) + self.upsample(x)


class Bottleneck(nn.Module):
    """Residual bottleneck of half the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = gelus(conv(width, width // 2, 1), conv(width // 2, width // 2), conv(width // 2, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)
