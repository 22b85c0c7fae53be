"""The compressor of VAE latents of ResULIC (and, as far as its paper tells, of SLIM): an ELIC-like network from latent to latent.

    z0 --encoder--> y --hyper_enc--> z            z0: the VAE latent, 1/8 of the image; y: 1/32; z: 1/128
                    |                |
                  y_hat <--SCCTX-- hyper_dec(z_hat)
                    |
    z_c <--decoder--+                             the hint: what the decoder has of z0

Origin: Ke et al., ResULIC (ICML 2025, section 3, "similar architecture like ELIC"), with the sizes of the authors' configuration
files; He et al., ELIC (CVPR 2022). The authors pad images to 64 pixels, which fails where z then has half a position: 128 here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from icmbench.codecs.diffusion.latents.compressor import LatentCompressor
from icmbench.codecs.diffusion.latents.layers import Bottleneck, Down, Up, context, conv, gelus, hyper_decoder
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional

PAD = 128  # pixels; image sides are multiples of it

VAE_COMPRESSOR: Mapping[str, Mapping[str, Any]] = {
    "sd21": {},
    "tiny": {"n": 16, "width": 24, "slices": (4, 4, 8, 16), "context_widths": (32, 24)},
}


def _stage(first: nn.Module, width: int) -> list[nn.Module]:
    return [first, *(Bottleneck(width) for _ in range(3))]


class VaeCompressor(LatentCompressor):
    """The compressor; defaults are the published sizes, 12.81M parameters (13.07M with a branch that the authors never use).

    n: channels of z; those of y are the slices' sum. width: of the encoder. latent: channels of the VAE latent. `pixels` is never
    looked at. Training: rate of y and z, squared error of the hint against z0, and what the diffusion makes of the hint (paper,
    eq. 18); `entropy_bottleneck.auxiliary_loss` has an optimiser of its own.
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
        self.encoder = nn.Sequential(*_stage(Down(latent, width), width), *_stage(Down(width, width), width), conv(width, m))
        self.decoder = nn.Sequential(*_stage(Up(m, n), n), *_stage(Up(n, n), n), conv(n, latent))
        self.hyper_enc = gelus(conv(m, n), conv(n, n, 5, stride=2), conv(n, n, 5, stride=2))
        self.hyper_dec = hyper_decoder(n, m)
        self.context = context(slices, context_widths)
        self.entropy_bottleneck = EntropyBottleneck(n)
        self.gaussian_conditional = GaussianConditional()

    def analyse(self, pixels: Tensor | None, ref: Tensor | None) -> tuple[Tensor, Tensor]:
        assert ref is not None
        y = self.encoder(ref)
        return y, self.hyper_enc(y)

    def hint(self, y_hat: Tensor, z_hat: Tensor) -> Tensor:
        return self.decoder(y_hat)
