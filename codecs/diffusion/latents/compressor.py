"""The base of the latent compressors: a hyperprior, a context model, and one verified stream of both latents.

    pixels, ref --analyse--> y, z --entropy core--> payload --> y_hat, z_hat --hint--> conditions the diffusion model

`ref` is the VAE latent of the image. The networks run in float32 on any device; those that decide symbols run in the entropy core,
on the CPU.
"""

from __future__ import annotations

import zlib
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from icmbench.codecs.entropy.hyperprior import CodedLatents, HyperpriorCoder
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional


class LatentCompressor(nn.Module):
    """Base of the latent compressors. A subclass sets the attributes below and implements `analyse` and `hint`.

    Attributes:
        pad: Image sides are padded to multiples of this many pixels, at the bottom and at the right.
        padding: How they are padded, a mode of numpy.pad.
        z_stride: Side of a position of z in pixels.
        needs_latent: Whether `analyse` reads `ref`. If not, `ref` is None and the VAE's encoder does not run.
        entropy_bottleneck: Probability model of z.
        gaussian_conditional: Probability model of y.
        hyper_dec: Network from z_hat to hyper parameters.
        context: Context model of y, an SCCTX or a Quadtree4.
    """

    pad: ClassVar[int]
    padding: ClassVar[Literal["constant", "reflect"]] = "constant"
    z_stride: ClassVar[int]
    needs_latent: ClassVar[bool] = True

    entropy_bottleneck: EntropyBottleneck
    gaussian_conditional: GaussianConditional
    hyper_dec: nn.Module
    context: Any

    def __init__(self) -> None:
        super().__init__()
        self._coders: dict[str, HyperpriorCoder] = {}

    def analyse(self, pixels: Tensor, ref: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the latents before rounding.

        Args:
            pixels: (B, 3, H, W) float32 in [0, 1]; H and W are multiples of `pad`.
            ref: VAE latent (B, 4, H/8, W/8) float32 of the same images; None if `needs_latent` is false.

        Returns:
            y and z; their channels and strides depend on the compressor.
        """
        raise NotImplementedError

    def hint(self, y_hat: Tensor, z_hat: Tensor) -> Tensor:
        """Compute the hint, which conditions the diffusion model, from the decoded latents.

        Args:
            y_hat: Rounded y, as `analyse` shapes it.
            z_hat: Rounded z, as `analyse` shapes it.

        Returns:
            The hint (B, C, H/8, W/8); usually an approximate VAE latent with C = 4.
        """
        raise NotImplementedError

    def forward(self, pixels: Tensor, ref: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the hint and the likelihoods of the latents, without a stream. Arguments as for `analyse`.

        Returns:
            The hint, always computed from rounded latents, with a straight-through gradient; and the likelihoods of "y" and "z",
            shaped as the latents. In training, the likelihoods are those of noisy latents, otherwise those of rounded ones.
        """
        y, z = self.analyse(pixels, ref)
        _, z_likelihood = self.entropy_bottleneck(z)
        z_hat = self.entropy_bottleneck.quantise(z)
        y_hat, y_likelihood = self.context(y, self.hyper_dec(z_hat), self.gaussian_conditional)
        return self.hint(y_hat, z_hat), {"y": y_likelihood, "z": z_likelihood}

    def update(self) -> None:
        """Make the frequency tables for the current weights; needed after training and after loading weights without tables."""
        self.entropy_bottleneck.update()
        self.gaussian_conditional.update()
        self._coders.clear()

    def digest(self) -> int:
        """Return a 32-bit checksum of all weights and tables that decide how symbols are decoded."""
        check = 0
        for key, value in sorted(self.state_dict().items()):
            if key.startswith(("entropy_bottleneck.", "gaussian_conditional.", "hyper_dec.", "context.")):
                check = zlib.crc32(value.cpu().contiguous().numpy().tobytes(), zlib.crc32(key.encode(), check))
        return check

    def coder(self, mode: str) -> HyperpriorCoder:
        """Return the entropy coder of z and y; it is made once for each arithmetic, "default" or "portable"."""
        if mode not in self._coders:
            networks = (self.entropy_bottleneck, self.gaussian_conditional, self.hyper_dec, self.context)
            self._coders[mode] = HyperpriorCoder(*networks, mode=mode)
        return self._coders[mode]

    def compress(self, pixels: Tensor, ref: Tensor | None, mode: str = "default") -> CodedLatents:
        """Code one image; arguments as for `analyse` with B = 1, and `mode` as for `decompress`.

        Raises:
            CodecError: the latents cannot be coded, or decoding the stream does not return them.
        """
        return self.coder(mode).compress(*self.analyse(pixels, ref))

    def decompress(self, payload: bytes, height: int, width: int, mode: str = "default") -> tuple[Tensor, Tensor, int]:
        """Decode the latents of one image.

        Args:
            payload: The payload that `compress` returned.
            height: Height of the padded image in pixels.
            width: Width of the padded image in pixels.
            mode: Arithmetic of the entropy coder, "default" or "portable".

        Returns:
            y_hat and z_hat, (1, C, h, w) float32 on the CPU, and the checksum of their symbols.

        Raises:
            BitstreamError: the payload does not hold exactly these latents.
        """
        latents = self.coder(mode).decompress(payload, height // self.z_stride, width // self.z_stride)
        return latents.y_hat, latents.z_hat, latents.checksum
