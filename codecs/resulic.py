"""ResULIC (Ke et al., ICML 2025): a latent code, and the words that its preview lacks, decoded by compression-aware diffusion.

image --VAE--> z0 --VaeCompressor--> y, z --> payload        what the image shows - what the preview shows --tokens--> text
payload --VaeCompressor--> z_c --control--> Stable Diffusion 2.1 from z_c in noise, 3 steps, guided by the words --VAE--> image
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from icmbench.codecs.base import CodecError
from icmbench.codecs.bitstream import Overrides
from icmbench.codecs.diffusion.backbone.files import run_on
from icmbench.codecs.diffusion.codec import DiffusionCodec
from icmbench.codecs.diffusion.prompts.residual import ResidualGuide, models_of

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.engine import Decoding
    from icmbench.codecs.diffusion.models import Architecture
    from icmbench.codecs.diffusion.prompts.pfo import PerceptualFidelity
    from icmbench.codecs.diffusion.sampling.samplers import Sampler

# The authors' configuration files have noise levels 705 and 795 for lambda 36, 495 and 600 for 16, 300 for 6, 200 and 300 for 3
# (there 3.5), 50, 100 and 150 for 1.5; the paper does not say which of them it reports.
NOISE_LEVELS = {1.5: 100, 3: 200, 6: 300, 16: 495, 36: 795}
STEPS, PLAIN_STEPS, GUIDANCE = 3, 50, 2.5
NEGATIVE = "oil painting, cartoon, blurring, dirty, messy, low quality, frames, deformed, lowres, over-smooth."
SUFFIX = "best quality, extremely detailed"


class Resulic(DiffusionCodec):
    """ResULIC: a compressed VAE latent and a residual caption, decoded by compression-aware diffusion.

    point: lambda_R, the weight of the rate in the second stage of training: 1.5, 3, 6, 16 or 36, the lowest rate.
    profile: "sd21" is the published model, "tiny" a small one of the same shape (control at full width, where 0.2 leaves nothing).
    weights: a folder with the weights of the points, or the file of this point; by default the package's; or "random".
    backbone: Stable Diffusion 2.1-base: a checkpoint file, a folder in diffusers layout or a hub repository.
    noise_level: N_r, how noisy the latent is taken to be; by default that of the point. steps: S; the paper's 4 and 3 steps are
        S = 3, the default, and 2, as it counts two evaluations of the network that have no effect. eta: 1 for fresh noise at each.
    cdm: False samples from pure noise, by DDIM or with eta 1 by DDPM, in 50 steps by default; for weights trained so.
    cfg: scale of the guidance by words, 1 for none. suffix, negative: words that end every prompt, and words to lead away from; the
        defaults are the authors' code's. seed: of the noise.
    captions: what the images show, one for all, or a JSON file {image id: caption}. residuals: what to say of them, likewise.
    captioner: describes the other images, and the decoded previews: a transformers model by local path or hub name; arguments of a
        model that chats, {url, model, ...} or {source, ...}, see captioners.py; or a callable from image to text.
    llm: tells what the preview's caption lacks: likewise, or a callable from text to text; by default the captioner if it chats.
        Without, captions are said in full. Both are asked with the paper's prompts.
    pfo: True, or arguments of pfo.PerceptualFidelity: a search, minutes an image, for tokens that decode closer to the original.
    text: how words are coded, see captions.py; "prior" and "clip16" are the paper's index coding, with tables that take no bits.
    colour: "wavelet" takes the low frequencies from the decoded hint; an option of the authors' code, off by default.
    mode: "portable" streams decode on any processor.
    dtype, device: of all but the entropy coder; by default bfloat16 on a CUDA device if there is one, else float32 on the CPU.
    tile, overlap: latents (8 pixels a position) with a longer side are sampled in tiles, 0 for never. batch: images at a time.
    compile: have torch compile the networks, which pays off from some ten images of one size on.
    """

    name = "resulic"
    version = 1
    points = default_points = tuple(NOISE_LEVELS)
    samplers = ("cdm", "cdm-stochastic", "ddim", "ddpm")
    weights = (
        "none are published: train them (resulic-lambda<point>.safetensors), over Stable Diffusion 2.1-base (CreativeML Open "
        "RAIL++-M); profile tiny: none needed"
    )

    def __init__(
        self,
        point: float = 36,
        *,
        profile: Literal["sd21", "tiny"] = "sd21",
        weights: Literal["random"] | Path | None = None,
        backbone: str | None = None,
        noise_level: int | None = None,
        steps: int | None = None,
        eta: Literal[0, 1] = 0,
        cdm: bool = True,
        cfg: float = GUIDANCE,
        suffix: str = SUFFIX,
        negative: str = NEGATIVE,
        seed: int = 0,
        captions: str | Path = "",
        residuals: str | Path | None = None,
        captioner: str | Path | Mapping[str, Any] | Callable[..., Any] | None = None,
        llm: str | Path | Mapping[str, Any] | Callable[..., Any] | None = None,
        pfo: bool | dict[str, Any] = False,
        text: Literal["prior", "clip16", "utf8", "deflate", "zlib", "smallest"] = "prior",
        colour: Literal["none", "wavelet"] = "none",
        mode: Literal["default", "portable"] = "default",
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        device: str | None = None,
        tile: int = 96,
        overlap: int = 32,
        batch: int = 8,
        compile: bool = False,
    ) -> None:
        if eta not in (0, 1) or 0 in (noise_level, steps, cfg):  # 0 means the usual value in a stream
            raise CodecError(f"{self.name} takes eta 0 or 1, and noise_level, steps and cfg from 1")
        sampler = self.samplers[(0 if cdm else 2) + eta]
        sampling = Overrides(steps=steps or (0 if cdm else PLAIN_STEPS), noise_level=noise_level or 0, guidance=cfg)
        writes, subtracts = models_of(captioner, llm, run_on(device, dtype)[0])
        self._words = ResidualGuide(
            residuals,
            captions,
            writes,
            subtracts,
            self._optimiser(pfo),
            suffix=suffix,
            negative=negative,
            coder=text,
            seed=seed,
        )
        super().__init__(
            point,
            profile=profile,
            sampler=sampler,
            sampling=sampling,
            guide=self._words,
            weights=weights,
            backbone=backbone,
            seed=seed,
            colour=colour,
            mode=mode,
            dtype=dtype,
            device=device,
            tile=tile,
            overlap=overlap,
            batch=batch,
            compile=compile,
        )
        self.sampler(sampler, self._filled(sampling, profile, point))  # fails now rather than at the first image

    def usual(self, profile: str, point: float) -> Overrides:
        return Overrides(steps=STEPS, noise_level=NOISE_LEVELS[point], guidance=GUIDANCE)

    def sampler(self, name: str, sampling: Overrides) -> Sampler:
        from icmbench.codecs.diffusion.sampling.compression_aware import CompressionAware
        from icmbench.codecs.diffusion.sampling.samplers import SAMPLERS

        if name in SAMPLERS:
            return SAMPLERS[name](sampling.steps)
        return CompressionAware(sampling.noise_level, sampling.steps, self.samplers.index(name))

    def decoding(self, sampler: Sampler, guidance: float) -> Decoding:
        return replace(super().decoding(sampler, guidance), negative=self._words.negative)

    def _optimiser(self, pfo: bool | dict[str, Any]) -> PerceptualFidelity | None:
        if pfo is False:
            return None
        from icmbench.codecs.diffusion.prompts.pfo import PerceptualFidelity

        try:
            return PerceptualFidelity(**({} if pfo is True else pfo))
        except TypeError as error:
            raise CodecError(f"pfo takes arguments of pfo.PerceptualFidelity ({error})") from error

    def architecture(self) -> Architecture:
        from icmbench.codecs.diffusion.models import RESULIC

        return RESULIC
