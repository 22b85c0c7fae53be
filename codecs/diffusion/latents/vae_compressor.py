"""The latent compressor of ResULIC and, as far as its paper describes it, of SLIM: an ELIC-like network for VAE latents.

    z0 --encoder--> y --hyper_enc--> z            z0: the VAE latent, 1/8 of the image; y: 1/32; z: 1/128
                    |                |
                  y_hat <--SCCTX-- hyper_dec(z_hat)
                    |
    z_c <--decoder--+                             the hint: the decoded latent, which approximates z0

Source: Ke et al., ResULIC (ICML 2025, section 3, "similar architecture like ELIC"), with the sizes of the authors' configuration
files; He et al., ELIC (CVPR 2022). The authors pad images to multiples of 64 pixels, which fails if a side is then no multiple of
128, the stride of z; here images are padded to multiples of 128.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from icmbench.codecs.diffusion.latents.compressor import LatentCompressor
from icmbench.codecs.diffusion.latents.layers import (
    ResidualBlockUpsample,
    ResidualBlockWithStride,
    context_model,
    conv,
    gelu_sequential,
    hyper_decoder,
    with_bottlenecks,
)
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional

PAD = 128  # Image sides are padded to multiples of this many pixels.

# Constructor arguments of `VaeCompressor` for each profile.
VAE_COMPRESSOR_PROFILES: Mapping[str, Mapping[str, Any]] = {
    "sd21": {},
    "tiny": {"n": 16, "width": 24, "slices": (4, 4, 8, 16), "context_widths": (32, 24)},
}


class VaeCompressor(LatentCompressor):
    """The latent compressor, which never reads the pixels.

    The defaults are the published sizes: 12.81M parameters, 13.07M with a branch that the authors never use. The training loss
    (paper, eq. 18) sums the rate of y and z, the squared error between hint and z0, and the loss of the diffusion model with this
    hint; `entropy_bottleneck.auxiliary_loss` has an optimiser of its own.

    Args:
        n: Channels of z.
        width: Channels of the encoder's two stages.
        slices: Channels of each slice of y in the context model; their sum is the number of channels of y.
        context_widths: Channels of the two hidden layers of each channel context.
        latent: Channels of the VAE latent.
    """

    pad = z_stride = PAD

    def __init__(
        self,
        *,
        n: int = 128,
        width: int = 128,
        slices: Sequence[int] = (16, 16, 32, 32, 96),
        context_widths: tuple[int, int] = (224, 128),
        latent: int = 4,
    ) -> None:
        super().__init__()
        m = sum(slices)
        self.encoder = nn.Sequential(
            *with_bottlenecks(ResidualBlockWithStride(latent, width), width),
            *with_bottlenecks(ResidualBlockWithStride(width, width), width),
            conv(width, m),
        )
        self.decoder = nn.Sequential(
            *with_bottlenecks(ResidualBlockUpsample(m, n), n),
            *with_bottlenecks(ResidualBlockUpsample(n, n), n),
            conv(n, latent),
        )
        self.hyper_enc = gelu_sequential(conv(m, n), conv(n, n, 5, stride=2), conv(n, n, 5, stride=2))
        self.hyper_dec = hyper_decoder(n, m)
        self.context = context_model(slices, context_widths)
        self.entropy_bottleneck = EntropyBottleneck(n)
        self.gaussian_conditional = GaussianConditional()

    def analyse(self, pixels: Tensor | None, ref: Tensor | None) -> tuple[Tensor, Tensor]:
        assert ref is not None
        y = self.encoder(ref)
        return y, self.hyper_enc(y)

    def hint(self, y_hat: Tensor, z_hat: Tensor) -> Tensor:
        return self.decoder(y_hat)
