"""LFGCM, the latent compressor of Diff-ICMH: it reads an image and its VAE latent, and returns a decoded latent, the hint.

    pixels --encoder--> y --hyper_enc--> z            modulated by the VAE latent `ref` at 1/8, 1/16, ... (SFT)
               |                  |
            y_hat <--SCCTX-- hyper_dec(z_hat)         icmbench.codecs.entropy: two-pass checkerboard in uneven slices
               |                  |
    hint <--decoder <-------- f_c(z_hat)              modulated by y_hat and f_c(z_hat)

y has a stride of 16 pixels, z of 64. The hint has the shape of the VAE latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from icmbench.codecs.diffusion.latents.compressor import LatentCompressor
from icmbench.codecs.diffusion.latents.layers import (
    ResidualBlockUpsample,
    ResidualBlockWithStride,
    context_model,
    conv,
    deconv,
    gelu_sequential,
    hyper_decoder,
    with_bottlenecks,
)
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional

PAD = 64  # Image sides are padded to multiples of this many pixels.

# Constructor arguments of `Lfgcm` for each profile.
LFGCM_PROFILES: Mapping[str, Mapping[str, Any]] = {
    "sd21": {},
    "tiny": {
        "n": 16,
        "m": 32,
        "widths": (16, 16, 24, 24),
        "prior": 16,
        "modulation": 16,
        "slices": (4, 4, 8, 16),
        "context_widths": (32, 24),
    },
}


def _feature(prior: int, first: nn.Module) -> nn.Sequential:
    """Two convolutions that make the modulating features of the next stage."""
    return gelu_sequential(first, conv(prior, prior, 1))


def _merge(in_channels: int, prior: int) -> nn.Sequential:
    """Three convolutions that make modulating features from several concatenated inputs."""
    return gelu_sequential(conv(in_channels, 4 * prior), conv(4 * prior, 2 * prior), conv(2 * prior, prior))


class _Modulation(nn.Module):
    """Spatial feature transform (Wang et al. 2018): x * (1 + gamma) + beta, with gamma and beta computed from the features."""

    def __init__(self, width: int, prior: int, hidden: int) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(conv(prior, hidden), nn.LeakyReLU(0.2))
        self.mlp_gamma = conv(hidden, width)
        self.mlp_beta = conv(hidden, width)

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        shared = self.mlp_shared(feature)
        return x * (1 + self.mlp_gamma(shared)) + self.mlp_beta(shared)


class _ModulatedBlock(nn.Module):
    """Residual block with two modulated convolutions."""

    def __init__(self, width: int, prior: int, hidden: int) -> None:
        super().__init__()
        self.conv_0, self.conv_1 = conv(width, width), conv(width, width)
        self.norm_0, self.norm_1 = _Modulation(width, prior, hidden), _Modulation(width, prior, hidden)

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        h = self.conv_0(nn.functional.leaky_relu(self.norm_0(x, feature), 0.2))
        return x + self.conv_1(nn.functional.leaky_relu(self.norm_1(h, feature), 0.2))


class _Encoder(nn.Module):
    """Pixels (B, 3, 16H, 16W) and ref (B, 4, 2H, 2W) to y (B, m, H, W)."""

    def __init__(self, m: int, widths: Sequence[int], prior: int, hidden: int, latent: int) -> None:
        super().__init__()
        a, b, c, d = widths
        self.sft_1_8 = _feature(prior, conv(latent, prior))
        self.sft_1_16 = _feature(prior, conv(prior, prior, stride=2))
        self.sft_1_16_2 = _feature(prior, conv(prior, prior))
        stages = ((3, a), (a, b), (b, c))
        self.g_a1 = nn.Sequential(*(block for i, o in stages for block in with_bottlenecks(ResidualBlockWithStride(i, o), o)))
        self.g_a1_ref = _Modulation(c, prior, hidden)
        self.g_a2 = nn.Sequential(*with_bottlenecks(ResidualBlockWithStride(c, d), d))
        self.g_a2_ref = _Modulation(d, prior, hidden)
        self.g_a3 = conv(d, d)
        self.g_a4, self.g_a5 = _ModulatedBlock(d, prior, hidden), _ModulatedBlock(d, prior, hidden)
        self.g_a6 = conv(d, m)

    def forward(self, pixels: Tensor, ref: Tensor) -> Tensor:
        feature = self.sft_1_8(ref)
        x = self.g_a1_ref(self.g_a1(pixels), feature)
        feature = self.sft_1_16(feature)
        x = self.g_a2_ref(self.g_a2(x), feature)
        feature = self.sft_1_16_2(feature)
        return self.g_a6(self.g_a5(self.g_a4(self.g_a3(x), feature), feature))


class _HyperEncoder(nn.Module):
    """y (B, m, 4H, 4W) and ref (B, 4, 8H, 8W) to z (B, n, H, W)."""

    def __init__(self, n: int, m: int, prior: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.sft_feature = _feature(prior, conv(latent, prior, stride=2))
        self.sft_feature_h1 = _merge(m + prior, prior)
        self.sft_feature_h2 = _feature(prior, conv(prior, prior, stride=2))
        self.sft_feature_h3 = _feature(prior, conv(prior, prior, stride=2))
        self.h_a0, self.h_a1 = conv(m, n), _Modulation(n, prior, hidden)
        self.h_a3, self.h_a4 = conv(n, n, 5, stride=2), _Modulation(n, prior, hidden)
        self.h_a6 = conv(n, n, 5, stride=2)
        self.h_a7, self.h_a8 = _ModulatedBlock(n, prior, hidden), _ModulatedBlock(n, prior, hidden)
        self.h_a9 = conv(n, n, 1)

    def forward(self, y: Tensor, ref: Tensor) -> Tensor:
        gelu = nn.functional.gelu
        feature = self.sft_feature_h1(torch.cat([self.sft_feature(ref), y], 1))
        x = gelu(self.h_a1(self.h_a0(y), feature))
        feature = self.sft_feature_h2(feature)
        x = gelu(self.h_a4(self.h_a3(x), feature))
        feature = self.sft_feature_h3(feature)
        return self.h_a9(self.h_a8(self.h_a7(self.h_a6(x), feature), feature))


class _Decoder(nn.Module):
    """y_hat (B, m, H, W) and side features (B, n/4, H, W) to the hint (B, 4, 2H, 2W)."""

    def __init__(self, n: int, m: int, prior: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.sft_feature_gs1 = _merge(m + n // 4, prior)
        self.sft_feature_gs2 = _feature(prior, conv(prior, prior))
        self.sft_feature_gs3 = _feature(prior, deconv(prior, prior, 3))
        self.g_s0, self.g_s1 = _ModulatedBlock(m, prior, hidden), _ModulatedBlock(m, prior, hidden)
        self.g_s2 = nn.Sequential(*with_bottlenecks(conv(m, n), n))
        self.g_s2_ref = _Modulation(n, prior, hidden)
        self.g_s3 = nn.Sequential(*with_bottlenecks(ResidualBlockUpsample(n, n), n))
        self.g_s3_ref = _Modulation(n, prior, hidden)
        self.g_s4 = conv(n, latent)

    def forward(self, y_hat: Tensor, side: Tensor) -> Tensor:
        feature = self.sft_feature_gs1(torch.cat([side, y_hat], 1))
        x = self.g_s1(self.g_s0(y_hat, feature), feature)
        feature = self.sft_feature_gs2(feature)
        x = self.g_s2_ref(self.g_s2(x), feature)
        feature = self.sft_feature_gs3(feature)
        return self.g_s4(self.g_s3_ref(self.g_s3(x), feature))


class Lfgcm(LatentCompressor):
    """The latent compressor LFGCM. The defaults are the published model with 51.49M parameters; its submodules keep their names.

    Args:
        n: Channels of z.
        m: Channels of y; the sum of `slices`.
        widths: Channels of the encoder's four stages.
        prior: Channels of the modulating features.
        modulation: Channels of the hidden layer that turns modulating features into scales and shifts.
        slices: Channels of each slice of y in the context model.
        context_widths: Channels of the two hidden layers of each channel context.
        latent: Channels of the VAE latent.
    """

    pad = z_stride = PAD

    def __init__(
        self,
        *,
        n: int = 192,
        m: int = 320,
        widths: Sequence[int] = (64, 128, 192, 192),
        prior: int = 64,
        modulation: int = 128,
        slices: Sequence[int] = (8, 8, 8, 8, 16, 16, 32, 32, 96, 96),
        context_widths: tuple[int, int] = (224, 128),
        latent: int = 4,
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(m, widths, prior, modulation, latent)
        self.hyper_enc = _HyperEncoder(n, m, prior, modulation, latent)
        self.hyper_dec = hyper_decoder(n, m)
        self.decoder = _Decoder(n, m, prior, modulation, latent)
        self.f_c = gelu_sequential(deconv(n, n // 2), deconv(n // 2, n // 4), deconv(n // 4, n // 4, 3, stride=1))
        self.context = context_model(slices, context_widths)
        self.entropy_bottleneck = EntropyBottleneck(n)
        self.gaussian_conditional = GaussianConditional()

    def analyse(self, pixels: Tensor, ref: Tensor | None) -> tuple[Tensor, Tensor]:
        assert ref is not None
        y = self.encoder(pixels, ref)
        return y, self.hyper_enc(y, ref)

    def hint(self, y_hat: Tensor, z_hat: Tensor) -> Tensor:
        return self.decoder(y_hat, self.f_c(z_hat))
