"""What the family's latent compressors share: a hyperprior, a context model, and one verified stream of both latents.

    pixels, ref --analyse--> y, z --entropy core--> payload --> y_hat, z_hat --hint--> what the decoder is controlled by

`ref` is the VAE latent of the image. Networks run in float32 wherever they are; what decides symbols runs in the entropy core, on
the CPU.
"""

from __future__ import annotations

import zlib
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from icmbench.codecs.entropy.hyperprior import CodedLatents, HyperpriorCoder
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional


class LatentCompressor(nn.Module):
    """Base of the latent compressors. A subclass sets the attributes below and gives `analyse` and `hint`.

    pad: image sides are padded to multiples of it, at the bottom and right. padding: how, a mode of numpy.pad. z_stride: pixels
    along a side of a position of z. needs_latent: whether `analyse` reads `ref`; else it is given None and no VAE encoder runs.
    """

    pad: ClassVar[int]
    padding: ClassVar[Literal["constant", "reflect"]] = "constant"
    z_stride: ClassVar[int]
    needs_latent: ClassVar[bool] = True

    entropy_bottleneck: EntropyBottleneck
    gaussian_conditional: GaussianConditional
    hyper_dec: nn.Module  # z_hat -> hyper parameters
    context: Any  # SCCTX or Quadtree4

    def __init__(self) -> None:
        super().__init__()
        self._coders: dict[str, HyperpriorCoder] = {}

    def analyse(self, pixels: Tensor, ref: Tensor | None) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, H, W) in [0, 1], ref (B, 4, H/8, W/8) -> y and z before rounding."""
        raise NotImplementedError

    def hint(self, y_hat: Tensor, z_hat: Tensor) -> Tensor:
        """What the decoder is controlled by, usually a VAE latent (B, 4, H/8, W/8), from the decoded latents."""
        raise NotImplementedError

    def forward(self, pixels: Tensor, ref: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """pixels and ref as for `analyse` -> the hint, and the likelihoods {"y", "z"}.

        In training the likelihoods are those of noisy latents; the hint is that of rounded ones, with a straight-through gradient.
        """
        y, z = self.analyse(pixels, ref)
        _, z_likelihood = self.entropy_bottleneck(z)
        z_hat = self.entropy_bottleneck.quantise(z)
        y_hat, y_likelihood = self.context(y, self.hyper_dec(z_hat), self.gaussian_conditional)
        return self.hint(y_hat, z_hat), {"y": y_likelihood, "z": z_likelihood}

    def update(self) -> None:
        """Make the frequency tables of the weights as they are now; once after training or loading weights without tables."""
        self.entropy_bottleneck.update()
        self.gaussian_conditional.update()
        self._coders.clear()

    def digest(self) -> int:
        """32 bits over all that decides symbols: the entropy networks' weights and tables."""
        check = 0
        for key, value in sorted(self.state_dict().items()):
            if key.startswith(("entropy_bottleneck.", "gaussian_conditional.", "hyper_dec.", "context.")):
                check = zlib.crc32(value.cpu().contiguous().numpy().tobytes(), zlib.crc32(key.encode(), check))
        return check

    def coder(self, mode: str) -> HyperpriorCoder:
        """The coder of z and y in one arithmetic, "default" or "portable", prepared once."""
        if mode not in self._coders:
            parts = (self.entropy_bottleneck, self.gaussian_conditional, self.hyper_dec, self.context)
            self._coders[mode] = HyperpriorCoder(*parts, mode=mode)
        return self._coders[mode]

    def compress(self, pixels: Tensor, ref: Tensor | None, mode: str = "default") -> CodedLatents:
        """One image: arguments as for `analyse`, B = 1, H and W multiples of `pad`."""
        return self.coder(mode).compress(*self.analyse(pixels, ref))

    def decompress(self, payload: bytes, height: int, width: int, mode: str = "default") -> tuple[Tensor, Tensor, int]:
        """y_hat and z_hat of one image of height x width pixels, (1, C, h, w) on the CPU, and the checksum of their symbols.

        BitstreamError unless the payload is exactly these latents.
        """
        latents = self.coder(mode).decompress(payload, height // self.z_stride, width // self.z_stride)
        return latents.y_hat, latents.z_hat, latents.checksum
