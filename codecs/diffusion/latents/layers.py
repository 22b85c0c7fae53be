"""Layers of the latent compressors of Diff-ICMH and ResULIC, which resemble ELIC (He et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from icmbench.codecs.entropy.checkerboard import SCCTX


def conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Make a convolution that divides the resolution by `stride`."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2)


def deconv(in_channels: int, out_channels: int, kernel: int = 5, stride: int = 2) -> nn.ConvTranspose2d:
    """Make a transposed convolution that multiplies the resolution by `stride`."""
    return nn.ConvTranspose2d(in_channels, out_channels, kernel, stride, kernel // 2, output_padding=stride - 1)


def gelu_sequential(*layers: nn.Module) -> nn.Sequential:
    """Chain layers with a GELU between each two."""
    return nn.Sequential(*[module for layer in layers for module in (nn.GELU(), layer)][1:])


def hyper_decoder(n: int, m: int) -> nn.Sequential:
    """Make the hyper decoder: z_hat (B, n, H, W) to hyper parameters (B, 2m, 4H, 4W)."""
    return gelu_sequential(deconv(n, m), deconv(m, m * 3 // 2), deconv(m * 3 // 2, 2 * m, 3, stride=1))


def context_model(slices: Sequence[int], widths: tuple[int, int]) -> SCCTX:
    """Make the context model of Diff-ICMH and ResULIC.

    Args:
        slices: Channels of each slice of y.
        widths: Channels of the two hidden layers of each channel context.
    """
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


class ResidualBlockWithStride(nn.Module):
    """Residual block that halves the resolution: (B, in_channels, 2H, 2W) to (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, stride=2)
        self.conv2 = conv(out_channels, out_channels)
        self.downsample = conv(in_channels, out_channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(nn.functional.leaky_relu(self.conv1(x), 0.01))
        if torch.is_grad_enabled():
            # PyTorch 2.13 on a CPU corrupts memory in the gradient of a 1x1 convolution of stride 2. This one is equivalent.
            shortcut = nn.functional.conv2d(x[:, :, ::2, ::2], self.downsample.weight, self.downsample.bias)
        else:
            shortcut = self.downsample(x)
        return nn.functional.leaky_relu(h, 0.1) + shortcut


class ResidualBlockUpsample(nn.Module):
    """Residual block that doubles the resolution by sub-pixel convolution: (B, in_channels, H, W) to (B, out_channels, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.subpel_conv = nn.Sequential(conv(in_channels, 4 * out_channels, 1), nn.PixelShuffle(2))
        self.conv = conv(out_channels, out_channels)
        self.upsample = nn.Sequential(conv(in_channels, 4 * out_channels, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(nn.functional.leaky_relu(self.subpel_conv(x), 0.01))
        return nn.functional.leaky_relu(h, 0.1) + self.upsample(x)


class Bottleneck(nn.Module):
    """Residual bottleneck block (B, width, H, W) whose 3x3 convolution has half the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = gelu_sequential(conv(width, width // 2, 1), conv(width // 2, width // 2), conv(width // 2, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def with_bottlenecks(first: nn.Module, width: int) -> list[nn.Module]:
    """Return a layer with `width` output channels, and three bottleneck blocks to follow it."""
    return [first, *(Bottleneck(width) for _ in range(3))]
