"""LFGCM, Diff-ICMH's latent compressor: an image and its VAE latent in, the decoded latent (the hint) out.

    pixels --encoder--> y --hyper_enc--> z            modulated by the VAE latent `ref` at 1/8, 1/16, ... (SFT)
               |                  |
            y_hat <--SCCTX-- hyper_dec(z_hat)         icmbench.codecs.entropy: two-pass checkerboard in uneven slices
               |                  |
    hint <--decoder <-------- f_c(z_hat)              modulated by y_hat and f_c(z_hat)

Strides: y 16, z 64 pixels; the hint has the shape of the VAE latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from icmbench.codecs.diffusion.latents.compressor import LatentCompressor
from icmbench.codecs.diffusion.latents.layers import Bottleneck, Down, Up, context, conv, deconv, gelus, hyper_decoder
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional

PAD = 64  # pixels; image sides are multiples of it

LFGCM: Mapping[str, Mapping[str, Any]] = {
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
    """Two convolutions that carry the modulating features to the next stage."""
    return gelus(first, conv(prior, prior, 1))


def _merge(inside: int, prior: int) -> nn.Sequential:
    """Three convolutions that make modulating features of several inputs."""
    return gelus(conv(inside, 4 * prior), conv(4 * prior, 2 * prior), conv(2 * prior, prior))


class _Modulation(nn.Module):
    """Spatial feature transform (Wang et al. 2018): x * (1 + gamma) + beta, both from the features."""

    def __init__(self, width: int, prior: int, hidden: int) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(conv(prior, hidden), nn.LeakyReLU(0.2))
        self.mlp_gamma = conv(hidden, width)
        self.mlp_beta = conv(hidden, width)

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        shared = self.mlp_shared(feature)
        return x * (1 + self.mlp_gamma(shared)) + self.mlp_beta(shared)


class _ModulatedBlock(nn.Module):
    """Residual block of two modulated convolutions."""

    def __init__(self, width: int, prior: int, hidden: int) -> None:
        super().__init__()
        self.conv_0, self.conv_1 = conv(width, width), conv(width, width)
        self.norm_0, self.norm_1 = _Modulation(width, prior, hidden), _Modulation(width, prior, hidden)

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        h = self.conv_0(nn.functional.leaky_relu(self.norm_0(x, feature), 0.2))
        return x + self.conv_1(nn.functional.leaky_relu(self.norm_1(h, feature), 0.2))


class _Encoder(nn.Module):
    """pixels (B, 3, 16H, 16W), ref (B, 4, 2H, 2W) -> y (B, M, H, W)."""

    def __init__(self, m: int, widths: Sequence[int], prior: int, hidden: int, latent: int) -> None:
        super().__init__()
        a, b, c, d = widths
        self.sft_1_8 = _feature(prior, conv(latent, prior))
        self.sft_1_16 = _feature(prior, conv(prior, prior, stride=2))
        self.sft_1_16_2 = _feature(prior, conv(prior, prior))
        stages = ((3, a), (a, b), (b, c))
        self.g_a1 = nn.Sequential(*(block for i, o in stages for block in (Down(i, o), *(Bottleneck(o) for _ in range(3)))))
        self.g_a1_ref = _Modulation(c, prior, hidden)
        self.g_a2 = nn.Sequential(Down(c, d), *(Bottleneck(d) for _ in range(3)))
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
    """y (B, M, 4H, 4W), ref (B, 4, 8H, 8W) -> z (B, N, H, W)."""

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
    """y_hat (B, M, H, W), side (B, N/4, H, W) -> hint (B, 4, 2H, 2W)."""

    def __init__(self, n: int, m: int, prior: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.sft_feature_gs1 = _merge(m + n // 4, prior)
        self.sft_feature_gs2 = _feature(prior, conv(prior, prior))
        self.sft_feature_gs3 = _feature(prior, deconv(prior, prior, 3))
        self.g_s0, self.g_s1 = _ModulatedBlock(m, prior, hidden), _ModulatedBlock(m, prior, hidden)
        self.g_s2 = nn.Sequential(conv(m, n), *(Bottleneck(n) for _ in range(3)))
        self.g_s2_ref = _Modulation(n, prior, hidden)
        self.g_s3 = nn.Sequential(Up(n, n), *(Bottleneck(n) for _ in range(3)))
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
    """The latent compressor. Defaults are the published model, 51.49M parameters; parts bear the published names.

    n, m: channels of z and y. widths: of the encoder's four stages. prior, modulation: channels of the modulating features and of
    the layer that turns them into scales and shifts. latent: channels of the VAE latent.
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
        self.f_c = gelus(deconv(n, n // 2), deconv(n // 2, n // 4), deconv(n // 4, n // 4, 3, stride=1))
        self.context = context(slices, context_widths)
        self.entropy_bottleneck = EntropyBottleneck(n)
        self.gaussian_conditional = GaussianConditional()

    def analyse(self, pixels: Tensor, ref: Tensor | None) -> tuple[Tensor, Tensor]:
        assert ref is not None
        y = self.encoder(pixels, ref)
        return y, self.hyper_enc(y, ref)

    def hint(self, y_hat: Tensor, z_hat: Tensor) -> Tensor:
        return self.decoder(y_hat, self.f_c(z_hat))
